//! A long work: how far it is, for whoever asks meanwhile, and whether it is to end. Shared by who does it and who asks.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use keyframe_agent_api::WorkProgress;

use crate::hypervisor::Cancel;

/// One work.
#[derive(Default, Debug)]
pub struct Work {
    cancelled: AtomicBool,
    done: AtomicU64,
    total: AtomicU64,
}

impl Work {
    /// It is to end.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::SeqCst);
    }

    /// It is at `done` of `total`, in a unit of its own.
    pub fn reached(&self, done: u64, total: u64) {
        self.done.store(done, Ordering::Relaxed);
        self.total.store(total, Ordering::Relaxed);
    }

    /// How far it is. Done and total may be of two moments, which is good enough for people.
    pub fn progress(&self) -> WorkProgress {
        let (done, total) = (self.done.load(Ordering::Relaxed), self.total.load(Ordering::Relaxed));
        WorkProgress { done: done.min(total), total }
    }
}

impl Cancel for Work {
    fn cancelled(&self) -> bool {
        self.cancelled.load(Ordering::SeqCst)
    }
}
