//! What is read in order to be changed is changed only if it is still what was read. The manager here is none: it answers every
//! request with a machine that somebody else has changed since the last one.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;
use std::sync::mpsc::{Sender, channel};

use serde_json::json;

/// One request: its method, and what it says it must match.
struct Asked {
    method: String,
    guard: Option<String>,
}

/// Reads a request and answers with a machine of that generation.
fn answer(stream: UnixStream, generation: u32) -> std::io::Result<Asked> {
    let mut reader = BufReader::new(&stream);
    let (mut first, mut guard, mut length) = (String::new(), None, 0);
    reader.read_line(&mut first)?;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        match name {
            "if-match" => guard = Some(value.to_owned()),
            "content-length" => length = value.parse().unwrap(),
            _ => {}
        }
    }
    reader.take(length).read_to_end(&mut Vec::new())?;
    let vm = "01a203cb-7474-7075-85f6-20831e298830";
    let hardware = json!({
        "machine_type": "pc-q35-10.0", "generation_id": vm, "cpus": 1, "memory": 16_777_216, "firmware": "bios",
        "disks": [], "nics": [],
    });
    let body = json!({
        "id": vm, "name": "web", "description": "", "generation": generation,
        "state": { "state": "at", "power": "stopped" }, "created": 0, "hardware": hardware, "allowed": [],
    })
    .to_string();
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close";
    write!(&stream, "{head}\r\netag: \"{generation}-x\"\r\ncontent-length: {}\r\n\r\n{body}", body.len())?;
    Ok(Asked { method: first.split(' ').next().unwrap_or_default().to_owned(), guard })
}

fn serve(listener: &UnixListener, asked: &Sender<Asked>) {
    for (generation, stream) in (1..).zip(listener.incoming()) {
        if asked.send(answer(stream.unwrap(), generation).unwrap()).is_err() {
            break;
        }
    }
}

#[test]
fn an_interface_is_added_to_what_was_read() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("manager.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let (tell, hear) = channel();
    std::thread::spawn(move || serve(&listener, &tell));
    let mut command = Command::new(env!("CARGO_BIN_EXE_keyframe"));
    command.args(["nic", "add", "web", "none"]).env("KEYFRAME_SERVER", &socket);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let asked: Vec<Asked> = hear.try_iter().collect();
    let change = asked.iter().position(|asked| asked.method == "PATCH").expect("nothing is changed");
    // The list was made of what the first answer said.
    assert_eq!(asked[change].guard.as_deref(), Some("\"1-x\""), "after {change} answers");
}
