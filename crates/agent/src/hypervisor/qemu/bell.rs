//! Wakes one thread from any other. A ring before the wait counts.

use std::time::Instant;

use parking_lot::{Condvar, Mutex};

#[derive(Default)]
pub(super) struct Bell {
    rung: Mutex<bool>,
    sound: Condvar,
}

impl Bell {
    pub(super) fn ring(&self) {
        *self.rung.lock() = true;
        self.sound.notify_all();
    }

    /// Waits for a ring, at most until then; says whether there was one.
    pub(super) fn wait(&self, until: Instant) -> bool {
        let mut rung = self.rung.lock();
        while !*rung && !self.sound.wait_until(&mut rung, until).timed_out() {}
        std::mem::take(&mut rung)
    }
}
