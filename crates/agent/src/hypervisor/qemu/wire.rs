//! Lines of JSON from QEMU's monitor and from guest agents: bytes to messages, without I/O.
//!
//! What comes from a guest is hostile, and what comes from QEMU may be of a version that nobody here has seen: a line has
//! a greatest length, and whatever is not understood is an error or ignored, never a panic.
//! Source: QEMU documentation, "QEMU Machine Protocol Specification" and "QEMU Guest Agent Protocol Reference".

use keyframe_agent_api::Timestamp;
use serde_json::Value;
use thiserror::Error;

/// Why bytes are no message.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub(super) enum Garbage {
    #[error("a line is longer than {limit} bytes")]
    TooLong { limit: usize },
    #[error("a line is no JSON object: {start}")]
    NotJson { start: String },
    #[error("an object is neither greeting, reply nor event: {start}")]
    Unknown { start: String },
}

/// Cuts a stream of bytes into lines.
pub(super) struct Lines {
    buffer: Vec<u8>,
    /// Bytes of `buffer` known to hold no end of a line.
    searched: usize,
    limit: usize,
}

impl Lines {
    pub(super) fn new(limit: usize) -> Lines {
        Lines { buffer: Vec::new(), searched: 0, limit }
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole line without its end.
    pub(super) fn next(&mut self) -> Option<Result<Vec<u8>, Garbage>> {
        let Some(at) = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n') else {
            self.searched = self.buffer.len();
            return (self.buffer.len() > self.limit).then_some(Err(Garbage::TooLong { limit: self.limit }));
        };
        let end = self.searched + at;
        self.searched = 0;
        let rest = self.buffer.split_off(end + 1);
        let mut line = std::mem::replace(&mut self.buffer, rest);
        line.truncate(end);
        Some(if line.len() > self.limit { Err(Garbage::TooLong { limit: self.limit }) } else { Ok(line) })
    }
}

/// What a monitor sends.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Message {
    Greeting { version: String },
    Reply { id: u64, outcome: Result<Value, Refusal> },
    Event(Event),
}

/// What a monitor or an agent says instead of doing it.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("{text}")]
pub(super) struct Refusal {
    pub(super) class: String,
    pub(super) text: String,
}

/// Something happened in QEMU.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Event {
    pub(super) name: String,
    pub(super) data: Value,
    /// By QEMU's clock, which is the host's.
    pub(super) at: Timestamp,
}

impl Event {
    /// A text in its data, or nothing.
    pub(super) fn text(&self, key: &str) -> &str {
        self.data[key].as_str().unwrap_or_default()
    }
}

/// One line of a monitor.
pub(super) fn message(line: &[u8]) -> Result<Message, Garbage> {
    let mut value = object(line)?;
    if let Some(id) = value["id"].as_u64() {
        return Ok(Message::Reply { id, outcome: outcome(&mut value) });
    }
    if let Some(name) = value["event"].as_str() {
        let clock = &value["timestamp"];
        // QEMU says -1 where the host's clock failed it.
        let part = |key: &str| clock[key].as_i64().unwrap_or(0).clamp(0, 1 << 40);
        let at = Timestamp(part("seconds") * 1_000_000 + part("microseconds"));
        let name = name.to_owned();
        return Ok(Message::Event(Event { name, data: value["data"].take(), at }));
    }
    if let Some(qmp) = value.get("QMP") {
        let number = |key: &str| qmp["version"]["qemu"][key].as_u64().unwrap_or(0);
        let version = format!("{}.{}.{}", number("major"), number("minor"), number("micro"));
        return Ok(Message::Greeting { version });
    }
    // An error without an id answers something that was not even JSON, which is never sent.
    Err(Garbage::Unknown { start: start(line) })
}

/// One line of a guest agent; 0xFF marks the answer to a delimited sync.
pub(super) fn answer(line: &[u8]) -> Result<Result<Value, Refusal>, Garbage> {
    let line = line.rsplit(|byte| *byte == 0xFF).next().unwrap_or(line);
    let mut value = object(line)?;
    if value.get("return").is_none() && value.get("error").is_none() {
        return Err(Garbage::Unknown { start: start(line) });
    }
    Ok(outcome(&mut value))
}

