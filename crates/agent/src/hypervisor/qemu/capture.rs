//! Memory and disks of one instant.
//!
//! QEMU stops the guest for some milliseconds, protects its memory against writes and lets it go on; the memory is stored
//! while the guest runs. The instant is the moment at which it goes on:
//!
//! ```text
//!  QEMU     setup ─ active ─ STOP ══ devices ══ RESUME ─── pages ─── completed
//!  writes   wait, pass, wait, pass …           ▲ cut: none that comes after RESUME has reached a disk
//! ```
//!
//! QEMU says RESUME on its monitor before the guest runs. So whoever finds a write waiting marks it, takes in all that the
//! monitor has said, and only then lets the marked writes go: without a RESUME they came before it. Where memory cannot be
//! protected (no `userfaultfd`), the guest is stopped and cut by us, and stands still until its memory is stored, like one that
//! is paused anyway. A failure at any point lets everything go and leaves the guest as it was.

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use keyframe_agent_api::{CutMethod, Fault, FaultKind, Power, Timestamp};
use serde_json::{Value, json};

use super::bell::Bell;
use super::load::{self, Description};
use super::place::remove_file;
use super::qmp::{Mark, QmpError};
use super::{ASKED, Live, Slot, huge, life, status};
use crate::Result;
use crate::hypervisor::{Cancel, Captured, Cut};

/// After a capture, QEMU lets go of the last one's things a moment later.
const REFUSED_AGAIN: Duration = Duration::from_secs(2);
/// There is no event for it; it has been seen to take 50 ms.
const LET_GO: Duration = Duration::from_millis(100);
/// How often a capture is tried again that failed before its instant.
const MORE_TRIES: usize = 2;
/// How often somebody is asked whether to go on, when nothing happens.
const LOOK: Duration = Duration::from_millis(20);
/// QEMU connects at once.
const CONNECT: Duration = Duration::from_secs(10);

pub(super) fn capture(slot: &Slot, to: &Path, cut: &mut dyn Cut, cancel: &dyn Cancel) -> Result<Captured> {
    let _turn = slot.turn();
    let live = slot.live()?;
    load::wait_until_in(slot, &live, cancel)?;
    let before = status::power(slot, &live)?;
    let running = before == Power::Running;
    *slot.covered.lock() = Some(before);
    let mut work = Work {
        slot,
        live: &live,
        to,
        cut,
        cancel,
        running,
        cut_made: false,
        way: Way::Still,
        sent: false,
        mark: live.qmp.mark(),
    };
    let description = Description::of(&live);
    let done = work.run_patiently(&description);
    work.cut.abandon();
    *slot.captured.lock() = Some(Instant::now());
    let settled = settle(slot, &live, running && done.is_err());
    *slot.covered.lock() = None;
    if work.way == Way::Tracked {
        huge::begin(slot, &live);
    }
    // A guest that was left standing is worse than a capture that failed.
    let done = match (done, settled) {
        (Ok(_), Err(fault)) | (Err(_), Err(fault)) => Err(fault),
        (done, Ok(())) => done,
    };
    if done.is_err() {
        remove_file(to);
    }
    done
}

struct Work<'a> {
    slot: &'a Slot,
    live: &'a Live,
    to: &'a Path,
    cut: &'a mut dyn Cut,
    cancel: &'a dyn Cancel,
    running: bool,
    /// The cut has been asked for, which can be done once only.
    cut_made: bool,
    way: Way,
    /// QEMU has said that it is at an end.
    sent: bool,
    /// Behind the last event that has been looked at.
    mark: Mark,
}

/// How the memory leaves QEMU.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Write-protected, while the guest runs.
    Tracked,
    /// While the guest stands still, several times as fast. QEMU is told in the end that it has failed, see
    /// [`keyframe_memory::capture_and_decline`].
    Still,
}

