//! Lets a guest go on that stands still though it should run: a hiccup of the monitor left it so, its disks were away for too
//! long, or there was no space. Nothing tells when that is over, so it is tried, each time after a longer pause; a guest that
//! meets the same trouble again stops at the same place again, and nothing is lost.

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use keyframe_agent_api::{PauseReason, Power};
use serde_json::json;

use super::place::Wish;
use super::{ASKED, Live, Slot, life, status};

const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);
/// A disk that fails as often, with its server there, is broken.
const DISK_TRIES: u32 = 6;
/// Who has run for so long stops for another reason.
const NEW_TROUBLE: Duration = Duration::from_secs(600);
/// Until a guest that meets its trouble again has stopped.
const STUMBLE: Duration = Duration::from_millis(200);

#[derive(Default)]
pub(super) struct Mend {
    tries: u32,
    last: Option<Instant>,
    next: Option<Instant>,
}

impl Mend {
    /// When to look again.
    pub(super) fn next(&self) -> Option<Instant> {
        self.next
    }

    /// Looks again a moment later, whatever it does then.
    pub(super) fn later(&mut self, pause: Duration) {
        self.next = Some(Instant::now() + pause);
    }

    /// What a machine does once everything was done that makes it go on. The caller has its turn.
    pub(super) fn settle(&mut self, slot: &Slot, live: &Live, now: Power) -> Power {
        if self.last.is_some_and(|last| last.elapsed() > NEW_TROUBLE) {
            self.tries = 0;
        }
        let stands = live.record.lock().wish == Wish::Running && slot.covered.lock().is_none() && self.is_curable(&now);
        if !stands {
            self.next = None;
            return now;
        }
        if self.next.is_some_and(|next| Instant::now() < next) {
            return now;
        }
        let waited = self.next.take().is_some();
        // A disk or its space is not back at once.
        let early = now != ASKED && !waited;
        if early || !has_disks(live) || !is_left_standing(live) {
            self.later(FIRST);
            return now;
        }
        tracing::warn!(vm = %slot.vm, state = ?now, "it stands still and should run; it goes on");
        self.tries += 1;
        self.last = Some(Instant::now());
        self.later(LONGEST.min(FIRST * 2_u32.saturating_pow(self.tries)));
        if let Err(fault) = life::go_on(slot, live) {
            tracing::warn!("{fault}");
            return now;
        }
        std::thread::sleep(STUMBLE);
        let then = status::ask(slot, live).unwrap_or(now);
        if then == Power::Running {
            self.next = None;
        }
        then
    }

    fn is_curable(&self, power: &Power) -> bool {
        match power {
            Power::Paused { reason: PauseReason::Asked | PauseReason::NoSpace } => true,
            Power::Paused { reason: PauseReason::IoError } => self.tries < DISK_TRIES,
            _ => false,
        }
    }
}

/// Whether the servers of its disks are there.
fn has_disks(live: &Live) -> bool {
    let record = live.record.lock().clone();
    record.blocks.values().all(|block| UnixStream::connect(&block.socket).is_ok())
}

/// Whether it is in a state that a plain `cont` ends.
fn is_left_standing(live: &Live) -> bool {
    let state = live.qmp.execute("query-status", json!({}));
    state.is_ok_and(|state| {
        matches!(state["status"].as_str(), Some("paused" | "postmigrate" | "prelaunch" | "io-error"))
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::super::scripted::Scripted;
    use super::*;

    fn standing(reason: PauseReason) -> Power {
        Power::Paused { reason }
    }

    #[test]
    fn a_guest_that_was_left_standing_goes_on_at_once_and_others_after_a_while() {
        let dir = tempfile::tempdir().expect("a folder");
        let Scripted { slot, live, conts, .. } = &Scripted::new(dir.path(), 1);
        let mut mend = Mend::default();
        assert_eq!(mend.settle(slot, live, ASKED), Power::Running);
        assert_eq!((conts.load(Ordering::SeqCst), mend.next()), (1, None));
        // What somebody asked for, and what has crashed, stays.
        live.record.lock().wish = Wish::Paused;
        assert_eq!(mend.settle(slot, live, ASKED), ASKED);
        live.record.lock().wish = Wish::Running;
        let crashed = standing(PauseReason::Crashed);
        assert_eq!((mend.settle(slot, live, crashed.clone()), mend.next()), (crashed, None));
        let Scripted { slot, live, conts, .. } = &Scripted::new(dir.path(), 1);
        let (mut mend, full) = (Mend::default(), standing(PauseReason::NoSpace));
        assert_eq!(mend.settle(slot, live, full.clone()), full, "there is space at once");
        assert_eq!(conts.load(Ordering::SeqCst), 0);
        std::thread::sleep(FIRST);
        assert_eq!(mend.settle(slot, live, full), Power::Running);
    }

    #[test]
    fn a_broken_disk_is_not_tried_for_ever() {
        let dir = tempfile::tempdir().expect("a folder");
        let Scripted { slot, live, conts, .. } = &Scripted::new(dir.path(), usize::MAX);
        let (mut mend, broken) = (Mend::default(), standing(PauseReason::IoError));
        for _ in 0..20 {
            assert_eq!(mend.settle(slot, live, broken.clone()), broken);
            // As if the pause were over.
            mend.next = mend.next.map(|_| Instant::now());
        }
        assert_eq!((conts.load(Ordering::SeqCst), mend.next()), (DISK_TRIES as usize, None));
    }
}
