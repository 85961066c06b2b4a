//! How other threads wake a worker's queue.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::event::{EventfdFlags, eventfd};

/// A counter of calls beside an eventfd, so that a worker that was not called does not need a system call to know.
pub(crate) struct Line {
    event: OwnedFd,
    rung: AtomicU64,
}

impl Line {
    pub(super) fn new() -> io::Result<Line> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Line { event, rung: AtomicU64::new(0) })
    }

    pub(super) fn ring(&self) {
        // Counted first: whoever finds the descriptor readable finds the call counted, and reads until it has them all.
        self.rung.fetch_add(1, Ordering::AcqRel);
        if let Err(error) = rustix::io::write(&self.event, &1u64.to_ne_bytes()) {
            debug_assert!(false, "wake a worker: {error}");
        }
    }

    /// Whether there were calls beyond those that were `heard`. Those that have reached the descriptor are added to
    /// `heard`, and taken from it; one that has not yet is answered now and once more when it has.
    pub(crate) fn answer(&self, heard: &mut u64) -> bool {
        if self.rung.load(Ordering::Acquire) == *heard {
            return false;
        }
        let mut count = [0; 8];
        if rustix::io::read(&self.event, &mut count[..]).is_ok() {
            *heard += u64::from_ne_bytes(count);
        }
        true
    }
}

impl AsFd for Line {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}
