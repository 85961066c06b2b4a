//! What the connections of one worker share: the backend queue, the requests in it, buffers and the memory budget.
//!
//! One thread owns it, so there are no locks. The server's budget is divided among the workers beforehand: no client of
//! one worker can take memory from another's.

use std::time::Instant;

use keyframe_engine::{IoBuf, Op};

use crate::backend::Queue;
use crate::pool::Pool;
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

struct Slot {
    generation: u32,
    pending: Option<Pending>,
}

pub(crate) struct Lane<Q> {
    pub(crate) queue: Q,
    pub(crate) pool: Pool,
    /// Requests were submitted since the last poll.
    pub(crate) staged: bool,
    /// Time of the current wake-up.
    pub(crate) now: Instant,
    slots: Vec<Slot>,
    free: Vec<u32>,
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
            slots: Vec::new(),
            free: Vec::new(),
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

    /// Submits a request under a token that is not in use. The generation makes a second completion of a token harmless.
    pub(crate) fn submit(&mut self, device: &Q::Device, pending: Pending, op: Op) {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, pending: None });
            (self.slots.len() - 1) as u32
        });
        let slot = &mut self.slots[index as usize];
        slot.generation = slot.generation.wrapping_add(1);
        slot.pending = Some(pending);
        let token = u64::from(slot.generation) << 32 | u64::from(index);
        self.queue.submit(device, token, op);
        self.staged = true;
    }

    /// The request of a completion, once.
    pub(crate) fn finish(&mut self, token: u64) -> Option<Pending> {
        let index = token as u32;
        let slot = self.slots.get_mut(index as usize)?;
        if u64::from(slot.generation) != token >> 32 {
            return None;
        }
        let pending = slot.pending.take()?;
        self.free.push(index);
        Some(pending)
    }
}

#[cfg(test)]
mod tests {
    use keyframe_engine::Done;

    use super::*;
    use crate::backend::Backend;
    use crate::memory::{Memory, MemoryExport, MemoryQueue};

    fn pending(cookie: u64) -> Pending {
        Pending { connection: 0, cookie, offset: 0, len: 0, command: Command::Flush, charge: 0 }
    }

    #[test]
    fn a_token_finishes_once() {
        let backend = Memory::new([MemoryExport::new("vm", 512)]);
        let device = backend.open("vm").unwrap();
        let mut lane = Lane::new(backend.queue().unwrap(), 0);
        let token = |lane: &mut Lane<MemoryQueue>, cookie| {
            lane.submit(&device, pending(cookie), Op::Flush);
            let mut done: Vec<Done> = Vec::new();
            lane.queue.poll(&mut done);
            done[0].token
        };
        let first = token(&mut lane, 1);
        assert_eq!(lane.finish(first).map(|pending| pending.cookie), Some(1));
        let second = token(&mut lane, 2);
        assert!(lane.finish(first).is_none(), "the slot is in use by another request");
        assert_eq!(lane.finish(second).map(|pending| pending.cookie), Some(2));
        assert!(lane.finish(second).is_none());
        assert!(lane.finish(u64::MAX).is_none());
    }

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
