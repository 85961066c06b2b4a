//! One connection to a guest's agent.
//!
//! The port outlives both sides, so stale bytes may wait in it: a connection starts with 0xFF, which resets the agent's
//! parser, and `guest-sync-delimited`; everything up to the matching answer is thrown away. The guest may hang, die or lie
//! at any moment: all calls have a deadline, and what it says is bounded by `wire` and checked by the caller.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use thiserror::Error;

use super::wire::{Garbage, Lines, Refusal, answer};

/// Why an agent did not do it.
#[derive(Debug, Error)]
pub(super) enum AgentError {
    #[error("the guest agent does not answer")]
    Silent,
    #[error("the guest agent says no to {command}: {refusal}")]
    Refused { command: String, refusal: Refusal },
    #[error("the guest agent talks nonsense: {0}")]
    Nonsense(#[source] Garbage),
    #[error("the guest agent answers {command} with nonsense: {reply}")]
    Odd { command: String, reply: String },
    #[error("the port of the guest agent: {0}")]
    Port(#[source] std::io::Error),
}

pub(super) struct Agent {
    stream: UnixStream,
    lines: Lines,
}

/// Answers are short, but for the list of network interfaces.
const LONGEST_LINE: usize = 1 << 20;
/// An agent that just started misses a sync now and then.
const SYNC_AGAIN: Duration = Duration::from_secs(2);

impl Agent {
    /// Connects, and waits until the agent in the guest answers.
    pub(super) fn connect(socket: &Path, until: Instant) -> Result<Agent, AgentError> {
        let stream = UnixStream::connect(socket).map_err(AgentError::Port)?;
        let mut agent = Agent { stream, lines: Lines::new(LONGEST_LINE) };
        agent.sync(until)?;
        Ok(agent)
    }

    /// Throws away what is stale; returns when the agent answers what it was asked last.
    pub(super) fn sync(&mut self, until: Instant) -> Result<(), AgentError> {
        loop {
            // The agent's parser holds numbers as 64 bits; positive ones come back as they went.
            let id = uuid::Uuid::new_v4().as_u64_pair().0 >> 2;
            let mut request = vec![0xFF];
            request.extend(line("guest-sync-delimited", &json!({ "id": id })));
            self.write(&request, until)?;
            let round = until.min(Instant::now() + SYNC_AGAIN);
            loop {
                match self.read_line(round) {
                    Ok(line) if matches!(answer(&line), Ok(Ok(value)) if value == id) => return Ok(()),
                    // Stale, whatever it is.
                    Ok(_) | Err(AgentError::Nonsense(_)) => {}
                    Err(AgentError::Silent) if Instant::now() < until => break,
                    Err(e) => return Err(e),
                }
            }
        }
    }

    /// Runs one command.
    pub(super) fn execute(&mut self, command: &str, arguments: &Value, until: Instant) -> Result<Value, AgentError> {
        self.send(command, arguments, until)?;
        let line = self.read_line(until)?;
        match answer(&line).map_err(AgentError::Nonsense)? {
            Ok(value) => Ok(value),
            Err(refusal) => Err(AgentError::Refused { command: command.into(), refusal }),
        }
    }

    /// Sends a command whose answer nobody waits for.
    pub(super) fn send(&mut self, command: &str, arguments: &Value, until: Instant) -> Result<(), AgentError> {
        self.write(&line(command, arguments), until)
    }

    /// Runs one command that answers with a number of things.
    pub(super) fn count(&mut self, command: &str, until: Instant) -> Result<u32, AgentError> {
        let reply = self.execute(command, &json!({}), until)?;
        let count = reply.as_u64().and_then(|n| u32::try_from(n).ok());
        count.ok_or_else(|| odd(command, &reply))
    }

    /// Whether the agent says that file systems are frozen.
    pub(super) fn is_frozen(&mut self, until: Instant) -> Result<bool, AgentError> {
        let command = "guest-fsfreeze-status";
        let reply = self.execute(command, &json!({}), until)?;
        match reply.as_str() {
            Some("frozen") => Ok(true),
            Some("thawed") => Ok(false),
            _ => Err(odd(command, &reply)),
        }
    }

    /// Runs a program in the guest and waits for its end; its exit code, or nothing if a signal ended it.
    pub(super) fn run(&mut self, path: &str, arguments: &[&str], until: Instant) -> Result<Option<i64>, AgentError> {
        let started = self.execute("guest-exec", &json!({ "path": path, "arg": arguments }), until)?;
        let pid = started["pid"].as_i64().ok_or_else(|| odd("guest-exec", &started))?;
        let mut pause = Duration::from_millis(5);
        loop {
            let status = self.execute("guest-exec-status", &json!({ "pid": pid }), until)?;
            match status["exited"].as_bool() {
                Some(true) => return Ok(status["exitcode"].as_i64()),
                Some(false) => {}
                None => return Err(odd("guest-exec-status", &status)),
            }
            if Instant::now() + pause > until {
                return Err(AgentError::Silent);
            }
            // The agent has no way to tell us when.
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(100));
        }
    }

    fn write(&mut self, bytes: &[u8], until: Instant) -> Result<(), AgentError> {
        self.stream.set_write_timeout(Some(left(until)?)).map_err(AgentError::Port)?;
        self.stream.write_all(bytes).map_err(port)
    }

    fn read_line(&mut self, until: Instant) -> Result<Vec<u8>, AgentError> {
        loop {
            if let Some(line) = self.lines.next() {
                return line.map_err(|garbage| {
                    self.lines = Lines::new(LONGEST_LINE);
                    AgentError::Nonsense(garbage)
                });
            }
            self.stream.set_read_timeout(Some(left(until)?)).map_err(AgentError::Port)?;
            let mut chunk = [0; 4096];
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(AgentError::Port(ErrorKind::UnexpectedEof.into())),
                Ok(n) => self.lines.push(&chunk[..n]),
                Err(e) => return Err(port(e)),
            }
        }
    }
}

fn line(command: &str, arguments: &Value) -> Vec<u8> {
    format!("{}\n", json!({ "execute": command, "arguments": arguments })).into_bytes()
}

fn odd(command: &str, reply: &Value) -> AgentError {
    AgentError::Odd { command: command.into(), reply: reply.to_string().chars().take(80).collect() }
}

fn port(e: std::io::Error) -> AgentError {
    match e.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => AgentError::Silent,
        _ => AgentError::Port(e),
    }
}

/// The time left; a timeout of zero would mean for ever.
fn left(until: Instant) -> Result<Duration, AgentError> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(AgentError::Silent) } else { Ok(left) }
}
