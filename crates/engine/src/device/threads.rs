//! A ring made of threads and blocking calls, for where io_uring is not allowed.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};

use super::{Device, EventFd, Io, IoKind, Ring};

#[derive(Default)]
struct Queues {
    todo: std::collections::VecDeque<Io>,
    done: Vec<(u64, io::Result<()>)>,
    closing: bool,
}

struct Shared {
    queues: Mutex<Queues>,
    work: Condvar,
    event: Arc<EventFd>,
}

/// Requests served by a fixed set of threads.
pub(super) struct ThreadRing {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    in_flight: usize,
}

impl ThreadRing {
    pub(super) fn new<D: Device + 'static>(device: Arc<D>, threads: usize) -> io::Result<ThreadRing> {
        let shared =
            Arc::new(Shared { queues: Mutex::default(), work: Condvar::new(), event: Arc::new(EventFd::new()?) });
        let threads = (0..threads)
            .map(|_| {
                let (shared, device) = (Arc::clone(&shared), Arc::clone(&device));
                std::thread::Builder::new().name("keyframe-io".into()).spawn(move || serve(&shared, &*device))
            })
            .collect::<io::Result<_>>()?;
        Ok(ThreadRing { shared, threads, in_flight: 0 })
    }
}

fn serve(shared: &Shared, device: &dyn Device) {
    loop {
        let io = {
            let mut queues = shared.queues.lock();
            loop {
                if let Some(io) = queues.todo.pop_front() {
                    break io;
                }
                if queues.closing {
                    return;
                }
                shared.work.wait(&mut queues);
            }
        };
        let result = match io.kind {
            IoKind::Sync => device.sync(),
            IoKind::Read => {
                // SAFETY: the pusher keeps the memory valid and to itself until the completion is reaped.
                let memory = unsafe { std::slice::from_raw_parts_mut(io.ptr, io.len as usize) };
                device.read_at(memory, io.offset)
            }
            IoKind::Write => {
                // SAFETY: as above.
                let memory = unsafe { std::slice::from_raw_parts(io.ptr, io.len as usize) };
                device.write_at(memory, io.offset)
            }
        };
        shared.queues.lock().done.push((io.token, result));
        shared.event.signal();
    }
}

impl Ring for ThreadRing {
    unsafe fn push(&mut self, io: Io) {
        self.shared.queues.lock().todo.push_back(io);
        self.shared.work.notify_one();
        self.in_flight += 1;
    }

    fn reap(&mut self, done: &mut Vec<(u64, io::Result<()>)>) -> io::Result<()> {
        self.shared.event.clear();
        let mut queues = self.shared.queues.lock();
        self.in_flight -= queues.done.len();
        done.append(&mut queues.done);
        Ok(())
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn event_fd(&self) -> BorrowedFd<'_> {
        self.shared.event.as_fd()
    }

    fn waker(&self) -> Arc<EventFd> {
        Arc::clone(&self.shared.event)
    }

    fn wait(&mut self) -> io::Result<()> {
        self.shared.event.wait()
    }
}

impl Drop for ThreadRing {
    fn drop(&mut self) {
        self.shared.queues.lock().closing = true;
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            // A panicking I/O thread already printed why.
            let _panicked = thread.join();
        }
    }
}
