//! Questions to a server on a Unix socket, in HTTP/1.0: one connection each, read to its end.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(330);

/// A server.
#[derive(Clone)]
pub(crate) struct Server {
    socket: PathBuf,
}

impl Server {
    pub(crate) fn at(socket: &Path) -> Server {
        Server { socket: socket.to_owned() }
    }

    pub(crate) fn get(&self, path: &str) -> Result<Value> {
        self.ask("GET", path, "")
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Result<Value> {
        self.ask("POST", path, &body.to_string())
    }

    fn ask(&self, method: &str, path: &str, body: &str) -> Result<Value> {
        let mut stream =
            UnixStream::connect(&self.socket).with_context(|| format!("connect to {}", self.socket.display()))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let length = body.len();
        let head = "Host: keyframe\r\nContent-Type: application/json";
        let request = format!("{method} {path} HTTP/1.0\r\n{head}\r\nContent-Length: {length}\r\n\r\n{body}");
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).with_context(|| format!("read the answer to {method} {path}"))?;
        let (head, body) = answer.split_once("\r\n\r\n").context("the answer has no end of its head")?;
        let status = head.split(' ').nth(1).context("the answer has no status")?;
        ensure!(status.starts_with('2'), "{method} {path}: {status} {body}");
        serde_json::from_str(body).with_context(|| format!("{method} {path}: not JSON: {body}"))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    fn check(answer: &'static str, expected: Option<&str>) {
        let dir = tempfile::tempdir().expect("a folder");
        let socket = dir.path().join("s");
        let listener = UnixListener::bind(&socket).expect("bind");
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("accept");
            let mut asked = Vec::new();
            // A server that goes with something unread breaks the connection.
            while !asked.ends_with(b"\r\n\r\n[1]") {
                let mut piece = [0; 1000];
                let n = stream.read(&mut piece).expect("read");
                assert!(n > 0, "the request ends early");
                asked.extend_from_slice(&piece[..n]);
            }
            stream.write_all(answer.as_bytes()).expect("answer");
            String::from_utf8_lossy(&asked).into_owned()
        });
        let got = Server::at(&socket).post("/v1/x", &serde_json::json!([1]));
        assert_eq!(got.ok().map(|value| value.to_string()).as_deref(), expected);
        let asked = server.join().expect("the server");
        assert!(asked.starts_with("POST /v1/x HTTP/1.0\r\n"), "{asked}");
    }

    #[test]
    fn only_an_answer_of_success_is_one() {
        check("HTTP/1.0 200 OK\r\nA: b\r\n\r\n{\"a\":1}", Some("{\"a\":1}"));
        check("HTTP/1.0 409 Conflict\r\n\r\n{}", None);
        check("HTTP/1.0 200 OK\r\n\r\nnonsense", None);
    }
}
