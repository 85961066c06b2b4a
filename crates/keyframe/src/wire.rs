//! The control protocol: lines of JSON over a Unix socket. The client sends a request; the server answers with any number
//! of events and then exactly one result or error, and reads the next request.

use std::io::{self, BufRead, Read};

use serde::{Deserialize, Serialize};

use crate::ops::{Event, Failure, Range, Reply};

/// Longest line from a client; a longer one ends the connection.
pub(crate) const MAX_REQUEST: u64 = 1 << 20;

/// One line from the server.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Line {
    Progress { done: u64, total: u64 },
    Ranges(Vec<Range>),
    Result(Reply),
    Error(Failure),
}

impl From<Event> for Line {
    fn from(event: Event) -> Line {
        match event {
            Event::Progress { done, total } => Line::Progress { done, total },
            Event::Ranges(ranges) => Line::Ranges(ranges),
        }
    }
}

/// What a client sent.
#[derive(PartialEq, Eq, Debug)]
pub(crate) enum Received {
    Line(Vec<u8>),
    TooLong,
    /// The client is done; an unfinished line is dropped.
    End,
}

/// Reads a request's line without keeping more than [`MAX_REQUEST`] bytes.
pub(crate) fn receive(reader: &mut impl BufRead) -> io::Result<Received> {
    let mut line = Vec::new();
    reader.by_ref().take(MAX_REQUEST + 1).read_until(b'\n', &mut line)?;
    match line.last() {
        Some(b'\n') => Ok(Received::Line(line)),
        _ if line.len() as u64 > MAX_REQUEST => Ok(Received::TooLong),
        _ => Ok(Received::End),
    }
}

/// A message as the bytes of its line.
pub(crate) fn line(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec(message)?;
    bytes.push(b'\n');
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_a_limit() {
        let limit = MAX_REQUEST as usize;
        let check = |bytes: &[u8], expected: Received| {
            assert!(receive(&mut io::Cursor::new(bytes)).unwrap() == expected, "{} bytes", bytes.len());
        };
        check(b"", Received::End);
        check(b"{}", Received::End);
        check(b"{}\n{}\n", Received::Line(b"{}\n".to_vec()));
        let longest = [vec![b' '; limit - 1], vec![b'\n']].concat();
        check(&longest, Received::Line(longest.clone()));
        check(&vec![b' '; limit + 2], Received::TooLong);
    }

    #[test]
    fn answers_are_lines_of_json() {
        let check = |message: Line, text: &str| assert_eq!(line(&message).unwrap(), format!("{text}\n").as_bytes());
        check(Line::Progress { done: 1, total: 2 }, r#"{"progress":{"done":1,"total":2}}"#);
        check(
            Line::Error(Failure { kind: "not-found".into(), message: "no volume named web".into() }),
            r#"{"error":{"kind":"not-found","message":"no volume named web"}}"#,
        );
    }
}
