//! The pool's backing store: a file or a block device, or in tests a simulated disk that can lose power.
//!
//! Two ways to use it: blocking calls for control work, and a [`Ring`] of many requests in flight for guest I/O.

mod file;
mod threads;
mod uring;

pub use file::{FileDevice, IoMode};

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// A random-access store with explicit durability.
#[expect(clippy::len_without_is_empty, reason = "an empty device is no device")]
pub trait Device: Send + Sync {
    /// What to call it in messages.
    fn name(&self) -> String;
    /// Size in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Makes it larger, if it can be.
    fn extend(&self, len: u64) -> io::Result<()>;
    /// Smallest unit of I/O in bytes, 512 or 4096.
    fn alignment(&self) -> u32;
    /// Fills `buf` from `offset`; both aligned.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
    /// Stores `buf` at `offset`; both aligned.
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;
    /// Makes everything written so far durable (fdatasync).
    fn sync(&self) -> io::Result<()>;
    /// A ring of its own for one thread.
    fn ring(self: Arc<Self>) -> io::Result<Box<dyn Ring>>;
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoKind {
    /// Fill the memory.
    Read,
    /// Store the memory.
    Write,
    /// Make everything written so far durable.
    Sync,
}

/// One device request.
#[derive(Clone, Copy, Debug)]
pub struct Io {
    /// Comes back with the completion.
    pub token: u64,
    /// What to do.
    pub kind: IoKind,
    /// Device offset in bytes, aligned.
    pub offset: u64,
    /// Memory, aligned; null for a sync.
    pub ptr: *mut u8,
    /// Bytes, aligned.
    pub len: u32,
}

// SAFETY: the pointer is only dereferenced between `push` and the completion, for which the pusher vouches.
unsafe impl Send for Io {}

/// Many requests in flight on one thread.
pub trait Ring: Send {
    /// Queues a request.
    ///
    /// # Safety
    /// The memory stays valid and is touched by nobody else until the request's completion was reaped.
    unsafe fn push(&mut self, io: Io);
    /// Starts what was queued; never blocks.
    fn start(&mut self) -> io::Result<()> {
        Ok(())
    }
    /// Takes the waker's signals so far, starts what was queued and adds some finished requests to `done`; never blocks. The
    /// event fd stays readable while there are more. Whoever is to be woken must ask for it after this, not before.
    fn reap(&mut self, done: &mut Vec<(u64, io::Result<()>)>) -> io::Result<()>;
    /// Requests pushed and not reaped.
    fn in_flight(&self) -> usize;
    /// Becomes readable when there may be something to reap, or when [`Ring::waker`] was used.
    fn event_fd(&self) -> BorrowedFd<'_>;
    /// Makes the event fd readable from any thread.
    fn waker(&self) -> Arc<EventFd>;
    /// Blocks until something can be reaped or a waker was used.
    fn wait(&mut self) -> io::Result<()>;
}

/// An eventfd: a counter that can be polled.
pub struct EventFd(std::os::fd::OwnedFd);

impl EventFd {
    /// A new one, non-blocking.
    pub fn new() -> io::Result<EventFd> {
        let flags = rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK;
        Ok(EventFd(rustix::event::eventfd(0, flags)?))
    }

    /// Makes it readable.
    pub fn signal(&self) {
        // A full counter is readable already; nothing else can fail.
        let _full = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Takes the signals so far.
    pub fn clear(&self) {
        // Nothing to read means that nothing was signalled.
        let _none = rustix::io::read(&self.0, &mut [0u8; 8]);
    }

    /// Blocks until it is readable.
    pub fn wait(&self) -> io::Result<()> {
        let mut fds = [rustix::event::PollFd::new(&self.0, rustix::event::PollFlags::IN)];
        match rustix::event::poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}

impl std::os::fd::AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl crate::core::admit::Wake for EventFd {
    fn wake(&self) {
        self.signal();
    }
}
