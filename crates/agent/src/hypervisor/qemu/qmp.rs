//! One monitor connection: replies matched by id, events kept in the order in which they came.
//!
//! A thread of its own takes in what arrives. Whoever must know *now* whether something has been said calls
//! [`drain`](Qmp::drain): when it returns, all that was in the socket before the call has been taken in, in order. The cut
//! of a live memory capture stands on that. Nothing here blocks without a deadline.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io::{IoSlice, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recv, sendmsg};
use serde_json::{Value, json};
use thiserror::Error;

use super::bell::Bell;
use super::wire::{Event, Garbage, Lines, Message, Refusal, message};

/// Why a command was not carried out.
#[derive(Debug, Error)]
pub(super) enum QmpError {
    #[error("{command} refused: {refusal}")]
    Refused { command: String, refusal: Refusal },
    #[error("{command}: the monitor is closed: {why}")]
    Closed { command: String, why: String },
    #[error("{command}: no answer within {patience:?}")]
    Silent { command: String, patience: Duration },
    #[error("connect to the monitor {path}: {source}")]
    Connect { path: String, source: std::io::Error },
    #[error("no greeting from the monitor {path}: {why}")]
    NoGreeting { path: String, why: String },
}

impl QmpError {
    /// Whether QEMU answered and said no.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(self, QmpError::Refused { .. })
    }
}

/// A place in the order of events.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(super) struct Mark(u64);

pub(super) struct Qmp {
    stream: UnixStream,
    lines: Mutex<Lines>,
    state: Mutex<State>,
    arrived: Condvar,
    sending: Mutex<()>,
    next_id: AtomicU64,
    bells: Mutex<Vec<Weak<Bell>>>,
}

#[derive(Default)]
struct State {
    greeting: Option<String>,
    /// Commands that QEMU has not answered, whether anybody still waits for that or not; without those out of band.
    open: HashSet<u64>,
    awaited: HashSet<u64>,
    replies: HashMap<u64, Result<Value, Refusal>>,
    events: VecDeque<Event>,
    /// How many events have been forgotten.
    forgotten: u64,
    closed: Option<String>,
}

/// A reply takes milliseconds, unless QEMU's main loop waits for a disk or for a page.
pub(super) const REPLY: Duration = Duration::from_secs(30);
/// The least for the first one.
const LEAST: Duration = Duration::from_secs(1);
/// Of eight that wait QEMU takes in nothing more, not even what is out of band.
const MOST_OPEN: usize = 6;
const IN_BAND: &str = "execute";
/// The longest line seen was a quarter of a megabyte (`query-qmp-schema`).
const LONGEST_LINE: usize = 16 << 20;
/// A capture makes about eight events.
const EVENTS_KEPT: usize = 1024;

impl Qmp {
    /// Connects, waits for the greeting and leaves negotiation mode, with out-of-band commands.
    pub(super) fn connect(socket: &Path, until: Instant) -> Result<Arc<Qmp>, QmpError> {
        let path = socket.display().to_string();
        let stream = UnixStream::connect(socket)
            .and_then(|stream| stream.set_write_timeout(Some(REPLY)).map(|()| stream))
            .map_err(|source| QmpError::Connect { path: path.clone(), source })?;
        let qmp = Arc::new(Qmp {
            stream,
            lines: Mutex::new(Lines::new(LONGEST_LINE)),
            state: Mutex::default(),
            arrived: Condvar::new(),
            sending: Mutex::default(),
            next_id: AtomicU64::new(1),
            bells: Mutex::default(),
        });
        let reader = Arc::clone(&qmp);
        std::thread::Builder::new()
            .name("qmp".into())
            .spawn(move || reader.follow())
            .map_err(|source| QmpError::Connect { path: path.clone(), source })?;
        let greeted = {
            let mut state = qmp.state.lock();
            while state.greeting.is_none()
                && state.closed.is_none()
                && !qmp.arrived.wait_until(&mut state, until).timed_out()
            {}
            if state.greeting.is_some() { Ok(()) } else { Err(state.closed.clone().unwrap_or("it is silent".into())) }
        };
        if let Err(why) = greeted {
            qmp.close();
            return Err(QmpError::NoGreeting { path, why });
        }
        // The greeting comes from a thread of its own, this answer from a main loop that may hang.
        let left = until.saturating_duration_since(Instant::now()).max(LEAST);
        if let Err(e) = qmp.execute_within("qmp_capabilities", json!({ "enable": ["oob"] }), left) {
            qmp.close();
            return Err(e);
        }
        Ok(qmp)
    }

    /// QEMU's version, for example `10.0.2`.
    pub(super) fn version(&self) -> String {
        self.state.lock().greeting.clone().unwrap_or_default()
    }

