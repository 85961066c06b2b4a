//! Follows one running machine: says what happened that nobody asked for, keeps its memory coming and its logs short.
//!
//! Whatever changes a machine on purpose has its turn; the follower waits for its own, looks at what is then, and says so
//! if that is not what it should be. So it never mistakes a wish for an accident.

use std::sync::Arc;
use std::time::{Duration, Instant};

use keyframe_agent_api::{Fault, Power};

use super::bell::Bell;
use super::mend::Mend;
use super::supply::Supply;
use super::{Driver, Live, Shared, Slot, adopt, hotplug, place, status};
use crate::hypervisor::News;

/// QEMU closes its monitor a moment before it is gone.
const LAST_MOMENT: Duration = Duration::from_secs(5);
/// How long to wait for the turn, and until the next try.
const TURN: Duration = Duration::from_millis(20);
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Between two looks at memory that is still to come.
const SUPPLY: Duration = Duration::from_millis(250);
/// A monitor that says nothing is asked again.
const SILENT: Duration = Duration::from_secs(5);
/// Between two looks at the logs.
const IDLE: Duration = Duration::from_secs(10);

pub(super) fn follow(shared: &Arc<Shared>, slot: &Arc<Slot>, live: &Arc<Live>) {
    let (driver, slot, live) = (Arc::downgrade(shared), Arc::clone(slot), Arc::clone(live));
    let run = move || {
        let (mend, supply) = (Mend::default(), Supply::new());
        Follower { driver, slot, live, mend, supply, unplugged: true, lost: None }.run()
    };
    if let Err(e) = std::thread::Builder::new().name("follower".into()).spawn(run) {
        tracing::error!("follow a machine: {e}");
    }
}

struct Follower {
    driver: Driver,
    slot: Arc<Slot>,
    live: Arc<Live>,
    mend: Mend,
    supply: Supply,
    /// The guest may have let go of a disk.
    unplugged: bool,
    /// What the guest is given up for; whoever has ended it himself, as a start does that fails, says so himself.
    lost: Option<Fault>,
}

impl Follower {
    fn run(mut self) {
        let bell = Arc::new(Bell::default());
        self.live.qmp.ring(&bell);
        let mut mark = self.live.qmp.mark();
        // What happened before there was a bell.
        let mut unseen = true;
        if self.is_loading() {
            self.supply.ask(&self.live);
        }
        while !self.live.qmp.is_closed() {
            // Memory must keep coming also while somebody else has the turn.
            if let Err(fault) = self.see_to_memory() {
                return self.give_up(fault);
            }
            unseen = unseen || self.mend.next().is_some_and(|next| next <= Instant::now());
            unseen = unseen || (self.unplugged && !self.is_loading());
            // Something else may hold its monitor open.
            unseen = unseen || self.live.process.has_ended();
            unseen = unseen && !self.look();
            bell.wait(self.until(unseen));
            for event in self.live.qmp.events(&mut mark) {
                match event.name.as_str() {
                    "STOP" | "RESUME" | "BLOCK_IO_ERROR" | "GUEST_PANICKED" | "WATCHDOG" => unseen = true,
                    "DEVICE_DELETED" => self.unplugged = true,
                    "MIGRATION" => self.supply.hear(event.text("status")),
                    _ => {}
                }
            }
            self.shorten_logs();
        }
        if self.live.process.wait(LAST_MOMENT) {
            while !self.look() {}
        } else if let Some(shared) = self.driver.upgrade()
            && self.is_mine()
        {
            tracing::error!(vm = %self.slot.vm, "its monitor has closed, and it has not ended");
            adopt::again(&shared, &self.slot, &self.live.process);
        }
    }

    fn until(&self, unseen: bool) -> Instant {
        let now = Instant::now();
        let look = unseen.then(|| now + LOOK_AGAIN);
        let supply = self.is_loading().then(|| now + SUPPLY);
        [look, supply, self.mend.next()].into_iter().flatten().fold(now + IDLE, Instant::min)
    }

    /// A machine started anew, or taken over again, has a follower of its own.
    fn is_mine(&self) -> bool {
        self.slot.live.lock().as_ref().is_some_and(|live| Arc::ptr_eq(live, &self.live))
    }