impl Work<'_> {
    /// QEMU keeps the last capture's hold on the memory for a moment. Mostly it refuses a new one then, but one that it
    /// has begun can fail on it, too; before the instant that is no harm.
    fn run_patiently(&mut self, description: &Description) -> Result<Captured> {
        let last = *self.slot.captured.lock();
        if let Some(wait) = last.and_then(|at| LET_GO.checked_sub(at.elapsed())) {
            std::thread::sleep(wait);
        }
        for _ in 0..MORE_TRIES {
            match self.run(description) {
                Err(fault) if fault.kind == FaultKind::Internal && !self.cut_made && !self.cancel.cancelled() => {
                    tracing::warn!("{fault}; once more");
                    self.cut.abandon();
                    settle(self.slot, self.live, self.running)?;
                    std::thread::sleep(LET_GO);
                }
                done => return done,
            }
        }
        self.run(description)
    }

    fn make_cut(&mut self) -> Result<()> {
        self.cut_made = true;
        self.cut.cut()
    }

    fn run(&mut self, description: &Description) -> Result<Captured> {
        let way = self.prepare()?;
        self.way = way;
        if way == Way::Tracked {
            huge::end(self.slot);
        }
        let socket = self.slot.place.memory();
        remove_file(&socket);
        let listener = UnixListener::bind(&socket).map_err(self.slot.file("listen for its memory"))?;
        let ready = Ready::default();
        let to = self.to;
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let stored = store(way, &listener, to, description, &ready);
                ready.stored.store(true, Ordering::Release);
                ready.bell.ring();
                stored
            });
            self.live.qmp.ring(&ready.bell);
            let cut = match (self.running, way) {
                (true, Way::Tracked) => self.cut_at_resume(&ready),
                (true, Way::Still) => self.cut_still(&ready),
                (false, _) => self.cut_at_rest(&ready),
            };
            let done = cut.and_then(|captured| self.wait_until_stored(&ready).map(|()| captured));
            if done.is_err() {
                // Before QEMU is asked: it may be waiting for the writes that wait here.
                self.cut.abandon();
                self.call_off();
            }
            ready.over.store(true, Ordering::Release);
            // Ends the reader, should nobody have connected.
            drop(UnixStream::connect(&socket));
            remove_file(&socket);
            let stored =
                reader.join().map_err(|_| self.slot.fault(FaultKind::Internal, "store its memory", "a panic"))?;
            match (done, stored) {
                // Why the stream ended says more than that QEMU could not write it.
                (Err(fault), Err(_)) if fault.kind != FaultKind::Internal => Err(fault),
                // A stream that broke off broke off because QEMU failed.
                (done, Err(e)) if e.kind() == keyframe_memory::ErrorKind::BadStream => {
                    Err(done.err().unwrap_or_else(|| failed(self.slot, "failed")))
                }
                (_, Err(e)) => Err(self.not_stored(&e)),
                (done, Ok(())) => done,
            }
        })
    }

    /// The file that was being written is nobody's business; what it was to become is.
    fn not_stored(&self, e: &keyframe_memory::Error) -> Fault {
        let why = match (load::kind(e), self.to.parent(), self.to.file_stem()) {
            (FaultKind::NoSpace, Some(folder), Some(snapshot)) => format!(
                "no space left in {} for snapshot {}; delete snapshots, or give that file system more room",
                folder.display(),
                snapshot.display()
            ),
            _ => load::chain(e),
        };
        self.slot.fault(load::kind(e), "store its memory", why)
    }

    /// Sets QEMU up for it.
    fn prepare(&self) -> Result<Way> {
        let caps = |tracked: bool| {
            json!({ "capabilities": [{ "capability": "events", "state": true },
                { "capability": "postcopy-ram", "state": false },
                { "capability": "return-path", "state": !tracked },
                { "capability": "background-snapshot", "state": tracked }] })
        };
        if self.is_new()? {
            life::go_on(self.slot, self.live)?;
            self.live.qmp.execute("stop", json!({})).map_err(self.slot.monitor("prepare a capture"))?;
        }
        if self.running {
            match self.patiently("migrate-set-capabilities", &caps(true)) {
                Ok(_) => return Ok(Way::Tracked),
                Err(e) if e.is_refusal() => tracing::warn!(vm = %self.slot.vm, "cannot track its memory: {e}"),
                Err(e) => return Err(self.slot.monitor("prepare a capture")(e)),
            }
        }
        let quick = json!({ "max-bandwidth": 1_u64 << 42 });
        self.patiently("migrate-set-capabilities", &caps(false))
            .and_then(|_| self.live.qmp.execute("migrate-set-parameters", quick))
            .map_err(self.slot.monitor("prepare a capture"))?;
        Ok(Way::Still)
    }

    /// The guest has never run. Of such a one QEMU gives no memory, but aborts on the way; so it gets a moment, in which it
    /// comes as far as the beginning of its firmware.
    fn is_new(&self) -> Result<bool> {
        let state = self.live.qmp.execute("query-status", json!({})).map_err(self.slot.monitor("prepare a capture"))?;
        Ok(state["status"] == "prelaunch")
    }

    /// Repeats what QEMU refuses only because the last capture is not quite over.
    fn patiently(&self, command: &str, arguments: &Value) -> std::result::Result<Value, QmpError> {
        let until = Instant::now() + REFUSED_AGAIN;
        loop {
            match self.live.qmp.execute(command, arguments.clone()) {
                Err(e) if e.is_refusal() && Instant::now() < until && !self.cancel.cancelled() => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                done => return done,
            }
        }
    }

    fn migrate(&mut self) -> Result<()> {
        self.mark = self.live.qmp.mark();
        self.sent = false;
        let uri = format!("unix:{}", self.slot.place.memory().display());
        let asked = self.patiently("migrate", &json!({ "uri": uri }));
        asked.map(drop).map_err(|e| match self.cancel.cancelled() {
            true => self.given_up(),
            false => self.slot.monitor("capture its memory")(e),
        })
    }

    /// The guest runs; QEMU stops and resumes it.
    fn cut_at_resume(&mut self, ready: &Ready) -> Result<Captured> {
        let bell = Arc::clone(&ready.bell);
        self.cut.arm(Box::new(move || bell.ring()))?;
        self.migrate()?;
        // One that was called off before may still say something; only what follows `active` is of this one.
        let (mut active, mut stopped) = (false, None);
        loop {
            ready.bell.wait(Instant::now() + LOOK);
            // Looked at before the events: a small guest may have been stored a moment after its instant.
            let ended = ready.has_ended();
            self.cut.mark();
            self.live.qmp.drain();
            let mut captured = None;
            for event in self.live.qmp.events(&mut self.mark) {
                match event.name.as_str() {
                    "STOP" if active => stopped = Some(event.at),
                    "RESUME" if stopped.is_some() && captured.is_none() => {
                        self.make_cut()?;
                        let paused = span(stopped, event.at);
                        captured = Some(Captured { method: CutMethod::AtResume, paused });
                    }
                    "MIGRATION" => {
                        self.hear(event.text("status"))?;
                        active |= event.text("status") == "active";
                    }
                    _ => {}
                }
            }
            if let Some(captured) = captured {
                return Ok(captured);
            }
            self.go_on_or_give_up(ended)?;
            self.cut.pass()?;
        }
    }

    /// The guest runs and its memory cannot be protected.
    fn cut_still(&mut self, ready: &Ready) -> Result<Captured> {
        self.live.qmp.execute("stop", json!({})).map_err(self.slot.monitor("stop for a capture"))?;
        self.make_cut()?;
        self.migrate()?;
        self.wait_until_stored(ready)?;
        life::go_on(self.slot, self.live)?;
        Ok(Captured { method: CutMethod::Stopped, paused: self.last_pause() })
    }

    fn cut_at_rest(&mut self, _ready: &Ready) -> Result<Captured> {
        self.make_cut()?;
        self.migrate()?;
        Ok(Captured { method: CutMethod::AtRest, paused: Duration::ZERO })
    }

    /// Waits until QEMU has said that all is sent, and the reader has stored it.
    fn wait_until_stored(&mut self, ready: &Ready) -> Result<()> {
        loop {
            self.check_events()?;
            if self.sent && ready.has_ended() {
                return Ok(());
            }
            if self.cancel.cancelled() {
                return Err(self.given_up());
            }
            if self.live.qmp.is_closed() {
                return Err(self.slot.fault(FaultKind::Conflict, "capture its memory", "QEMU has ended"));
            }
            ready.bell.wait(Instant::now() + LOOK);
        }
    }

    /// Looks at what has happened.
    fn check_events(&mut self) -> Result<()> {
        self.live.qmp.drain();
        for event in self.live.qmp.events(&mut self.mark) {
            if event.name == "MIGRATION" {
                self.hear(event.text("status"))?;
            }
        }
        Ok(())
    }

    /// Takes in what QEMU says of its migration.
    fn hear(&mut self, status: &str) -> Result<()> {
        let declined = self.way == Way::Still && status == "failed";
        self.sent |= declined || status == "completed";
        // Whether it had failed before it was told so, the reader knows.
        if declined { Ok(()) } else { refuse_failed(self.slot, status) }
    }

    fn go_on_or_give_up(&self, ended: bool) -> Result<()> {
        if self.cancel.cancelled() {
            return Err(self.given_up());
        }
        if self.live.qmp.is_closed() {
            return Err(self.slot.fault(FaultKind::Conflict, "capture its memory", "QEMU has ended"));
        }
        if ended {
            // Before the instant the stream can only have broken.
            return Err(self.slot.fault(FaultKind::Internal, "capture its memory", "the stream ended too early"));
        }
        Ok(())
    }

    fn given_up(&self) -> Fault {
        self.slot.fault(FaultKind::Deadline, "capture its memory", "given up, as asked")
    }

    /// Makes QEMU end what it does, whether it has begun or not.
    fn call_off(&self) {
        if let Err(e) = call_off(self.live) {
            tracing::debug!(vm = %self.slot.vm, "call a capture off: {e}");
        }
    }

    /// The last STOP to the last RESUME, both of which have been waited for.
    fn last_pause(&self) -> Duration {
        let mut all = Mark::default();
        let events = self.live.qmp.events(&mut all);
        let last = |name: &str| events.iter().rev().find(|event| event.name == name).map(|event| event.at);
        last("RESUME").map_or(Duration::ZERO, |resumed| span(last("STOP"), resumed))
    }
}