    /// Runs one command and returns what it returns.
    pub(super) fn execute(&self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        self.send(IN_BAND, command, arguments, REPLY)
    }

    /// The same, with a file for QEMU to keep.
    pub(super) fn execute_with(
        &self,
        command: &str,
        arguments: Value,
        file: BorrowedFd<'_>,
    ) -> Result<Value, QmpError> {
        self.send_by(IN_BAND, command, arguments, REPLY, |line| {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            let files = [file];
            control.push(SendAncillaryMessage::ScmRights(&files));
            let sent = sendmsg(&self.stream, &[IoSlice::new(line)], &mut control, SendFlags::NOSIGNAL)?;
            (&self.stream).write_all(&line[sent..])
        })
    }

    /// The same with a patience of the caller's.
    pub(super) fn execute_within(
        &self,
        command: &str,
        arguments: Value,
        patience: Duration,
    ) -> Result<Value, QmpError> {
        self.send(IN_BAND, command, arguments, patience)
    }

    /// Runs a command that does not need QEMU's main loop, which may itself be waiting.
    pub(super) fn execute_oob(&self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        self.send("exec-oob", command, arguments, REPLY)
    }

    fn send(&self, how: &str, command: &str, arguments: Value, patience: Duration) -> Result<Value, QmpError> {
        self.send_by(how, command, arguments, patience, |line| (&self.stream).write_all(line))
    }