    fn is_loading(&self) -> bool {
        self.live.record.lock().memory.is_some()
    }

    /// Says what the machine does if that is news; `false` if somebody else has the turn.
    fn look(&mut self) -> bool {
        let Some(shared) = self.driver.upgrade() else { return true };
        let (slot, live) = (Arc::clone(&self.slot), Arc::clone(&self.live));
        let mut complaints = Vec::new();
        let news = {
            let Some(_turn) = slot.turn.try_lock_for(TURN) else { return false };
            if !self.is_mine() {
                return true;
            }
            complaints.extend(self.lost.take());
            let now = if live.process.has_ended() {
                slot.ended();
                Some(Power::Off)
            } else {
                // One that waits for a page says nothing, and whoever is here has to see that it comes.
                let patience = if self.is_loading() { SUPPLY } else { SILENT };
                let power = status::power_within(&slot, &live, patience);
                if power.is_ok() {
                    complaints.extend(self.put_back());
                } else {
                    self.mend.later(SILENT);
                }
                power.ok().map(|power| self.mend.settle(&slot, &live, power))
            };
            let mut known = slot.known.lock();
            now.filter(|now| *known != *now).inspect(|now| *known = now.clone())
        };
        if let Some(power) = news {
            shared.tell(&slot, News::Does(power));
        }
        for fault in complaints {
            shared.tell(&slot, News::Complains(fault));
        }
        true
    }

    /// Gives the guest back what it has let go of and should have. One that waits for a page could keep us waiting, too.
    fn put_back(&mut self) -> Vec<Fault> {
        if !self.unplugged || self.is_loading() {
            return Vec::new();
        }
        let done = hotplug::put_back(&self.slot, &self.live);
        self.unplugged = done.is_err();
        done.unwrap_or_else(|fault| {
            tracing::warn!("{fault}");
            Vec::new()
        })
    }

    fn see_to_memory(&mut self) -> std::result::Result<(), Fault> {
        match self.driver.upgrade() {
            Some(shared) if self.is_mine() && self.is_loading() => self.supply.see_to(&shared, &self.slot, &self.live),
            _ => Ok(()),
        }
    }

    /// Ends a guest that would wait for its memory for ever.
    fn give_up(&mut self, fault: Fault) {
        if !self.live.process.kill() {
            tracing::warn!(vm = %self.slot.vm, "is killed, and has not ended yet");
        }
        self.lost = Some(fault);
        while !self.look() {}
    }

    fn shorten_logs(&self) {
        for log in [self.slot.place.log(), self.slot.place.console_log()] {
            if let Err(e) = place::shorten(&log) {
                tracing::warn!("shorten {}: {e}", log.display());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Shutdown;
    use std::sync::atomic::Ordering;

    use super::super::scripted::Scripted;
    use super::*;

    /// Waits for something that has no event.
    fn comes(what: &str, is: impl Fn() -> bool) {
        let until = Instant::now() + Duration::from_secs(30);
        while !is() {
            assert!(Instant::now() < until, "{what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_monitor_that_closes_is_opened_again_while_the_process_lives() {
        let dir = tempfile::tempdir().expect("a folder");
        let machine = Scripted::new(dir.path(), 0);
        follow(&machine.qemu.shared, &machine.slot, &machine.live);
        comes("it is never seen to run", || *machine.slot.known.lock() == Power::Running);
        let connection = machine.connection.lock().take().expect("it is connected");
        connection.shutdown(Shutdown::Both).expect("it can be closed");
        comes("the monitor is not opened again", || {
            let live = machine.slot.live.lock().clone().expect("it lives");
            !Arc::ptr_eq(&live, &machine.live) && !live.qmp.is_closed()
        });
        assert!(machine.live.qmp.is_closed());
        comes("nobody can talk to it", || {
            status::status(&machine.qemu.shared, &machine.slot).is_ok_and(|status| status.power == Power::Running)
        });
        // Its end is seen by the new follower.
        machine.live.process.kill();
        comes("its end is not seen", || *machine.slot.known.lock() == Power::Off);
        assert_eq!(machine.conts.load(Ordering::SeqCst), 0);
    }
}
