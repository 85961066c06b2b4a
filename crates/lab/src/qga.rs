//! The guest agent, over its virtio-serial port.
//!
//! The port outlives both sides, so stale bytes may wait in it: a connection starts with 0xFF, which resets the agent's
//! parser, and `guest-sync-delimited`; everything up to the matching answer is thrown away.
//! Source: QEMU documentation, "QEMU Guest Agent Protocol Reference".

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

/// A connection to a guest's agent.
pub struct Agent {
    stream: UnixStream,
    pending: Vec<u8>,
}

/// How a command in the guest ended.
#[derive(Debug)]
pub struct Ended {
    /// Its exit code; `None` if a signal ended it.
    pub code: Option<i64>,
    /// Its standard output.
    pub output: String,
}

/// What an agent command may take under full load on an emulated processor.
const REPLY: Duration = Duration::from_secs(30);

impl Agent {
    /// Connects and waits until the agent in the guest answers.
    pub fn connect(socket: &Path, patience: Duration) -> Result<Agent> {
        let stream = UnixStream::connect(socket).with_context(|| format!("connect to {}", socket.display()))?;
        let mut agent = Agent { stream, pending: Vec::new() };
        let deadline = Instant::now() + patience;
        for id in 1u64.. {
            let request = json!({ "execute": "guest-sync-delimited", "arguments": { "id": id } });
            agent.stream.write_all(b"\xff")?;
            writeln!(agent.stream, "{request}")?;
            let round = Instant::now() + Duration::from_secs(1);
            while let Some(reply) = agent.read_reply(round)? {
                if reply["return"] == id {
                    return Ok(agent);
                }
            }
            if Instant::now() > deadline {
                break;
            }
        }
        bail!("the guest agent did not answer within {patience:?}")
    }

    /// Runs one agent command.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        writeln!(self.stream, "{}", json!({ "execute": command, "arguments": arguments }))
            .with_context(|| format!("send {command} to the guest agent"))?;
        let Some(mut reply) = self.read_reply(Instant::now() + REPLY)? else {
            bail!("the guest agent did not answer {command} within {REPLY:?}");
        };
        if let Some(error) = reply.get("error") {
            bail!("{command} refused by the guest agent: {}", error["desc"].as_str().unwrap_or("no reason given"));
        }
        Ok(reply["return"].take())
    }

    /// Freezes all file systems; returns how many.
    pub fn freeze(&mut self) -> Result<u64> {
        self.execute("guest-fsfreeze-freeze", json!({}))?.as_u64().context("freeze returned no number")
    }

    /// Thaws all file systems; returns how many.
    pub fn thaw(&mut self) -> Result<u64> {
        self.execute("guest-fsfreeze-thaw", json!({}))?.as_u64().context("thaw returned no number")
    }

    /// Runs a shell command in the guest and waits for its end.
    pub fn shell(&mut self, line: &str, patience: Duration) -> Result<Ended> {
        let arguments = json!({ "path": "/bin/sh", "arg": ["-c", line], "capture-output": true });
        let pid = self.execute("guest-exec", arguments)?["pid"].take();
        let deadline = Instant::now() + patience;
        loop {
            let status = self.execute("guest-exec-status", json!({ "pid": pid }))?;
            if status["exited"] == true {
                let output = STANDARD.decode(status["out-data"].as_str().unwrap_or_default())?;
                let output = String::from_utf8_lossy(&output).into_owned();
                return Ok(Ended { code: status["exitcode"].as_i64(), output });
            }
            if Instant::now() > deadline {
                bail!("'{line}' still runs in the guest after {patience:?}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Asks the guest to power off. The agent does not answer this one.
    pub fn shutdown(&mut self) -> Result<()> {
        let request = json!({ "execute": "guest-shutdown", "arguments": { "mode": "powerdown" } });
        writeln!(self.stream, "{request}").context("send guest-shutdown to the guest agent")
    }

    /// The next reply, or `None` at the deadline. What is no JSON is a remainder from before the connection.
    fn read_reply(&mut self, deadline: Instant) -> Result<Option<Value>> {
        loop {
            while let Some(end) = self.pending.iter().position(|&b| b == b'\n') {
                let line: Vec<u8> = self.pending.drain(..=end).filter(|&b| b != 0xff).collect();
                if let Ok(reply) = serde_json::from_slice(&line) {
                    return Ok(Some(reply));
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.stream.set_read_timeout(Some(left))?;
            let mut chunk = [0; 4096];
            match self.stream.read(&mut chunk) {
                Ok(0) => bail!("the guest agent's port closed"),
                Ok(n) => self.pending.extend_from_slice(&chunk[..n]),
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    return Ok(None);
                }
                Err(e) => return Err(e).context("read from the guest agent"),
            }
        }
    }
}
