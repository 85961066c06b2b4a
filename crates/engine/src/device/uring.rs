//! A ring made of io_uring.

use std::any::Any;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;

use io_uring::{IoUring, opcode, squeue, types};

use super::{EventFd, Io, IoKind, Ring};

/// Completions taken at a time: answering a few and refilling keeps the device busier than answering all and refilling late
/// (measured at queue depth 32: 0.70 of fio's rate without a limit, 0.91 with 4, 0.95 with 2).
const REAP: usize = 3;
/// Requests the kernel may hold at once.
const DEPTH: u32 = 256;

/// Requests served by the kernel.
pub(super) struct UringRing {
    ring: IoUring,
    fd: types::Fd,
    event: Arc<EventFd>,
    /// Waits for a place in the kernel's queue.
    backlog: VecDeque<squeue::Entry>,
    /// What a short transfer must be continued with: token, then the request.
    pending: Vec<Option<Io>>,
    free: Vec<u32>,
    in_kernel: u32,
    in_flight: usize,
    /// Keeps the file open as long as the ring uses its descriptor.
    _owner: Arc<dyn Any + Send + Sync>,
}

impl UringRing {
    pub(super) fn new(owner: Arc<dyn Any + Send + Sync>, fd: RawFd) -> io::Result<UringRing> {
        let ring = IoUring::builder().setup_coop_taskrun().build(DEPTH).or_else(|e| {
            // Older kernels do not know the hint.
            if e.raw_os_error() == Some(libc::EINVAL) { IoUring::new(DEPTH) } else { Err(e) }
        })?;
        let event = Arc::new(EventFd::new()?);
        ring.submitter().register_eventfd(event.as_fd().as_raw_fd())?;
        Ok(UringRing {
            ring,
            fd: types::Fd(fd),
            event,
            backlog: VecDeque::new(),
            pending: Vec::new(),
            free: Vec::new(),
            in_kernel: 0,
            in_flight: 0,
            _owner: owner,
        })
    }

    fn enqueue(&mut self, io: Io) {
        let slot = match self.free.pop() {
            Some(slot) => {
                self.pending[slot as usize] = Some(io);
                slot
            }
            None => {
                self.pending.push(Some(io));
                (self.pending.len() - 1) as u32
            }
        };
        let entry = match io.kind {
            IoKind::Read => opcode::Read::new(self.fd, io.ptr, io.len).offset(io.offset).build(),
            IoKind::Write => opcode::Write::new(self.fd, io.ptr.cast_const(), io.len).offset(io.offset).build(),
            IoKind::Sync => opcode::Fsync::new(self.fd).flags(types::FsyncFlags::DATASYNC).build(),
        };
        self.backlog.push_back(entry.user_data(u64::from(slot)));
    }

    fn submit(&mut self, want: usize) -> io::Result<()> {
        loop {
            while self.in_kernel < DEPTH {
                let Some(entry) = self.backlog.pop_front() else { break };
                // SAFETY: whoever pushed the request keeps its memory valid until its completion is reaped.
                if unsafe { self.ring.submission().push(&entry) }.is_err() {
                    self.backlog.push_front(entry);
                    break;
                }
                self.in_kernel += 1;
            }
            let staged = !self.ring.submission().is_empty();
            if !staged && want == 0 {
                return Ok(());
            }
            match self.ring.submit_and_wait(want) {
                Ok(_) if self.backlog.is_empty() || self.in_kernel == DEPTH => return Ok(()),
                Ok(_) => {}
                Err(e) if e.raw_os_error() == Some(libc::EINTR) => {}
                // The completion queue is full: reap first.
                Err(e) if e.raw_os_error() == Some(libc::EBUSY) => return Ok(()),
                Err(e) => return Err(e),
            }
        }
    }

    fn collect(&mut self, done: &mut Vec<(u64, io::Result<()>)>) {
        let mut again = Vec::new();
        for cqe in self.ring.completion().take(REAP) {
            self.in_kernel -= 1;
            let slot = cqe.user_data() as usize;
            let Some(io) = self.pending.get_mut(slot).and_then(Option::take) else { continue };
            self.free.push(slot as u32);
            let result = cqe.result();
            if result == -libc::EINTR || result == -libc::EAGAIN {
                again.push(io);
            } else if result < 0 {
                done.push((io.token, Err(io::Error::from_raw_os_error(-result))));
            } else if io.kind == IoKind::Sync || result as u32 == io.len {
                done.push((io.token, Ok(())));
            } else if result == 0 {
                done.push((io.token, Err(io::ErrorKind::UnexpectedEof.into())));
            } else {
                let moved = result as u32;
                // SAFETY: the kernel moved fewer bytes than asked, so the rest lies within the same memory.
                let ptr = unsafe { io.ptr.add(moved as usize) };
                again.push(Io { ptr, len: io.len - moved, offset: io.offset + u64::from(moved), ..io });
            }
        }
        for io in again {
            self.enqueue(io);
        }
    }
}

impl Ring for UringRing {
    unsafe fn push(&mut self, io: Io) {
        self.in_flight += 1;
        self.enqueue(io);
    }

    fn start(&mut self) -> io::Result<()> {
        self.submit(0)
    }

    fn reap(&mut self, done: &mut Vec<(u64, io::Result<()>)>) -> io::Result<()> {
        self.event.clear();
        self.submit(0)?;
        let before = done.len();
        self.collect(done);
        if !self.ring.completion().is_empty() {
            self.event.signal();
        }
        self.in_flight -= done.len() - before;
        if !self.backlog.is_empty() {
            self.submit(0)?;
        }
        Ok(())
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn event_fd(&self) -> BorrowedFd<'_> {
        (*self.event).as_fd()
    }

    fn waker(&self) -> Arc<EventFd> {
        Arc::clone(&self.event)
    }

    fn wait(&mut self) -> io::Result<()> {
        self.submit(0)?;
        self.event.wait()
    }
}

impl Drop for UringRing {
    fn drop(&mut self) {
        // The kernel may still write into memory that its owner is about to free: wait for everything, however long.
        let mut done = Vec::new();
        while self.in_flight > done.len() {
            if self.submit(1).is_err() {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            self.collect(&mut done);
        }
    }
}
