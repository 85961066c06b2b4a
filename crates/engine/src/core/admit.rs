//! Who may start writing: space for the worst case, order between overlapping requests, and who is to be woken when it changes.

use std::collections::VecDeque;
use std::sync::Arc;

use super::Core;
use super::stop::{Step, Stop, Wait};
use crate::disk::entry::FANOUT;
use crate::space::Run;
use crate::units::{Lba, PoolBlock, VersionId};

/// Blocks that a head holds for its next writes: sequential guest writes become sequential device writes.
const OPEN_RUN: u64 = 256;

/// Wakes whoever waits for the core to move on.
pub(crate) trait Wake: Send + Sync {
    fn wake(&self);
}

/// How a change treats the blocks it covers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Access {
    /// Replaces whole blocks: overlapping ones may run at the same time, in any order.
    Whole,
    /// Reads, changes and writes back: nothing else may change these blocks meanwhile.
    Exclusive,
    /// Drops whole blocks; needs no data space.
    Punch,
}

/// A write under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct InFlight {
    ticket: u64,
    head: VersionId,
    start: u64,
    end: u64,
    exclusive: bool,
    metadata_blocks: u64,
}

/// Proof of admission; handed back when the write is over.
#[derive(Debug)]
#[must_use]
pub(crate) struct WriteTicket(u64);

/// Writes under way and those who wait.
#[derive(Default)]
pub(crate) struct Admission {
    in_flight: Vec<InFlight>,
    next_ticket: u64,
    promised: u64,
    waiters: Vec<Arc<dyn Wake>>,
    /// Completed attempts to make freed space usable.
    pub(crate) space_rounds: u64,
    /// Somebody waits for space.
    pub(crate) space_wanted: bool,
    /// The background worker may still free something.
    pub(crate) reclaiming: bool,
}

impl Admission {
    /// Registers to be woken once, at the next change.
    pub(crate) fn wait(&mut self, who: &Arc<dyn Wake>) {
        if !self.waiters.iter().any(|w| Arc::ptr_eq(w, who)) {
            self.waiters.push(Arc::clone(who));
        }
    }

    /// Wakes everybody who waits.
    pub(crate) fn wake_all(&mut self) {
        for waiter in self.waiters.drain(..) {
            waiter.wake();
        }
    }
}

impl Core {
    /// Blocks that only deleting, trimming and checkpoints may use.
    pub(crate) fn slop(&self) -> u64 {
        self.state.blocks / 32
    }

    /// Blocks that guests may still fill, all promises kept.
    pub(crate) fn free_for_writes(&self) -> u64 {
        self.space.available().saturating_sub(self.slop() + self.admission.promised)
    }

    /// Admits a change of `count` blocks: nothing overlapping excludes it, and if it stores data, its worst case fits.
    pub(crate) fn admit_write(&mut self, head: VersionId, lba: Lba, count: u64, access: Access) -> Step<WriteTicket> {
        self.refuse_if_poisoned()?;
        let (start, end) = (lba.0, lba.0 + count);
        let exclusive = access == Access::Exclusive;
        let clash = |w: &InFlight| w.head == head && w.start < end && start < w.end && (exclusive || w.exclusive);
        if self.admission.in_flight.iter().any(clash) {
            return Err(Stop::Wait(Wait::Range));
        }
        let mut metadata_blocks = 0;
        if access == Access::Punch {
            // It frees more than it takes, but takes first: the last of the reserve is not for guests.
            if self.space.available() < self.slop() / 2 {
                return Err(Stop::Wait(Wait::Space));
            }
        } else {
            metadata_blocks = count / FANOUT + 3;
            let held_already: u64 = self.head(head)?.runs.iter().map(|run| run.len).sum();
            if self.free_for_writes() + held_already.min(count) < count + metadata_blocks {
                return Err(Stop::Wait(Wait::Space));
            }
        }
        self.admission.promised += metadata_blocks;
        self.admission.next_ticket += 1;
        let ticket = self.admission.next_ticket;
        self.admission.in_flight.push(InFlight { ticket, head, start, end, exclusive, metadata_blocks });
        Ok(WriteTicket(ticket))
    }

    /// A write is over, whatever its outcome.
    pub(crate) fn end_write(&mut self, ticket: WriteTicket) {
        if let Some(i) = self.admission.in_flight.iter().position(|w| w.ticket == ticket.0) {
            let write = self.admission.in_flight.swap_remove(i);
            self.admission.promised -= write.metadata_blocks;
            if write.exclusive || !self.admission.waiters.is_empty() {
                self.admission.wake_all();
            }
        }
    }

    /// Takes blocks for an admitted write, in as few runs as free space allows. On a stop nothing is taken.
    pub(crate) fn allocate(&mut self, id: VersionId, count: u64, out: &mut Vec<Run>) -> Step<()> {
        out.clear();
        let mut missing = count;
        while missing > 0 {
            let head = self.head(id)?;
            let hint = head.hint;
            let Some(run) = head.runs.front_mut() else {
                // What is held for later writes never comes out of the reserve.
                let want = OPEN_RUN.min(self.free_for_writes()).max(missing);
                let mut runs = VecDeque::new();
                let taken = self.space.take_runs(hint, want, &mut runs);
                if taken.is_err() || runs.is_empty() {
                    out.drain(..).for_each(|run| self.space.return_run(run));
                    taken?;
                    return Err(Stop::Wait(Wait::Space));
                }
                self.head(id)?.runs = runs;
                continue;
            };
            let take = run.len.min(missing);
            out.push(Run { start: run.start, len: take });
            *run = Run { start: PoolBlock(run.start.0 + take), len: run.len - take };
            let (end, spent) = (run.start, run.len == 0);
            head.hint = end;
            if spent {
                head.runs.pop_front();
            }
            missing -= take;
        }
        Ok(())
    }
}
