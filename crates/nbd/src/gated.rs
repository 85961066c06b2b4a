//! A backend behind [write gates](crate::gate): the workers' side of them.
//!
//! Each worker's queue parks its own writes, so that nobody else ever submits for it. It comes round when its line is
//! rung: it submits what may go on, and only then says that it knows of the holds that there are. What it says later
//! cannot be overtaken by what it did before, which is all that closing a gate needs.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use keyframe_engine::{Done, Op};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use crate::backend::{Backend, Device, Export, ExportInfo, Peer, Queue};
use crate::error::OpenError;
use crate::events::Events;
use crate::gate::{Gate, Gates, Grip, Line, Registry};
use crate::slots::Slots;

/// Serves what `backend` serves, with a gate before each export.
pub struct Gated<B> {
    backend: B,
    registry: Arc<Registry>,
}

impl<B: Backend<Device: Sync>> Gated<B> {
    /// The gates are those of the names under which clients open exports.
    pub fn new(backend: B, gates: &Gates) -> Gated<B> {
        Gated { backend, registry: Arc::clone(&gates.0) }
    }
}

impl<B: Backend<Device: Sync>> Backend for Gated<B> {
    type Device = GatedDevice<B::Device>;
    type Queue = GatedQueue<B::Queue>;

    fn list(&self) -> Vec<Export> {
        self.backend.list()
    }

    fn open(&self, name: &str, peer: Peer) -> Result<Self::Device, OpenError> {
        let device = Arc::new(self.backend.open(name, peer)?);
        Ok(GatedDevice { device, gate: self.registry.lock().table.gate(name) })
    }

    fn inspect(&self, name: &str) -> Result<ExportInfo, OpenError> {
        self.backend.inspect(name)
    }

    fn queue(&self) -> io::Result<Self::Queue> {
        GatedQueue::new(self.backend.queue()?, Arc::clone(&self.registry))
    }
}

/// An attached device and its gate.
pub struct GatedDevice<D> {
    /// Parked writes share it. The connection outlives them, so that the last one to let go is the connection.
    device: Arc<D>,
    gate: Arc<Gate>,
}

impl<D: Device + Sync> Device for GatedDevice<D> {
    fn size(&self) -> u64 {
        self.device.size()
    }
    fn read_only(&self) -> bool {
        self.device.read_only()
    }
    fn description(&self) -> &str {
        self.device.description()
    }
    fn multi_conn(&self) -> bool {
        self.device.multi_conn()
    }
}

struct Parked<D> {
    tick: u64,
    since: Instant,
    device: Arc<D>,
    gate: usize,
    token: u64,
    op: Op,
}

/// Writes parked under one hold, in the order of their arrival and so of their ticks.
struct Waiting<D> {
    grip: Arc<Grip>,
    writes: VecDeque<Parked<D>>,
}

impl<D> Waiting<D> {
    /// When the first of them has waited for too long.
    fn due(&self) -> Option<Instant> {
        self.writes.front().map(|first| first.since + self.grip.longest_wait)
    }
}

/// A request in the backend: the caller's token, and the gate through which it went if it writes.
struct Forwarded {
    token: u64,
    gate: Option<usize>,
}

/// A worker's queue behind the gates.
pub struct GatedQueue<Q: Queue> {
    queue: Q,
    registry: Arc<Registry>,
    worker: u64,
    line: Arc<Line>,
    heard: u64,
    events: Events,
    /// Goes off at `alarm`, when the first of the parked writes may have waited for too long.
    timer: OwnedFd,
    alarm: Option<Instant>,
    /// By hold; of two holds on one gate the earlier is first, and has ended.
    parked: Vec<Waiting<Q::Device>>,
    forwarded: Slots<Forwarded>,
    /// Writes in the backend, by gate.
    in_flight: Vec<u32>,
    /// Somebody waits for the end of some of them.
    awaited: bool,
}

impl<Q: Queue<Device: Sync>> Queue for GatedQueue<Q> {
    type Device = GatedDevice<Q::Device>;

    fn submit(&mut self, device: &Self::Device, token: u64, op: Op) {
        if !is_write(&op) {
            return self.forward(&device.device, None, token, op);
        }
        // What was parked before goes first, even if its gate has opened since.
        if device.gate.is_held() || !self.parked.is_empty() {
            return self.park(device, token, op);
        }
        self.forward(&device.device, Some(device.gate.id), token, op);
    }

    fn poll(&mut self, out: &mut Vec<Done>) {
        self.answer();
        self.watch();
        let first = out.len();
        self.queue.poll(out);
        self.finish(out, first);
    }

    fn event_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}

impl<Q: Queue> GatedQueue<Q> {
    fn new(queue: Q, registry: Arc<Registry>) -> io::Result<GatedQueue<Q>> {
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        let events = Events::new()?;
        events.watch(&timer)?;
        events.watch(queue.event_fd())?;
        let (worker, line) = registry.join()?;
        let queue = GatedQueue {
            queue,
            registry,
            worker,
            line,
            heard: 0,
            events,
            timer,
            alarm: None,
            parked: Vec::new(),
            forwarded: Slots::new(),
            in_flight: Vec::new(),
            awaited: false,
        };
        queue.events.watch(&*queue.line)?;
        Ok(queue)
    }

