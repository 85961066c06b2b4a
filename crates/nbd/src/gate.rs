//! Write gates: holding the writes of any set of exports for an instant, whatever stores them.
//!
//! A snapshot of several disks is one instant only if no write falls between its parts. Where the disks are on different
//! arrays, or an instant must fit to something outside (the memory of a machine), the server holds the writes instead:
//! it *parks* writes, trims and zeroings before they reach a backend. Reads, flushes and block status pass always.
//! Nothing is refused: whoever writes sees a slow disk.
//!
//! ```no_run
//! # use std::time::Duration;
//! # use keyframe_nbd::{Backend, Config, Device, Gated, Listener, Server, gate::Gates};
//! # fn snapshot(_: &str) {}
//! # fn example<B: Backend>(backend: B, listener: Listener) -> Result<(), Box<dyn std::error::Error>>
//! # where B::Device: Sync {
//! let gates = Gates::new();
//! let server = Server::start(Gated::new(backend, &gates), vec![listener], &Config::default())?;
//!
//! let hold = gates.set(["root", "data"]).close(Duration::from_secs(2))?;
//! for disk in ["root", "data"] {
//!     snapshot(disk);
//! }
//! hold.open()?; // An error: writes got through in between, and the snapshots must be discarded.
//! # Ok(()) }
//! ```
//!
//! # What a closed set promises
//!
//! When [`GateSet::close`] returns, and until the hold ends, no write to any export of the set is submitted to its
//! backend, from no connection, also of those that are opened meanwhile. So whatever a client did after it saw the answer
//! to a write is in a snapshot only if that write is: the snapshots are as of one instant.
//!
//! *Writes in flight* are those that were submitted before `close` returned and are not answered. Each of them may
//! be in a snapshot or not, whole or in part, as after a power failure; that is correct, because nobody was told that it
//! had happened. They may finish and be answered while the set is closed. A backend whose snapshots do not bear writes
//! in flight needs [`Hold::drain`] first, which waits until there are none.
//!
//! A client's own order is kept: parked writes of one connection go on in the order in which they arrived. They hold
//! their slots and buffers, so a connection that has all its slots full of parked writes is not read until they go on, and
//! memory stays within [`limits`](crate::limits). A client that leaves keeps its device attached until then.
//!
//! # What cannot happen
//!
//! A guest is not held up for good. When a write has waited for the time that the hold allows, all gates of the set
//! open by themselves, and everything that is asked of the hold later fails with [`GateError::Lost`]. Dropping a hold
//! opens its gates.
//!
//! # The snapshot of a running machine with its memory
//!
//! QEMU saves the device state, writes `RESUME` to its QMP socket, and only after that lets the guest send another write.
//! The disks have to be cut in between. Whoever owns both sockets can do that without stopping the machine: *arm* the
//! gates, and on each parked write look whether `RESUME` has come.
//!
//! ```no_run
//! # use std::{sync::mpsc, time::Duration};
//! # use keyframe_nbd::gate::{GateError, GateSet, Held};
//! # fn migrate() {} fn drain_qmp_and_find_resume() -> bool { true } fn cut_all_disks() {}
//! # fn example(set: &GateSet) -> Result<Held, GateError> {
//! let (wake, wakes) = mpsc::sync_channel(1);
//! let hold = set.arm(Duration::from_secs(2), move || wake.try_send(()).unwrap_or(()))?;
//! migrate();
//! loop {
//!     wakes.recv_timeout(Duration::from_millis(1)).unwrap_or(());
//!     let before = hold.mark();
//!     if drain_qmp_and_find_resume() {
//!         cut_all_disks();
//!         return hold.open();
//!     }
//!     hold.pass(before)?;
//! }
//! # }
//! ```
//!
//! The order of the three steps matters. A write that was parked before the mark was sent before it; had `RESUME` been
//! written before that write, the drain after the mark would have found it. To let pass "what is parked now" instead
//! would be wrong: the machine may resume and write between the drain and the pass.
//!
//! # Cost
//!
//! With open gates: one atomic load for each write, a token's detour for each request, no lock and no allocation. Closing
//! takes one turn of every worker of the server, as each has to say that it knows; while gates are held, parking a
//! write takes the registry's lock.

mod line;
mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub(crate) use line::Line;
pub(crate) use table::{Gate, Grip};
use table::{Summary, Table};