fn object(line: &[u8]) -> Result<Value, Garbage> {
    match serde_json::from_slice::<Value>(line) {
        Ok(value) if value.is_object() => Ok(value),
        _ => Err(Garbage::NotJson { start: start(line) }),
    }
}

fn outcome(value: &mut Value) -> Result<Value, Refusal> {
    let Some(error) = value.get("error") else { return Ok(value["return"].take()) };
    let text = |key: &str, otherwise: &str| error[key].as_str().unwrap_or(otherwise).chars().take(500).collect();
    Err(Refusal { class: text("class", ""), text: text("desc", "no reason given") })
}

fn start(line: &[u8]) -> String {
    String::from_utf8_lossy(&line[..line.len().min(80)]).into_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn reads_what_qemu_was_recorded_to_say() {
        let check = |line: &str, expected: Message| assert_eq!(message(line.as_bytes()), Ok(expected), "{line}");
        check(
            r#"{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": "Debian 1:10.0.2+ds-2+deb13u1~bpo12+1"}, "capabilities": ["oob"]}}"#,
            Message::Greeting { version: "10.0.2".into() },
        );
        check(
            r#"{"return": {"status": "running", "running": true}, "id": 7}"#,
            Message::Reply { id: 7, outcome: Ok(json!({ "status": "running", "running": true })) },
        );
        check(
            r#"{"id": 8, "error": {"class": "GenericError", "desc": "Migration is not finalized yet"}}"#,
            Message::Reply {
                id: 8,
                outcome: Err(Refusal { class: "GenericError".into(), text: "Migration is not finalized yet".into() }),
            },
        );
        check(
            r#"{"timestamp": {"seconds": 1763729238, "microseconds": 104217}, "event": "MIGRATION", "data": {"status": "setup"}}"#,
            Message::Event(Event {
                name: "MIGRATION".into(),
                data: json!({ "status": "setup" }),
                at: Timestamp(1_763_729_238_104_217),
            }),
        );
        check(
            r#"{"timestamp": {"seconds": -1, "microseconds": -1}, "event": "STOP"}"#,
            Message::Event(Event { name: "STOP".into(), data: Value::Null, at: Timestamp(0) }),
        );
    }

    #[test]
    fn refuses_what_is_no_message() {
        for line in
            ["", "[]", "{", "7", "\"QMP\"", "{}", r#"{"return": {}}"#, r#"{"id": -1, "return": {}}"#, "\u{fffd}"]
        {
            assert!(message(line.as_bytes()).is_err(), "{line}");
        }
        assert!(message(&[0xFF, 0xFE]).is_err());
        assert!(message(&[b'['; 100_000]).is_err());
    }

    #[test]
    fn reads_what_a_guest_agent_was_recorded_to_say() {
        let check = |line: &[u8], expected| assert_eq!(answer(line), Ok(expected));
        check(b"{\"return\": 2}", Ok(json!(2)));
        check(b"\xff{\"return\": 305419896}", Ok(json!(305_419_896)));
        check(b"{\"return\": {}\xff{\"return\": 1}", Ok(json!(1)));
        let text = "Command guest-exec has been disabled: the agent is in frozen state";
        let line = format!(r#"{{"error": {{"class": "CommandNotFound", "desc": "{text}"}}}}"#);
        check(line.as_bytes(), Err(Refusal { class: "CommandNotFound".into(), text: text.into() }));
        assert!(answer(b"\xff").is_err());
        assert!(answer(b"{\"event\": 1}").is_err());
    }

    #[test]
    fn cuts_lines_wherever_the_bytes_were_cut() {
        let text = b"one\ntwo\r\n\nthree";
        for step in 1..=text.len() {
            let mut lines = Lines::new(16);
            let mut found = Vec::new();
            for part in text.chunks(step) {
                lines.push(part);
                while let Some(line) = lines.next() {
                    found.push(line.expect("short"));
                }
            }
            assert_eq!(found, [&b"one"[..], b"two\r", b""], "in steps of {step}");
        }
    }

    #[test]
    fn a_line_without_an_end_is_given_up() {
        let mut lines = Lines::new(8);
        lines.push(&[b'x'; 8]);
        assert_eq!(lines.next(), None);
        lines.push(b"x");
        assert_eq!(lines.next(), Some(Err(Garbage::TooLong { limit: 8 })));
    }
}
