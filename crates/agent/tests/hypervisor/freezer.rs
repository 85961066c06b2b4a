//! The freezer against guest agents that hang, die, lie or talk nonsense.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::fixture::helper;

/// How a fake guest agent behaves.
#[derive(Clone, Copy, PartialEq)]
enum Manner {
    Honest,
    /// Never answers a freeze in time, but does it.
    Hangs,
    /// Answers a freeze with a number and does nothing.
    Lies,
    /// Answers a freeze with something that is no number.
    Babbles,
    /// Closes its port at the freeze.
    Dies,
}

/// Serves one agent; tells each command it was sent.
fn agent(listener: UnixListener, manner: Manner) -> Receiver<String> {
    let (tell, told) = channel();
    std::thread::spawn(move || {
        let mut frozen = false;
        for stream in listener.incoming() {
            let Ok(stream) = stream else { return };
            let mut answers = stream.try_clone().expect("a socket");
            for line in BufReader::new(stream).split(b'\n') {
                let Ok(line) = line else { break };
                let text: Vec<u8> = line.into_iter().filter(|byte| *byte != 0xFF).collect();
                let request: Value = serde_json::from_slice(&text).expect("well formed");
                let command = request["execute"].as_str().expect("a command").to_owned();
                if tell.send(command.clone()).is_err() {
                    return;
                }
                let answer = match (command.as_str(), manner) {
                    ("guest-sync-delimited", _) => request["arguments"]["id"].clone(),
                    ("guest-fsfreeze-freeze", Manner::Hangs) => {
                        std::thread::sleep(Duration::from_millis(600));
                        frozen = true;
                        json!(1)
                    }
                    ("guest-fsfreeze-freeze", Manner::Lies) => json!(3),
                    ("guest-fsfreeze-freeze", Manner::Babbles) => {
                        frozen = true;
                        json!({ "frozen": "yes" })
                    }
                    ("guest-fsfreeze-freeze", Manner::Dies) => break,
                    ("guest-fsfreeze-freeze", Manner::Honest) => {
                        frozen = true;
                        json!(2)
                    }
                    ("guest-fsfreeze-status", _) => json!(if frozen { "frozen" } else { "thawed" }),
                    ("guest-fsfreeze-thaw", _) => {
                        frozen = false;
                        json!(2)
                    }
                    (other, _) => panic!("{other} is not to be asked"),
                };
                if writeln!(answers, "{}", json!({ "return": answer })).is_err() {
                    break;
                }
            }
        }
    });
    told
}

struct Scene {
    child: Child,
    tell: Option<ChildStdin>,
    told: Receiver<String>,
    _dir: tempfile::TempDir,
}

impl Scene {
    fn new(manner: Manner, deadline: u64, hold: u64) -> Result<Scene> {
        let dir = tempfile::tempdir()?;
        let socket = dir.path().join("qga.sock");
        let told = agent(UnixListener::bind(&socket)?, manner);
        let mut child = Command::new(helper()?)
            .arg("freezer")
            .arg(&socket)
            .args([deadline.to_string(), hold.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let tell = child.stdin.take();
        Ok(Scene { child, tell, told, _dir: dir })
    }

    fn line(&mut self) -> Result<String> {
        // Byte by byte, so that nothing behind the line is taken.
        let out = self.child.stdout.as_mut().context("no output")?;
        let mut line = Vec::new();
        let mut byte = [0];
        while out.read(&mut byte)? == 1 && byte[0] != b'\n' {
            line.push(byte[0]);
        }
        Ok(String::from_utf8(line)?)
    }

    /// Waits for a command to the agent.
    fn sees(&self, command: &str) -> Result<()> {
        while self.told.recv_timeout(Duration::from_secs(20)).with_context(|| format!("no {command}"))? != command {}
        Ok(())
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.child.kill().expect("it is ours");
        self.child.wait().expect("it is ours");
    }
}

#[test]
fn told_to_thaw_it_thaws() -> Result<()> {
    let mut scene = Scene::new(Manner::Honest, 5000, 60_000)?;
    ensure!(scene.line()? == "frozen 2");
    scene.tell.as_mut().context("no input")?.write_all(b"thaw\n")?;
    ensure!(scene.line()? == "thawed");
    scene.sees("guest-fsfreeze-thaw")
}

#[test]
fn when_the_agent_of_the_host_is_gone_it_thaws() -> Result<()> {
    let mut scene = Scene::new(Manner::Honest, 5000, 60_000)?;
    ensure!(scene.line()? == "frozen 2");
    scene.tell = None;
    scene.sees("guest-fsfreeze-thaw")
}

#[test]
fn when_the_time_is_over_it_thaws_and_says_so() -> Result<()> {
    let mut scene = Scene::new(Manner::Honest, 5000, 20)?;
    ensure!(scene.line()? == "frozen 2");
    scene.sees("guest-fsfreeze-thaw")?;
    let said = scene.line()?;
    ensure!(said.starts_with("lost "), "{said}");
    Ok(())
}

#[test]
fn a_guest_agent_that_freezes_too_late_is_thawed() -> Result<()> {
    let mut scene = Scene::new(Manner::Hangs, 200, 60_000)?;
    let said = scene.line()?;
    ensure!(said.starts_with("deadline "), "{said}");
    scene.sees("guest-fsfreeze-freeze")?;
    scene.sees("guest-fsfreeze-thaw")
}

#[test]
fn a_lie_is_found_out() -> Result<()> {
    let mut scene = Scene::new(Manner::Lies, 5000, 60_000)?;
    let said = scene.line()?;
    ensure!(said.starts_with("failed ") && said.contains("not frozen"), "{said}");
    Ok(())
}

#[test]
fn nonsense_is_refused_and_thawed() -> Result<()> {
    let mut scene = Scene::new(Manner::Babbles, 5000, 60_000)?;
    let said = scene.line()?;
    ensure!(said.starts_with("failed "), "{said}");
    scene.sees("guest-fsfreeze-thaw")
}

#[test]
fn a_guest_agent_that_dies_fails_the_freeze() -> Result<()> {
    let mut scene = Scene::new(Manner::Dies, 5000, 60_000)?;
    let said = scene.line()?;
    ensure!(said.starts_with("failed "), "{said}");
    Ok(())
}

#[test]
fn nobody_at_the_port_fails_the_freeze() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let socket = dir.path().join("qga.sock");
    let listener = UnixListener::bind(&socket)?;
    let mut child = Command::new(helper()?);
    let output = child.arg("freezer").arg(&socket).args(["150", "1000"]).stdin(Stdio::null()).output()?;
    ensure!(String::from_utf8_lossy(&output.stdout).starts_with("unasked deadline "), "{output:?}");
    drop((listener, UnixStream::connect(&socket)));
    Ok(())
}
