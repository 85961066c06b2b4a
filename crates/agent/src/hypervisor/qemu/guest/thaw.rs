//! Thawing a guest that an earlier agent may have left frozen.
//!
//! Its agent may hang, or the guest stand still and hear nothing, so it is tried until it has thawed or its process has ended.
//! Nobody waits for that but who would freeze it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::place::remove_file;
use super::super::qga::{Agent, AgentError};
use super::super::{Live, Shared, Slot};
use super::THAW;

/// Between two tries.
const AGAIN: Duration = Duration::from_secs(1);

/// Thaws it in a thread of its own.
pub(in super::super) fn in_background(shared: &Arc<Shared>, slot: &Arc<Slot>, live: &Arc<Live>) {
    let (driver, slot, live) = (Arc::downgrade(shared), Arc::clone(slot), Arc::clone(live));
    let vm = slot.vm;
    let work = move || {
        let mut told = false;
        while driver.upgrade().is_some_and(|shared| !shared.is_over()) && !live.process.has_ended() {
            match try_once(&slot) {
                Some(Ok(was)) => {
                    if was {
                        tracing::warn!(%vm, "an earlier agent had left it frozen; it is thawed");
                    }
                    return;
                }
                Some(Err(e)) if !told => {
                    tracing::error!(%vm, "it may still be frozen, and is thawed as soon as its agent answers: {e}");
                    told = true;
                }
                Some(Err(e)) => tracing::debug!(%vm, "it may still be frozen: {e}"),
                None => {}
            }
            std::thread::sleep(AGAIN);
        }
    };
    if let Err(e) = std::thread::Builder::new().name("thaw".into()).stack_size(256 << 10).spawn(work) {
        tracing::error!(%vm, "it may still be frozen, and nobody thaws it: {e}");
    }
}

/// Says whether it was frozen; nothing while somebody else has frozen it since, who will thaw it.
fn try_once(slot: &Slot) -> Option<Result<bool, AgentError>> {
    // Held, so that nobody freezes it in between.
    let freezer = slot.freezer.lock();
    if freezer.is_some() {
        return None;
    }
    Some(if slot.place.frozen().exists() { directly(slot) } else { Ok(false) })
}

/// Thaws it, and says whether there was something to thaw.
pub(super) fn directly(slot: &Slot) -> Result<bool, AgentError> {
    let until = Instant::now() + THAW;
    let mut agent = Agent::connect(&slot.place.agent(), until)?;
    let frozen = agent.is_frozen(until)?;
    if frozen {
        agent.count("guest-fsfreeze-thaw", until)?;
        if agent.is_frozen(until)? {
            let command = "guest-fsfreeze-thaw".to_owned();
            return Err(AgentError::Odd { command, reply: "something, and it is still frozen".to_owned() });
        }
    }
    remove_file(&slot.place.frozen());
    Ok(frozen)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::{UnixListener, UnixStream};

    use serde_json::{Value, json};

    use super::super::super::scripted::Scripted;
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    fn wait(what: &str, done: impl Fn() -> bool) {
        let until = Instant::now() + PATIENCE;
        while !done() {
            assert!(Instant::now() < until, "{what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// A frozen guest's agent; the commands that it was sent.
    fn answer(stream: &UnixStream, refuses: bool) -> Vec<String> {
        let mut frozen = true;
        let mut sent = Vec::new();
        for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
            let text: Vec<u8> = line.into_iter().filter(|byte| *byte != 0xFF).collect();
            let request: Value = serde_json::from_slice(&text).expect("well formed");
            let command = request["execute"].as_str().expect("a command").to_owned();
            let said = match command.as_str() {
                "guest-sync-delimited" => request["arguments"]["id"].clone(),
                "guest-fsfreeze-status" => json!(if frozen { "frozen" } else { "thawed" }),
                "guest-fsfreeze-thaw" => {
                    frozen = refuses;
                    json!(1)
                }
                other => panic!("{other} is not to be asked"),
            };
            sent.push(command);
            writeln!(&*stream, "{}", json!({ "return": said })).expect("somebody listens");
        }
        sent
    }

    #[test]
    fn it_is_tried_until_the_guest_has_thawed() {
        let dir = tempfile::tempdir().expect("a folder");
        let scene = Scripted::new(dir.path(), 0);
        let mark = scene.slot.place.frozen();
        std::fs::write(&mark, b"").expect("there is room");
        let listener = UnixListener::bind(scene.slot.place.agent()).expect("a socket");
        // Nobody answers yet, and nobody waits.
        in_background(&scene.qemu.shared, &scene.slot, &scene.live);
        let next = || listener.accept().expect("a connection").0;
        // One that hangs up, one that says that it has thawed and has not, and one that has.
        drop(next());
        let sent = answer(&next(), true);
        assert!(sent.contains(&"guest-fsfreeze-thaw".to_owned()), "{sent:?}");
        assert!(mark.exists(), "it was believed");
        let sent = answer(&next(), false);
        assert!(sent.contains(&"guest-fsfreeze-thaw".to_owned()), "{sent:?}");
        wait("the mark is left", || !mark.exists());
        wait("it is tried on", || Arc::strong_count(&scene.live) == 2);
    }

    #[test]
    fn it_is_not_tried_when_the_process_has_ended() {
        let dir = tempfile::tempdir().expect("a folder");
        let scene = Scripted::new(dir.path(), 0);
        std::fs::write(scene.slot.place.frozen(), b"").expect("there is room");
        in_background(&scene.qemu.shared, &scene.slot, &scene.live);
        assert_eq!(Arc::strong_count(&scene.live), 3, "nobody tries");
        scene.live.process.kill();
        wait("it is tried on", || Arc::strong_count(&scene.live) == 2);
    }
}