/// What the reader and the one who waits for it share.
#[derive(Default)]
struct Ready {
    bell: Arc<Bell>,
    /// The reader has ended, well or badly.
    stored: AtomicBool,
    /// Nobody will connect any more.
    over: AtomicBool,
}

impl Ready {
    fn has_ended(&self) -> bool {
        self.stored.load(Ordering::Acquire)
    }
}

/// Takes one stream and stores it.
fn store(way: Way, listener: &UnixListener, to: &Path, description: &Description, ready: &Ready) -> load::Stored {
    let stream = loop {
        match listener.accept() {
            Ok((stream, _)) => break stream,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => {
                tracing::warn!("accept a memory stream: {e}");
                return Ok(());
            }
        }
    };
    if ready.over.load(Ordering::Acquire) {
        return Ok(());
    }
    let description = description.to_bytes();
    match way {
        Way::Tracked => keyframe_memory::capture(stream, to, &description, |_| {}),
        Way::Still => keyframe_memory::capture_and_decline(stream, to, &description, |_| {}),
    }
    .map(drop)
}

/// An error if QEMU has given up.
fn refuse_failed(slot: &Slot, status: &str) -> Result<()> {
    match status {
        "failed" | "cancelled" | "cancelling" => Err(failed(slot, status)),
        _ => Ok(()),
    }
}

fn failed(slot: &Slot, status: &str) -> Fault {
    slot.fault(FaultKind::Internal, "capture its memory", format!("QEMU says it {status}"))
}

/// Cancels an outgoing migration and waits until there is none.
pub(super) fn call_off(live: &Live) -> std::result::Result<(), QmpError> {
    live.qmp.execute("migrate_cancel", json!({}))?;
    let until = Instant::now() + CONNECT;
    loop {
        let status = live.qmp.execute("query-migrate", json!({}))?;
        let over = matches!(status["status"].as_str(), None | Some("none" | "completed" | "failed" | "cancelled"));
        if over || Instant::now() > until {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Lets a guest go on that a capture has left standing. The pause of one that was called off ends by itself a moment later.
fn settle(slot: &Slot, live: &Live, stopped: bool) -> Result<()> {
    if stopped && !live.process.has_ended() && status::ask(slot, live)? == ASKED {
        return life::go_on(slot, live);
    }
    Ok(())
}

fn span(from: Option<Timestamp>, to: Timestamp) -> Duration {
    let micros = from.map_or(0, |from| to.0.saturating_sub(from.0));
    Duration::from_micros(u64::try_from(micros).unwrap_or(0))
}