/// Why gates are not held.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum GateError {
    /// A gate belongs to one hold at a time; waiting for the other is the caller's choice.
    #[error("the writes of export {export:?} are held already")]
    Busy {
        /// The first export of the set that is held.
        export: String,
    },
    /// A worker of the server did not come round within the longest wait. Everything is open again.
    #[error("a worker of the server does not answer")]
    Unresponsive,
    /// The gates opened by themselves, because a write had waited for the longest time: what was cut under this hold is
    /// not of one instant.
    #[error("the hold on writes was lost: one had waited for too long")]
    Lost,
    /// Writes were still in flight when the patience for draining ended. The hold lasts.
    #[error("writes are still in flight")]
    InFlight,
}

/// The gates of a process's exports, by the name under which a client opens them. Clones share.
///
/// An export that is known by two names has two gates: hold both.
#[derive(Clone, Default)]
pub struct Gates(pub(crate) Arc<Registry>);

impl Gates {
    /// No gate is held.
    pub fn new() -> Gates {
        Gates::default()
    }

    /// The gates of these exports, whether or not somebody uses them, or they exist at all.
    pub fn set<N: Into<String>>(&self, exports: impl IntoIterator<Item = N>) -> GateSet {
        let names: BTreeSet<String> = exports.into_iter().map(Into::into).collect();
        let mut shared = self.0.lock();
        let gates = names.iter().map(|name| shared.table.gate(name)).collect();
        drop(shared);
        GateSet { registry: Arc::clone(&self.0), gates }
    }
}

impl fmt::Debug for Gates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gates").finish_non_exhaustive()
    }
}

/// Gates that are held and opened together.
#[derive(Clone)]
pub struct GateSet {
    registry: Arc<Registry>,
    gates: Vec<Arc<Gate>>,
}

impl fmt::Debug for GateSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.gates.iter().map(|gate| &gate.name)).finish()
    }
}

impl GateSet {
    /// Parks the writes of all exports of the set. When it returns, no write of theirs is being submitted, and none will
    /// be before the hold ends; see the [module](self) for what that means for writes in flight.
    ///
    /// No write waits for longer than `longest_wait`; see [`GateError::Lost`]. Blocks for one turn of each worker of the
    /// server, at most for `longest_wait`. All or nothing: on errors everything is open.
    pub fn close(&self, longest_wait: Duration) -> Result<Hold, GateError> {
        self.hold(longest_wait, None)
    }

    /// As [`close`](GateSet::close), for a set that lets most writes [pass](Hold::pass): `on_write` is called after each
    /// write that was parked, in the worker's thread. It must neither block nor panic; waking a thread is what it is for.
    pub fn arm(&self, longest_wait: Duration, on_write: impl Fn() + Send + Sync + 'static) -> Result<Hold, GateError> {
        self.hold(longest_wait, Some(Box::new(on_write)))
    }

    fn hold(&self, longest_wait: Duration, on_write: Option<Box<dyn Fn() + Send + Sync>>) -> Result<Hold, GateError> {
        let now = Instant::now();
        let mut shared = self.registry.lock();
        let held = shared.table.hold(&self.gates, longest_wait, on_write, now);
        let (id, epoch) = held.map_err(|export| GateError::Busy { export })?;
        shared.ring();
        // From here on the guard opens the gates on every way out.
        let hold = Hold { registry: Arc::clone(&self.registry), id };
        let unmet = |table: &Table| table.has_hold(id) && !table.is_seen(epoch);
        let shared = self.registry.wait(shared, now + longest_wait, unmet);
        let (lost, seen) = (!shared.table.has_hold(id), shared.table.is_seen(epoch));
        drop(shared);
        match (lost, seen) {
            (true, _) => Err(GateError::Lost),
            (false, false) => Err(GateError::Unresponsive),
            (false, true) => Ok(hold),
        }
    }
}

/// A place in the order in which writes arrive, see [`Hold::mark`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mark {
    hold: u64,
    tick: u64,
}

/// How a hold went that was not lost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Held {
    /// From the first closed gate to the opening of all.
    pub held: Duration,
    /// Writes that were parked, those that passed included.
    pub writes: u64,
    /// The longest that one of them was parked.
    pub longest_wait: Duration,
}

/// Held gates. Dropping it opens them.
#[must_use = "dropping a hold opens its gates"]
pub struct Hold {
    registry: Arc<Registry>,
    id: u64,
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hold").field("id", &self.id).field("waiting", &self.waiting()).finish()
    }
}