    fn send_by(
        &self,
        how: &str,
        command: &str,
        arguments: Value,
        patience: Duration,
        write: impl FnOnce(&[u8]) -> std::io::Result<()>,
    ) -> Result<Value, QmpError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let line = format!("{}\n", json!({ how: command, "arguments": arguments, "id": id }));
        let until = Instant::now() + patience;
        let silent = || QmpError::Silent { command: command.into(), patience };
        {
            let mut state = self.state.lock();
            while how == IN_BAND && state.open.len() == MOST_OPEN && state.closed.is_none() {
                if self.arrived.wait_until(&mut state, until).timed_out() {
                    return Err(silent());
                }
            }
            state.awaited.insert(id);
            if how == IN_BAND {
                state.open.insert(id);
            }
        }
        let sent = {
            let _turn = self.sending.lock();
            write(line.as_bytes())
        };
        if let Err(e) = sent {
            self.state.lock().awaited.remove(&id);
            // Half a line may be on its way, to which the next one would be glued.
            self.state.lock().closed.get_or_insert_with(|| e.to_string());
            self.close();
            return Err(QmpError::Closed { command: command.into(), why: e.to_string() });
        }
        let mut state = self.state.lock();
        loop {
            if let Some(outcome) = state.replies.remove(&id) {
                return outcome.map_err(|refusal| QmpError::Refused { command: command.into(), refusal });
            }
            if let Some(why) = &state.closed {
                return Err(QmpError::Closed { command: command.into(), why: why.clone() });
            }
            if self.arrived.wait_until(&mut state, until).timed_out() {
                state.awaited.remove(&id);
                return Err(silent());
            }
        }
    }

    /// Takes in all that is in the socket now, without waiting for more.
    pub(super) fn drain(&self) {
        let mut lines = self.lines.lock();
        let mut chunk = vec![0; 64 << 10];
        let mut heard = false;
        let end = loop {
            match recv(&self.stream, &mut chunk[..], RecvFlags::DONTWAIT) {
                Ok((0, _)) => break Some("QEMU closed it".to_owned()),
                Ok((n, _)) => {
                    heard = true;
                    lines.push(&chunk[..n]);
                    if let Err(garbage) = self.take_in(&mut lines) {
                        break Some(garbage.to_string());
                    }
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => break None,
                Err(e) => break Some(e.to_string()),
            }
        };
        if let Some(why) = end {
            self.state.lock().closed.get_or_insert(why);
        } else if !heard {
            return;
        }
        drop(lines);
        self.arrived.notify_all();
        self.bells.lock().retain(|bell| bell.upgrade().map(|bell| bell.ring()).is_some());
    }

    fn take_in(&self, lines: &mut Lines) -> Result<(), Garbage> {
        let mut state = self.state.lock();
        while let Some(line) = lines.next() {
            match message(&line?)? {
                Message::Greeting { version } => state.greeting = Some(version),
                Message::Reply { id, outcome } => {
                    state.open.remove(&id);
                    // One that nobody waits for any more is dropped.
                    if state.awaited.remove(&id) {
                        state.replies.insert(id, outcome);
                    }
                }
                Message::Event(event) => {
                    state.events.push_back(event);
                    if state.events.len() > EVENTS_KEPT {
                        state.events.pop_front();
                        state.forgotten += 1;
                    }
                }
            }
        }
        Ok(())
    }

    fn follow(&self) {
        while !self.is_closed() {
            let mut fds = [PollFd::new(&self.stream, PollFlags::IN)];
            match poll(&mut fds, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => self.drain(),
                Err(e) => drop(self.state.lock().closed.get_or_insert(e.to_string())),
            }
        }
        // QEMU takes the next one only when this one is gone.
        self.close();
        self.bells.lock().retain(|bell| bell.upgrade().map(|bell| bell.ring()).is_some());
    }

    /// The place behind the last event taken in.
    pub(super) fn mark(&self) -> Mark {
        let state = self.state.lock();
        Mark(state.forgotten + state.events.len() as u64)
    }

    /// The events behind a mark, which moves behind them.
    pub(super) fn events(&self, mark: &mut Mark) -> Vec<Event> {
        let state = self.state.lock();
        let skip = usize::try_from(mark.0.saturating_sub(state.forgotten)).unwrap_or(usize::MAX);
        let events: Vec<Event> = state.events.iter().skip(skip).cloned().collect();
        *mark = Mark(state.forgotten + state.events.len() as u64);
        events
    }

    /// Waits for an event behind `mark` of which `pick` makes something; the mark moves behind it.
    pub(super) fn wait_event<T>(
        &self,
        mark: &mut Mark,
        until: Instant,
        mut pick: impl FnMut(&Event) -> Option<T>,
    ) -> Option<T> {
        let mut state = self.state.lock();
        loop {
            let skip = usize::try_from(mark.0.saturating_sub(state.forgotten)).unwrap_or(usize::MAX);
            for (i, event) in state.events.iter().enumerate().skip(skip) {
                if let Some(found) = pick(event) {
                    *mark = Mark(state.forgotten + i as u64 + 1);
                    return Some(found);
                }
            }
            *mark = Mark(state.forgotten + state.events.len() as u64);
            if state.closed.is_some() || self.arrived.wait_until(&mut state, until).timed_out() {
                return None;
            }
        }
    }

    /// Rings `bell` whenever something came, as long as the caller keeps it.
    pub(super) fn ring(&self, bell: &Arc<Bell>) {
        self.bells.lock().push(Arc::downgrade(bell));
    }

    pub(super) fn is_closed(&self) -> bool {
        self.state.lock().closed.is_some()
    }

    /// Ends the connection; QEMU takes the next one then.
    pub(super) fn close(&self) {
        self.state.lock().closed.get_or_insert_with(|| "closed from this side".into());
        if let Err(e) = self.stream.shutdown(Shutdown::Both) {
            // The other side was faster.
            tracing::trace!("shut a monitor: {e}");
        }
        self.arrived.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_monitor_that_hangs_still_hears_what_is_out_of_band() {
        const HANGS: Duration = Duration::from_millis(10);
        let dir = tempfile::tempdir().expect("a folder");
        let socket = dir.path().join("qmp");
        let listener = UnixListener::bind(&socket).expect("a socket");
        let monitor = std::thread::spawn(move || {
            let (stream, _) = listener.accept().expect("it connects");
            let say = |value: Value| writeln!(&stream, "{value}").expect("it listens");
            say(json!({ "QMP": { "version": { "qemu": { "major": 10, "minor": 0, "micro": 0 } } } }));
            let mut waiting = Vec::new();
            for line in BufReader::new(&stream).lines().map_while(Result::ok) {
                let asked: Value = serde_json::from_str(&line).expect("a command");
                match asked["execute"].as_str() {
                    Some("qmp_capabilities") => say(json!({ "return": {}, "id": asked["id"] })),
                    Some(_) => waiting.push(asked["id"].clone()),
                    None => {
                        // As QEMU does: it has too much to do already.
                        assert!(waiting.len() < 8, "{} wait", waiting.len());
                        say(json!({ "return": {}, "id": asked["id"] }));
                        waiting.drain(..).for_each(|id| say(json!({ "return": {}, "id": id })));
                    }
                }
            }
        });
        let qmp = Qmp::connect(&socket, Instant::now() + REPLY).expect("a monitor");
        let ask = || qmp.execute_within("query-status", json!({}), HANGS);
        for _ in 0..20 {
            assert!(matches!(ask(), Err(QmpError::Silent { .. })));
        }
        qmp.execute_oob("migrate-recover", json!({})).expect("it is answered");
        // The others have been answered too, so that there is room again.
        assert!(matches!(ask(), Err(QmpError::Silent { .. })));
        assert_eq!(qmp.state.lock().open.len(), 1);
        qmp.close();
        monitor.join().expect("no panic");
    }
}
