//! What the connections of one worker share: the backend queue, the requests in it, buffers and the memory budget.
//!
//! One thread owns it, so there are no locks. The server's budget is divided among the workers beforehand: no client of
//! one worker can take memory from another's.

use std::time::Instant;

use keyframe_engine::{IoBuf, Op};

use crate::backend::Queue;
use crate::pool::Pool;
use crate::slots::Slots;
use crate::transmission::Command;

/// A request that the backend is working on.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) connection: usize,
    pub(crate) cookie: u64,
    pub(crate) offset: u64,
    pub(crate) len: u32,
    pub(crate) command: Command,
    /// Budget it holds.
    pub(crate) charge: usize,
}

pub(crate) struct Lane<Q> {
    pub(crate) queue: Q,
    pub(crate) pool: Pool,
    /// Requests were submitted since the last poll.
    pub(crate) staged: bool,
    /// Time of the current wake-up.
    pub(crate) now: Instant,
    pending: Slots<Pending>,
    budget: usize,
    /// Budget was returned since the last look: those who wait for it may try again.
    released: bool,
}

impl<Q: Queue> Lane<Q> {
    pub(crate) fn new(queue: Q, budget: usize) -> Lane<Q> {
        Lane {
            queue,
            pool: Pool::new(),
            staged: false,
            now: Instant::now(),
            pending: Slots::new(),
            budget,
            released: false,
        }
    }

    /// Takes budget, or nothing.
    pub(crate) fn charge(&mut self, bytes: usize) -> bool {
        let enough = bytes <= self.budget;
        if enough {
            self.budget -= bytes;
        }
        enough
    }

    pub(crate) fn release(&mut self, bytes: usize) {
        self.budget += bytes;
        self.released |= bytes > 0;
    }

    pub(crate) fn take_released(&mut self) -> bool {
        std::mem::take(&mut self.released)
    }

    pub(crate) fn recycle(&mut self, buf: Option<IoBuf>) {
        if let Some(buf) = buf {
            self.pool.put(buf);
        }
    }

    /// Submits a request under a token that is not in use.
    pub(crate) fn submit(&mut self, device: &Q::Device, pending: Pending, op: Op) {
        let token = self.pending.insert(pending);
        self.queue.submit(device, token, op);
        self.staged = true;
    }

    /// The request of a completion, once: a second completion of a token is harmless.
    pub(crate) fn finish(&mut self, token: u64) -> Option<Pending> {
        self.pending.remove(token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Backend;
    use crate::memory::Memory;

    #[test]
    fn budget_is_all_or_nothing() {
        let backend = Memory::new([]);
        let mut lane = Lane::new(backend.queue().unwrap(), 100);
        assert!(lane.charge(60));
        assert!(!lane.charge(60));
        assert!(!lane.take_released());
        lane.release(60);
        assert!(lane.take_released() && !lane.take_released());
        assert!(lane.charge(100));
    }
}
