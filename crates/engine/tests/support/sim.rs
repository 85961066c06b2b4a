//! A disk in memory with a volatile cache. When the power fails, every sector that was written and not synced ends up, on its
//! own, old, new, any version in between, torn, zero or garbage.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex};

use keyframe_engine::device::{Device, EventFd, Io, IoKind, Ring};

use super::Rng;

type Sector = [u8; 512];

struct State {
    durable: BTreeMap<u64, Sector>,
    /// All versions written since the last sync, oldest first.
    volatile: BTreeMap<u64, Vec<Sector>>,
    len: u64,
    rng: Rng,
    /// Writes and syncs so far.
    operations: u64,
    syncs: u64,
    /// The power fails during this operation.
    crash_at: Option<u64>,
    /// This operation fails once, with an I/O error.
    fail_at: Option<u64>,
    dead: bool,
}

pub struct SimDisk(Mutex<State>);

impl SimDisk {
    pub fn new(len: u64, seed: u64) -> Arc<SimDisk> {
        Arc::new(SimDisk(Mutex::new(State {
            durable: BTreeMap::new(),
            volatile: BTreeMap::new(),
            len,
            rng: Rng::new(seed),
            operations: 0,
            syncs: 0,
            crash_at: None,
            fail_at: None,
            dead: false,
        })))
    }

    pub fn crash_after(&self, operations: u64) {
        let mut s = self.0.lock().unwrap();
        s.crash_at = Some(s.operations + operations);
    }
    pub fn fail_after(&self, operations: u64) {
        let mut s = self.0.lock().unwrap();
        s.fail_at = Some(s.operations + operations);
    }
    pub fn never_crash(&self) {
        self.0.lock().unwrap().crash_at = None;
    }
    pub fn is_dead(&self) -> bool {
        self.0.lock().unwrap().dead
    }
    pub fn syncs(&self) -> u64 {
        self.0.lock().unwrap().syncs
    }
    pub fn operations(&self) -> u64 {
        self.0.lock().unwrap().operations
    }

    /// What is on the platters after the power failed.
    pub fn after_power_loss(&self) -> Arc<SimDisk> {
        let mut s = self.0.lock().unwrap();
        let mut durable = s.durable.clone();
        let volatile = std::mem::take(&mut s.volatile);
        for (sector, versions) in volatile {
            let newest = versions[versions.len() - 1];
            let old = durable.get(&sector).copied().unwrap_or([0; 512]);
            let now = match s.rng.below(8) {
                0 | 1 => old,
                2..=4 => newest,
                5 => *s.rng.pick(&versions),
                6 => {
                    let cut = s.rng.below(512) as usize;
                    let mut torn = old;
                    torn[..cut].copy_from_slice(&newest[..cut]);
                    torn
                }
                _ if s.rng.one_in(2) => [0; 512],
                _ => {
                    let mut garbage = [0; 512];
                    garbage.iter_mut().for_each(|b| *b = s.rng.next() as u8);
                    garbage
                }
            };
            durable.insert(sector, now);
        }
        let seed = s.rng.next();
        let disk = SimDisk::new(s.len, seed);
        disk.0.lock().unwrap().durable = durable;
        disk
    }

    /// A copy of what has been written, as if all of it had been synced.
    pub fn copy(&self) -> Arc<SimDisk> {
        let mut s = self.0.lock().unwrap();
        let seed = s.rng.next();
        let disk = SimDisk::new(s.len, seed);
        {
            let mut d = disk.0.lock().unwrap();
            d.durable = s.durable.clone();
            for (sector, versions) in &s.volatile {
                d.durable.insert(*sector, versions[versions.len() - 1]);
            }
        }
        disk
    }

    /// Flips bits of stored bytes.
    pub fn damage(&self, offset: u64, mask: u8) {
        let mut s = self.0.lock().unwrap();
        s.durable.entry(offset / 512).or_insert([0; 512])[(offset % 512) as usize] ^= mask;
    }

    pub fn bytes(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        self.read_at(&mut out, offset).unwrap();
        out
    }

    pub fn fingerprint(&self) -> BTreeMap<u64, Sector> {
        let s = self.0.lock().unwrap();
        let mut all = s.durable.clone();
        for (sector, versions) in &s.volatile {
            all.insert(*sector, versions[versions.len() - 1]);
        }
        all.retain(|_, bytes| *bytes != [0; 512]);
        all
    }
}

fn power_failed() -> io::Error {
    io::Error::other("the power failed")
}

