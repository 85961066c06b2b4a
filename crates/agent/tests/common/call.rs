//! A call to an agent, as bytes on its socket.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// The status and the body of the answer.
pub(crate) fn call(socket: &Path, method: &str, path: &str, body: Option<&str>) -> (u16, Value) {
    let mut stream = UnixStream::connect(socket).unwrap();
    let body = body.unwrap_or_default();
    let head = format!("{method} {path} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n");
    let kind = if body.is_empty() { "" } else { "Content-Type: application/json\r\n" };
    stream.write_all(format!("{head}{kind}Content-Length: {}\r\n\r\n{body}", body.len()).as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("not an answer: {answer}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {body}")))
}

/// A call that succeeds.
pub(crate) fn good<T: DeserializeOwned>(socket: &Path, method: &str, path: &str, body: Option<&impl Serialize>) -> T {
    let body = body.map(|body| serde_json::to_string(body).unwrap());
    let (status, answer) = call(socket, method, path, body.as_deref());
    assert_eq!(status, 200, "{method} {path}: {answer}");
    serde_json::from_value(answer).unwrap()
}

/// A call that is refused with that status and kind.
pub(crate) fn refused(socket: &Path, method: &str, path: &str, body: Option<&str>, status: u16, kind: &str) {
    let (found, answer) = call(socket, method, path, body);
    assert_eq!((found, answer["kind"].as_str()), (status, Some(kind)), "{method} {path}: {answer}");
    assert!(answer["message"].as_str().is_some_and(|message| !message.is_empty()), "{answer}");
}