    fn forward(&mut self, device: &Q::Device, gate: Option<usize>, token: u64, op: Op) {
        if let Some(gate) = gate {
            if gate >= self.in_flight.len() {
                self.in_flight.resize(gate + 1, 0);
            }
            self.in_flight[gate] += 1;
        }
        let token = self.forwarded.insert(Forwarded { token, gate });
        self.queue.submit(device, token, op);
    }

    /// Gives completions their own tokens back.
    fn finish(&mut self, out: &mut Vec<Done>, first: usize) {
        let mut unknown = 0;
        for at in first..out.len() {
            let Some(Forwarded { token, gate }) = self.forwarded.remove(out[at].token) else {
                debug_assert!(false, "completion of the unknown token {:#x}", out[at].token);
                unknown += 1;
                continue;
            };
            if let Some(gate) = gate {
                self.in_flight[gate] -= 1;
            }
            out[at].token = token;
            out.swap(at - unknown, at);
        }
        out.truncate(out.len() - unknown);
        if self.awaited && out.len() > first {
            self.awaited = self.registry.report(self.worker, &self.in_flight);
        }
    }

    fn park(&mut self, device: &GatedDevice<Q::Device>, token: u64, op: Op) {
        let since = Instant::now();
        let place = self.registry.lock().table.park(&device.gate, since);
        let Some((grip, tick)) = place else {
            // The gate is open, so whatever was parked at it before may go too.
            self.release();
            return self.forward(&device.device, Some(device.gate.id), token, op);
        };
        let (gate, device) = (device.gate.id, Arc::clone(&device.device));
        let parked = Parked { tick, since, device, gate, token, op };
        match self.parked.iter_mut().find(|waiting| Arc::ptr_eq(&waiting.grip, &grip)) {
            Some(waiting) => waiting.writes.push_back(parked),
            None => self.parked.push(Waiting { grip: Arc::clone(&grip), writes: VecDeque::from([parked]) }),
        }
        let due = since + grip.longest_wait;
        if self.alarm.is_none_or(|alarm| due < alarm) {
            self.set_alarm(Some(due), since);
        }
        if let Some(on_write) = &grip.on_write {
            on_write();
        }
    }

    /// Comes round after the line was rung.
    fn answer(&mut self) {
        if !self.line.answer(&mut self.heard) {
            return;
        }
        let epoch = self.registry.lock().table.epoch();
        // What earlier holds have let go must not follow a hold that this acknowledges.
        self.release();
        self.awaited = self.registry.see(self.worker, epoch, &self.in_flight);
    }

    /// Submits the parked writes that may go on.
    fn release(&mut self) {
        let mut parked = std::mem::take(&mut self.parked);
        for waiting in &mut parked {
            // Read once: a pass in the middle must not let the later ones overtake.
            let passed = waiting.grip.passed();
            while let Some(write) = waiting.writes.pop_front_if(|write| write.tick < passed) {
                self.forward(&write.device, Some(write.gate), write.token, write.op);
            }
        }
        parked.retain(|waiting| !waiting.writes.is_empty());
        self.parked = parked;
    }

    /// Ends holds under which a write has waited for too long.
    fn watch(&mut self) {
        let Some(alarm) = self.alarm else { return };
        let now = Instant::now();
        if now < alarm {
            return;
        }
        self.release();
        for waiting in self.parked.iter().filter(|waiting| waiting.due().is_some_and(|due| due <= now)) {
            self.registry.lose(&waiting.grip);
        }
        self.release();
        let next = self.parked.iter().filter_map(Waiting::due).min();
        self.set_alarm(next, now);
    }

    /// Setting the timer also takes back its readiness.
    fn set_alarm(&mut self, alarm: Option<Instant>, now: Instant) {
        self.alarm = alarm;
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        // An all-zero value disarms, so the shortest wait is a nanosecond.
        let it_value = alarm.map_or(zero, |alarm| {
            let wait = alarm.saturating_duration_since(now).max(Duration::from_nanos(1));
            Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: i64::from(wait.subsec_nanos()) }
        });
        let spec = Itimerspec { it_interval: zero, it_value };
        if let Err(error) = timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &spec) {
            debug_assert!(false, "arm a timer: {error}");
        }
    }
}

impl<Q: Queue> Drop for GatedQueue<Q> {
    fn drop(&mut self) {
        self.registry.leave(self.worker);
    }
}

fn is_write(op: &Op) -> bool {
    match op {
        Op::Write { .. } | Op::Discard { .. } | Op::WriteZeroes { .. } => true,
        Op::Read { .. } | Op::Flush | Op::Status { .. } => false,
    }
}
