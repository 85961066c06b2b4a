//! A backend in memory: the second implementor of the seam, for tests, fuzzing and measuring the protocol alone.
//!
//! Requests execute when they are submitted; with a latency their completions are held back, so that tests can act while
//! requests are in flight. Nothing here fails.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use keyframe_engine::units::BLOCK;
use keyframe_engine::{Done, Extent, ExtentKind, Op};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use crate::backend::{Backend, Device, Export, Peer, Queue};
use crate::error::OpenError;

type Page = Box<[u8; BLOCK as usize]>;

#[derive(Debug)]
enum Slot {
    Hole,
    Zero,
    Data(Page),
}

/// An export to be served from memory.
#[derive(Clone, Debug)]
pub struct MemoryExport {
    /// Its name.
    pub name: String,
    /// Its size in bytes, a multiple of 512.
    pub size: u64,
    /// Refuse writes.
    pub read_only: bool,
    /// Only one client at a time.
    pub exclusive: bool,
}

impl MemoryExport {
    /// A writable export that any number of clients may share.
    pub fn new(name: &str, size: u64) -> MemoryExport {
        MemoryExport { name: name.to_owned(), size, read_only: false, exclusive: false }
    }
}

#[derive(Debug)]
struct Volume {
    export: MemoryExport,
    description: String,
    slots: RwLock<Vec<Slot>>,
    attached: AtomicUsize,
}

/// The backend. Clones share their volumes.
#[derive(Clone)]
pub struct Memory {
    volumes: Arc<BTreeMap<String, Arc<Volume>>>,
    latency: Duration,
}

impl Memory {
    /// Serves `exports`, all holes.
    pub fn new(exports: impl IntoIterator<Item = MemoryExport>) -> Memory {
        let volume = |export: MemoryExport| {
            let blocks = export.size.div_ceil(BLOCK) as usize;
            let slots = RwLock::new((0..blocks).map(|_| Slot::Hole).collect());
            let description = format!("{} bytes of memory", export.size);
            (export.name.clone(), Arc::new(Volume { export, description, slots, attached: AtomicUsize::new(0) }))
        };
        Memory { volumes: Arc::new(exports.into_iter().map(volume).collect()), latency: Duration::ZERO }
    }

    /// Holds every completion back for this long.
    pub fn with_latency(self, latency: Duration) -> Memory {
        Memory { latency, ..self }
    }

    /// Clients attached to an export now.
    pub fn attached(&self, name: &str) -> usize {
        self.volumes.get(name).map_or(0, |volume| volume.attached.load(Ordering::SeqCst))
    }
}

impl Backend for Memory {
    type Device = MemoryDevice;
    type Queue = MemoryQueue;

    fn list(&self) -> Vec<Export> {
        let export =
            |volume: &Arc<Volume>| Export { name: volume.export.name.clone(), description: volume.description.clone() };
        self.volumes.values().map(export).collect()
    }

    fn open(&self, name: &str, _: Peer) -> Result<MemoryDevice, OpenError> {
        let volume = self.volumes.get(name).ok_or(OpenError::Unknown)?;
        let device = MemoryDevice(Arc::clone(volume));
        let others = volume.attached.fetch_add(1, Ordering::SeqCst);
        if volume.export.exclusive && others > 0 { Err(OpenError::Busy) } else { Ok(device) }
    }

    fn queue(&self) -> io::Result<MemoryQueue> {
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        Ok(MemoryQueue { finished: VecDeque::new(), latency: self.latency, timer })
    }
}

/// An attached export.
#[derive(Debug)]
pub struct MemoryDevice(Arc<Volume>);

