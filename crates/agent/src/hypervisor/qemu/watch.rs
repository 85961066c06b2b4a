//! Follows one running machine: says what happened that nobody asked for, and keeps its memory coming.
//!
//! Whatever changes a machine on purpose has its turn; the follower waits for its own, looks at what is then, and says so
//! if that is not what it should be. So it never mistakes a wish for an accident.

use std::sync::Arc;
use std::time::{Duration, Instant};

use keyframe_agent_api::Power;

use super::bell::Bell;
use super::{Driver, Live, Shared, Slot, load, status};

/// QEMU closes its monitor a moment before it is gone.
const LAST_MOMENT: Duration = Duration::from_secs(10);
/// How long to wait for the turn, and until the next try.
const TURN: Duration = Duration::from_millis(20);
const LOOK_AGAIN: Duration = Duration::from_millis(100);
const IDLE: Duration = Duration::from_secs(3600);
/// Between two tries to replace a page server.
const PAGE_SERVER_AGAIN: Duration = Duration::from_secs(1);

pub(super) fn follow(shared: &Arc<Shared>, slot: &Arc<Slot>, live: &Arc<Live>) {
    let (driver, slot, live) = (Arc::downgrade(shared), Arc::clone(slot), Arc::clone(live));
    let run = move || Follower { driver, slot, live }.run();
    if let Err(e) = std::thread::Builder::new().name("follower".into()).spawn(run) {
        tracing::error!("follow a machine: {e}");
    }
}

struct Follower {
    driver: Driver,
    slot: Arc<Slot>,
    live: Arc<Live>,
}

impl Follower {
    fn run(&self) {
        let bell = Arc::new(Bell::default());
        self.live.qmp.ring(&bell);
        let mut mark = self.live.qmp.mark();
        // What happened before there was a bell.
        let mut unseen = true;
        self.load();
        while !self.live.qmp.is_closed() {
            unseen = unseen && !self.look();
            // Memory must keep coming also while somebody else has the turn.
            bell.wait(Instant::now() + if unseen { LOOK_AGAIN } else { IDLE });
            for event in self.live.qmp.events(&mut mark) {
                match event.name.as_str() {
                    "STOP" | "RESUME" | "BLOCK_IO_ERROR" | "GUEST_PANICKED" | "WATCHDOG" => unseen = true,
                    "MIGRATION" => self.load(),
                    _ => {}
                }
            }
        }
        // Closed from this side, it says nothing about the machine.
        if self.live.process.wait(LAST_MOMENT) {
            while !self.look() {}
        }
    }

    /// Says what the machine does if that is news; `false` if somebody else has the turn.
    fn look(&self) -> bool {
        let Some(shared) = self.driver.upgrade() else { return true };
        let news = {
            let Some(_turn) = self.slot.turn.try_lock_for(TURN) else { return false };
            // A machine started anew has a follower of its own.
            let mine = self.slot.live.lock().as_ref().is_some_and(|live| Arc::ptr_eq(live, &self.live));
            if !mine {
                return true;
            }
            let now = if self.live.process.has_ended() {
                self.slot.ended();
                Power::Off
            } else {
                match status::power(&self.slot, &self.live) {
                    Ok(power) => power,
                    // Its end will be seen.
                    Err(_) => return true,
                }
            };
            let mut known = self.slot.known.lock();
            let news = *known != now;
            *known = now.clone();
            news.then_some(now)
        };
        let changed = shared.changed.lock().clone();
        if let (Some(power), Some(changed)) = (news, changed) {
            changed(self.slot.vm, power);
        }
        true
    }

    /// Sees to the memory that is still to come.
    fn load(&self) {
        if self.live.record.lock().memory.is_none() {
            return;
        }
        let progress = self.live.qmp.execute("query-migrate", serde_json::json!({}));
        let done = match progress.as_ref().ok().and_then(|progress| progress["status"].as_str()) {
            Some("completed") => load::all_in(&self.slot, &self.live).map(drop),
            Some("postcopy-paused") => {
                let Some(shared) = self.driver.upgrade() else { return };
                tracing::warn!(vm = %self.slot.vm, "its page server has gone; starting another");
                std::thread::sleep(PAGE_SERVER_AGAIN);
                load::recover(&shared, &self.slot, &self.live)
            }
            _ => Ok(()),
        };
        if let Err(fault) = done {
            tracing::error!(vm = %self.slot.vm, "its memory: {fault}");
        }
    }
}