impl Hold {
    /// Marks this instant: the writes parked until now are before it, all others after.
    pub fn mark(&self) -> Mark {
        // Nothing waits at a lost hold, and what is passed there is refused.
        let tick = self.registry.lock().table.mark(self.id).unwrap_or(0);
        Mark { hold: self.id, tick }
    }

    /// Lets the writes go on that were parked before a mark of this hold. The others stay, and the gates stay closed.
    pub fn pass(&self, before: Mark) -> Result<(), GateError> {
        assert_eq!(before.hold, self.id, "the mark of another hold");
        let mut shared = self.registry.lock();
        if !shared.table.pass(self.id, before.tick, Instant::now()) {
            return Err(GateError::Lost);
        }
        shared.ring();
        Ok(())
    }

    /// Waits until no write of the set is in flight in a backend, those that were let pass included. One drain of a hold
    /// at a time, and nothing should be let pass meanwhile.
    pub fn drain(&self, patience: Duration) -> Result<(), GateError> {
        let deadline = Instant::now() + patience;
        let mut shared = self.registry.lock();
        if !shared.table.drain(self.id) {
            return Err(GateError::Lost);
        }
        shared.ring();
        let mut shared = self.registry.wait(shared, deadline, |table| !table.is_drained(self.id));
        let drained = shared.table.is_drained(self.id);
        if !shared.table.end_drain(self.id) {
            return Err(GateError::Lost);
        }
        if drained { Ok(()) } else { Err(GateError::InFlight) }
    }

    /// Writes that are parked now.
    pub fn waiting(&self) -> usize {
        self.registry.lock().table.waiting(self.id)
    }

    /// Opens the gates. An error says that they were open before, so that what was cut meanwhile must be discarded.
    pub fn open(self) -> Result<Held, GateError> {
        let Summary { held, writes, longest_wait } = self.registry.end(self.id).ok_or(GateError::Lost)?;
        Ok(Held { held, writes, longest_wait })
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        // Whether it was lost or opened before does not matter to one who does not ask.
        self.registry.end(self.id);
    }
}

/// What the coordinators and the workers share.
#[derive(Default)]
pub(crate) struct Registry {
    shared: Mutex<Shared>,
    /// Workers have seen, drained, left, or lost a hold.
    moved: Condvar,
}

#[derive(Default)]
pub(crate) struct Shared {
    pub(crate) table: Table,
    lines: BTreeMap<u64, Arc<Line>>,
}

impl Shared {
    fn ring(&self) {
        self.lines.values().for_each(|line| line.ring());
    }
}

impl Registry {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(
        &self,
        shared: MutexGuard<'a, Shared>,
        deadline: Instant,
        mut unmet: impl FnMut(&Table) -> bool,
    ) -> MutexGuard<'a, Shared> {
        let patience = deadline.saturating_duration_since(Instant::now());
        let waited = self.moved.wait_timeout_while(shared, patience, |shared| unmet(&shared.table));
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Another worker takes part.
    pub(crate) fn join(&self) -> std::io::Result<(u64, Arc<Line>)> {
        let line = Arc::new(Line::new()?);
        let mut shared = self.lock();
        let worker = shared.table.join();
        shared.lines.insert(worker, Arc::clone(&line));
        Ok((worker, line))
    }

    pub(crate) fn leave(&self, worker: u64) {
        let mut shared = self.lock();
        shared.table.leave(worker);
        shared.lines.remove(&worker);
        drop(shared);
        self.moved.notify_all();
    }

    /// A worker knows all holds up to an epoch, and has submitted what it may. Returns whether somebody waits for the end
    /// of its writes.
    pub(crate) fn see(&self, worker: u64, epoch: u64, in_flight: &[u32]) -> bool {
        let mut shared = self.lock();
        shared.table.see(worker, epoch);
        let awaited = shared.table.report(worker, in_flight);
        drop(shared);
        self.moved.notify_all();
        awaited
    }

    /// A worker's writes in flight have become fewer. Returns as [`see`](Registry::see).
    pub(crate) fn report(&self, worker: u64, in_flight: &[u32]) -> bool {
        let awaited = self.lock().table.report(worker, in_flight);
        self.moved.notify_all();
        awaited
    }

    /// A write has waited for too long.
    pub(crate) fn lose(&self, grip: &Grip) {
        self.end(grip.id());
    }

    fn end(&self, hold: u64) -> Option<Summary> {
        let mut shared = self.lock();
        let summary = shared.table.end(hold, Instant::now())?;
        shared.ring();
        drop(shared);
        self.moved.notify_all();
        Some(summary)
    }
}
