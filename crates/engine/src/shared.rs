//! The core behind its lock, the device beside it, and the blocking way to use both.
//!
//! The lock is never held across I/O. A step that misses is run again after the page was read without the lock.

use std::sync::Arc;

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::buf::IoBuf;
use crate::core::Core;
use crate::core::stop::{Miss, Step, Stop, Wait};
use crate::device::Device;
use crate::disk::entry::{Entry, Identity, Page};
use crate::disk::layout::JOURNAL;
use crate::error::{Error, ErrorKind, Result};
use crate::journal::Sealed;
use crate::units::BLOCK;

/// Whether a step may wait for the background worker.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Patience {
    Waits,
    None,
}

/// Everything that handles of one pool share.
pub(crate) struct Shared {
    core: Mutex<Core>,
    /// Signalled whenever a commit or checkpoint ends, and when the background worker has something to do.
    pub(crate) moved: Condvar,
    pub(crate) device: Arc<dyn Device>,
}

impl Shared {
    pub(crate) fn new(core: Core, device: Arc<dyn Device>) -> Shared {
        Shared { core: Mutex::new(core), moved: Condvar::new(), device }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Core> {
        self.core.lock()
    }

    /// Runs a step until it finishes or fails.
    pub(crate) fn run<T>(&self, step: impl FnMut(&mut Core) -> Step<T>) -> Result<T> {
        self.run_with(Patience::Waits, step)
    }

    /// As [`Shared::run`], for the background worker: what it would wait for is itself, so it fails with `NoSpace` instead.
    pub(crate) fn attempt<T>(&self, step: impl FnMut(&mut Core) -> Step<T>) -> Result<T> {
        self.run_with(Patience::None, step)
    }

    fn run_with<T>(&self, patience: Patience, mut step: impl FnMut(&mut Core) -> Step<T>) -> Result<T> {
        let mut failed: Option<Miss> = None;
        let mut rounds = None;
        let mut core = self.lock();
        loop {
            match step(&mut core) {
                Ok(value) => return Ok(value),
                Err(Stop::Fail(e)) => return Err(e),
                Err(Stop::Miss(miss)) => {
                    drop(core);
                    let block = self.read_block(miss)?;
                    core = self.lock();
                    if !core.fulfil(miss, &block) {
                        // The page may have been freed and reused meanwhile; if it is asked for again, it is damaged.
                        if failed == Some(miss) {
                            return Err(damaged(&self.device.name(), miss));
                        }
                        failed = Some(miss);
                    }
                }
                Err(Stop::Wait(wait)) => {
                    core.refuse_if_poisoned()?;
                    if patience == Patience::None {
                        return Err(no_space(&self.device.name()));
                    }
                    if wait == Wait::Space {
                        let first = *rounds.get_or_insert(core.admission.space_rounds);
                        if core.admission.space_rounds >= first + 2 && !core.admission.reclaiming {
                            return Err(no_space(&self.device.name()));
                        }
                        core.admission.space_wanted = true;
                    }
                    self.moved.notify_all();
                    self.moved.wait(&mut core);
                }
            }
        }
    }

    fn read_block(&self, miss: Miss) -> Result<IoBuf> {
        let mut block = IoBuf::zeroed(BLOCK as usize);
        let offset = miss.block().offset();
        self.device.read_at(&mut block, offset).map_err(|e| {
            Error::io(format!("cannot read {} bytes at {offset} of pool {}", BLOCK, self.device.name()), e)
        })?;
        Ok(block)
    }

    /// A metadata page by its pointer; a copy.
    pub(crate) fn page(&self, entry: Entry, identity: Identity) -> Result<Page> {
        self.run(|core| core.page(entry, identity).copied())
    }

    /// Blocks until all records up to `record` are durable.
    pub(crate) fn commit(&self, record: u64) -> Result<()> {
        let mut core = self.lock();
        loop {
            core.refuse_if_poisoned()?;
            if core.journal.durable() >= record {
                return Ok(());
            }
            match core.journal.seal() {
                Some(sealed) => {
                    drop(core);
                    let written = self.write_group(&sealed);
                    self.end_commit(written)?;
                    core = self.lock();
                }
                None => self.moved.wait(&mut core),
            }
        }
    }

    /// Writes out whatever records are buffered, though a checkpoint may have made them durable already: the buffer has a limit.
    pub(crate) fn commit_buffer(&self) -> Result<()> {
        let mut core = self.lock();
        loop {
            core.refuse_if_poisoned()?;
            match core.journal.seal() {
                Some(sealed) => {
                    drop(core);
                    let written = self.write_group(&sealed);
                    return self.end_commit(written);
                }
                None if core.journal.buffered_bytes() == 0 => return Ok(()),
                None => self.moved.wait(&mut core),
            }
        }
    }

    /// Keeps every address that the caller may see from being reused until the guard goes.
    pub(crate) fn pin(&self) -> Pin<'_> {
        self.lock().space.pin();
        Pin(self)
    }

    fn write_group(&self, sealed: &Sealed) -> Result<()> {
        let offset = JOURNAL.offset() + sealed.offset;
        self.device
            .write_at(&sealed.bytes, offset)
            .and_then(|()| self.device.sync())
            .map_err(|e| Error::io(format!("cannot write the journal of pool {}", self.device.name()), e))
    }

    /// The sealed group is durable, or the pool stops.
    pub(crate) fn end_commit(&self, written: Result<()>) -> Result<()> {
        let mut core = self.lock();
        match &written {
            Ok(()) => {
                core.journal.committed();
                let durable = core.journal.durable();
                core.space.release_blocks(durable);
            }
            Err(e) => core.poison(&e.to_string()),
        }
        core.admission.wake_all();
        self.moved.notify_all();
        written
    }

    /// Stops the pool after a failed write.
    pub(crate) fn poison(&self, why: &str) {
        let mut core = self.lock();
        core.poison(why);
        core.admission.wake_all();
        self.moved.notify_all();
    }
}

/// Addresses seen outside the lock keep their meaning.
pub(crate) struct Pin<'a>(&'a Shared);

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        self.0.lock().space.unpin();
    }
}

/// A page that does not match its checksum, twice.
pub(crate) fn damaged(pool: &str, miss: Miss) -> Error {
    let offset = miss.block().offset();
    let what = match miss {
        Miss::Page { identity, .. } => {
            format!("metadata page (family {}, rank {}, base {})", identity.family, identity.rank.0, identity.base)
        }
        Miss::Table { number, .. } => format!("allocation table {}", number.0),
        Miss::Group { number, .. } => format!("allocation bitmap {}", number.0),
    };
    Error::new(
        ErrorKind::Corrupt,
        format!("pool {pool}: {what} at offset {offset} does not match its checksum; run a check"),
    )
}

/// The pool is full and nothing can be freed.
pub(crate) fn no_space(pool: &str) -> Error {
    Error::new(ErrorKind::NoSpace, format!("pool {pool} is full; delete snapshots or grow the pool"))
}