impl State {
    /// Counts an operation; an error if it must not happen, `true` if the power fails half-way.
    fn begin(&mut self) -> io::Result<bool> {
        if self.dead {
            return Err(power_failed());
        }
        self.operations += 1;
        if self.fail_at == Some(self.operations) {
            self.fail_at = None;
            return Err(io::Error::from_raw_os_error(5));
        }
        let dies = self.crash_at == Some(self.operations);
        self.dead = dies;
        Ok(dies)
    }
}

impl Device for SimDisk {
    fn name(&self) -> String {
        "simulated disk".into()
    }
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().len)
    }
    fn extend(&self, len: u64) -> io::Result<()> {
        self.0.lock().unwrap().len = len;
        Ok(())
    }
    fn alignment(&self) -> u32 {
        512
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let s = self.0.lock().unwrap();
        if s.dead {
            return Err(power_failed());
        }
        assert!(offset.is_multiple_of(512) && buf.len().is_multiple_of(512), "unaligned read");
        if offset + buf.len() as u64 > s.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        for (i, out) in buf.chunks_mut(512).enumerate() {
            let sector = offset / 512 + i as u64;
            let bytes = s.volatile.get(&sector).and_then(|v| v.last()).or_else(|| s.durable.get(&sector));
            out.copy_from_slice(bytes.unwrap_or(&[0; 512]));
        }
        Ok(())
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let mut s = self.0.lock().unwrap();
        assert!(offset.is_multiple_of(512) && buf.len().is_multiple_of(512), "unaligned write");
        assert!(offset + buf.len() as u64 <= s.len, "write beyond the end");
        let dies = s.begin()?;
        for (i, bytes) in buf.chunks(512).enumerate() {
            if dies && s.rng.one_in(2) {
                continue;
            }
            let mut sector = [0; 512];
            sector.copy_from_slice(bytes);
            s.volatile.entry(offset / 512 + i as u64).or_default().push(sector);
        }
        if dies { Err(power_failed()) } else { Ok(()) }
    }
    fn sync(&self) -> io::Result<()> {
        let mut s = self.0.lock().unwrap();
        if s.begin()? {
            return Err(power_failed());
        }
        s.syncs += 1;
        for (sector, versions) in std::mem::take(&mut s.volatile) {
            s.durable.insert(sector, versions[versions.len() - 1]);
        }
        Ok(())
    }
    fn ring(self: Arc<Self>) -> io::Result<Box<dyn Ring>> {
        let seed = self.0.lock().unwrap().rng.next();
        Ok(Box::new(SimRing { disk: self, rng: Rng::new(seed), queue: Vec::new(), event: Arc::new(EventFd::new()?) }))
    }
}

/// Completes requests in any order, a few at a time.
struct SimRing {
    disk: Arc<SimDisk>,
    rng: Rng,
    queue: Vec<Io>,
    event: Arc<EventFd>,
}

impl Ring for SimRing {
    unsafe fn push(&mut self, io: Io) {
        self.queue.push(io);
    }
    fn reap(&mut self, done: &mut Vec<(u64, io::Result<()>)>) -> io::Result<()> {
        self.event.clear();
        if self.queue.is_empty() {
            return Ok(());
        }
        for _ in 0..1 + self.rng.below(self.queue.len() as u64) {
            let i = self.rng.below(self.queue.len() as u64) as usize;
            let io = self.queue.swap_remove(i);
            let result = match io.kind {
                IoKind::Sync => self.disk.sync(),
                IoKind::Read => {
                    // SAFETY: the pusher keeps the memory valid until the completion is reaped.
                    let memory = unsafe { std::slice::from_raw_parts_mut(io.ptr, io.len as usize) };
                    self.disk.read_at(memory, io.offset)
                }
                IoKind::Write => {
                    // SAFETY: as above.
                    let memory = unsafe { std::slice::from_raw_parts(io.ptr, io.len as usize) };
                    self.disk.write_at(memory, io.offset)
                }
            };
            done.push((io.token, result));
        }
        Ok(())
    }
    fn in_flight(&self) -> usize {
        self.queue.len()
    }
    fn event_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
    fn waker(&self) -> Arc<EventFd> {
        Arc::clone(&self.event)
    }
    fn wait(&mut self) -> io::Result<()> {
        // Whoever waits for others and kept asking instead would keep them from the processor.
        if self.queue.is_empty() { self.event.wait() } else { Ok(()) }
    }
}