impl Drop for MemoryDevice {
    fn drop(&mut self) {
        self.0.attached.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Device for MemoryDevice {
    fn size(&self) -> u64 {
        self.0.export.size
    }
    fn read_only(&self) -> bool {
        self.0.export.read_only
    }
    fn description(&self) -> &str {
        &self.0.description
    }
    fn multi_conn(&self) -> bool {
        !self.0.export.exclusive
    }
}

/// A queue whose completions become visible when they are due.
pub struct MemoryQueue {
    finished: VecDeque<(Option<Instant>, Done)>,
    latency: Duration,
    timer: OwnedFd,
}

impl Queue for MemoryQueue {
    type Device = MemoryDevice;

    fn submit(&mut self, device: &MemoryDevice, token: u64, op: Op) {
        let due = (self.latency > Duration::ZERO).then(|| Instant::now() + self.latency);
        self.finished.push_back((due, execute(&device.0, token, op)));
    }

    fn poll(&mut self, out: &mut Vec<Done>) {
        if self.latency == Duration::ZERO {
            out.extend(self.finished.drain(..).map(|(_, done)| done));
            return;
        }
        let now = Instant::now();
        while let Some((due, _)) = self.finished.front()
            && due.is_none_or(|due| due <= now)
        {
            out.extend(self.finished.pop_front().map(|(_, done)| done));
        }
        let wait = self.finished.front().and_then(|(due, _)| *due).map(|due| due.saturating_duration_since(now));
        self.arm(wait);
    }

    fn event_fd(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }
}

impl MemoryQueue {
    /// Setting the timer also takes back its readiness.
    fn arm(&self, wait: Option<Duration>) {
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        // An all-zero value disarms, so the shortest wait is a nanosecond.
        let it_value = wait.map_or(zero, |wait| Timespec {
            tv_sec: wait.as_secs() as i64,
            tv_nsec: i64::from(wait.subsec_nanos()).max(1),
        });
        let spec = Itimerspec { it_interval: zero, it_value };
        if let Err(error) = timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &spec) {
            debug_assert!(false, "arm a timer: {error}");
        }
    }
}

fn execute(volume: &Volume, token: u64, op: Op) -> Done {
    let mut done = Done { token, result: Ok(()), buf: None, extents: Vec::new() };
    match op {
        Op::Read { offset, mut buf } => {
            read(&read_lock(volume), offset, &mut buf);
            done.buf = Some(buf);
        }
        Op::Write { offset, buf, .. } => {
            write(&mut write_lock(volume), offset, &buf);
            done.buf = Some(buf);
        }
        Op::Discard { offset, len, .. } => clear(&mut write_lock(volume), offset, len, &Slot::Hole),
        Op::WriteZeroes { offset, len, no_hole: false, .. } => {
            clear(&mut write_lock(volume), offset, len, &Slot::Zero);
        }
        Op::WriteZeroes { offset, len, no_hole: true, .. } => {
            let mut slots = write_lock(volume);
            each_block(offset, len, |block, within, len| page(&mut slots[block])[within..within + len].fill(0));
        }
        Op::Flush => {}
        Op::Status { offset, len, max } => done.extents = status(&read_lock(volume), offset, len, max),
    }
    done
}

fn read_lock(volume: &Volume) -> RwLockReadGuard<'_, Vec<Slot>> {
    volume.slots.read().unwrap_or_else(PoisonError::into_inner)
}

fn write_lock(volume: &Volume) -> RwLockWriteGuard<'_, Vec<Slot>> {
    volume.slots.write().unwrap_or_else(PoisonError::into_inner)
}

/// Calls with each block of a range, the start within the block and the length there.
fn each_block(offset: u64, len: u64, mut visit: impl FnMut(usize, usize, usize)) {
    let end = offset + len;
    let mut at = offset;
    while at < end {
        let within = at % BLOCK;
        let piece = (BLOCK - within).min(end - at);
        visit((at / BLOCK) as usize, within as usize, piece as usize);
        at += piece;
    }
}

fn page(slot: &mut Slot) -> &mut Page {
    if !matches!(slot, Slot::Data(_)) {
        *slot = Slot::Data(Box::new([0; BLOCK as usize]));
    }
    match slot {
        Slot::Data(page) => page,
        Slot::Hole | Slot::Zero => unreachable!("filled above"),
    }
}

fn read(slots: &[Slot], offset: u64, mut buf: &mut [u8]) {
    each_block(offset, buf.len() as u64, |block, within, len| {
        let (piece, rest) = std::mem::take(&mut buf).split_at_mut(len);
        match &slots[block] {
            Slot::Data(page) => piece.copy_from_slice(&page[within..within + len]),
            Slot::Hole | Slot::Zero => piece.fill(0),
        }
        buf = rest;
    });
}

fn write(slots: &mut [Slot], offset: u64, mut buf: &[u8]) {
    each_block(offset, buf.len() as u64, |block, within, len| {
        let (piece, rest) = buf.split_at(len);
        page(&mut slots[block])[within..within + len].copy_from_slice(piece);
        buf = rest;
    });
}

/// Whole blocks change their kind; parts of one that holds data are filled with zeroes.
fn clear(slots: &mut [Slot], offset: u64, len: u64, kind: &Slot) {
    each_block(offset, len, |block, within, len| match (&mut slots[block], kind) {
        (Slot::Data(page), _) if len < BLOCK as usize => page[within..within + len].fill(0),
        (slot, Slot::Hole) if len == BLOCK as usize => *slot = Slot::Hole,
        (slot, _) if len == BLOCK as usize => *slot = Slot::Zero,
        _ => {}
    });
}

fn status(slots: &[Slot], offset: u64, len: u64, max: usize) -> Vec<Extent> {
    let mut extents: Vec<Extent> = Vec::new();
    let mut full = false;
    each_block(offset, len, |block, within, len| {
        let kind = match slots[block] {
            Slot::Hole => ExtentKind::Hole,
            Slot::Zero => ExtentKind::Zero,
            Slot::Data(_) => ExtentKind::Data,
        };
        let last_slot = extents.len() == max;
        match extents.last_mut() {
            Some(last) if last.kind == kind && !full => last.len += len as u64,
            _ if last_slot => full = true,
            _ => extents.push(Extent { offset: block as u64 * BLOCK + within as u64, len: len as u64, kind }),
        }
    });
    extents
}
