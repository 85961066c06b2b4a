//! A device that counts what passes through it.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use keyframe_engine::device::{Device, EventFd, Io, IoKind, Ring};

/// What went to the device.
#[derive(Default)]
struct Counters {
    ring_bytes: AtomicU64,
    ring_writes: AtomicU64,
    direct_bytes: AtomicU64,
    syncs: AtomicU64,
}

/// The counters at one moment, or between two.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counts {
    /// Written through rings: guest data, and the commits that guests wait for.
    pub(crate) ring_bytes: u64,
    pub(crate) ring_writes: u64,
    /// Written by blocking calls: commits of commands, and checkpoints.
    pub(crate) direct_bytes: u64,
    pub(crate) syncs: u64,
}

impl Counts {
    pub(crate) fn since(self, before: Counts) -> Counts {
        Counts {
            ring_bytes: self.ring_bytes - before.ring_bytes,
            ring_writes: self.ring_writes - before.ring_writes,
            direct_bytes: self.direct_bytes - before.direct_bytes,
            syncs: self.syncs - before.syncs,
        }
    }

    pub(crate) fn bytes(self) -> u64 {
        self.ring_bytes + self.direct_bytes
    }
}

/// Any device, counted.
pub(crate) struct Probe {
    device: Arc<dyn Device>,
    counters: Arc<Counters>,
}

impl Probe {
    pub(crate) fn new(device: Arc<dyn Device>) -> Arc<Probe> {
        Arc::new(Probe { device, counters: Arc::default() })
    }

    pub(crate) fn counts(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            ring_bytes: read(&self.counters.ring_bytes),
            ring_writes: read(&self.counters.ring_writes),
            direct_bytes: read(&self.counters.direct_bytes),
            syncs: read(&self.counters.syncs),
        }
    }
}

impl Device for Probe {
    fn name(&self) -> String {
        self.device.name()
    }
    fn len(&self) -> io::Result<u64> {
        self.device.len()
    }
    fn extend(&self, len: u64) -> io::Result<()> {
        self.device.extend(len)
    }
    fn alignment(&self) -> u32 {
        self.device.alignment()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.device.read_at(buf, offset)
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.counters.direct_bytes.fetch_add(buf.len() as u64, Ordering::Relaxed);
        self.device.write_at(buf, offset)
    }
    fn sync(&self) -> io::Result<()> {
        self.counters.syncs.fetch_add(1, Ordering::Relaxed);
        self.device.sync()
    }
    fn ring(self: Arc<Self>) -> io::Result<Box<dyn Ring>> {
        let ring = Arc::clone(&self.device).ring()?;
        Ok(Box::new(ProbedRing { ring, counters: Arc::clone(&self.counters) }))
    }
}

struct ProbedRing {
    ring: Box<dyn Ring>,
    counters: Arc<Counters>,
}

impl Ring for ProbedRing {
    unsafe fn push(&mut self, io: Io) {
        match io.kind {
            IoKind::Write => {
                self.counters.ring_bytes.fetch_add(u64::from(io.len), Ordering::Relaxed);
                self.counters.ring_writes.fetch_add(1, Ordering::Relaxed);
            }
            IoKind::Sync => {
                self.counters.syncs.fetch_add(1, Ordering::Relaxed);
            }
            IoKind::Read => {}
        }
        // SAFETY: the caller's promise about the memory is passed on unchanged.
        unsafe { self.ring.push(io) }
    }
    fn reap(&mut self, done: &mut Vec<(u64, io::Result<()>)>) -> io::Result<()> {
        self.ring.reap(done)
    }
    fn in_flight(&self) -> usize {
        self.ring.in_flight()
    }
    fn event_fd(&self) -> BorrowedFd<'_> {
        self.ring.event_fd()
    }
    fn waker(&self) -> Arc<EventFd> {
        self.ring.waker()
    }
    fn wait(&mut self) -> io::Result<()> {
        self.ring.wait()
    }
}
