//! Sees to it that the memory of a resumed machine keeps coming.
//!
//! A page server that has gone is replaced, each time after a longer pause, as long as there is hope: an image that is
//! damaged stays so, and servers that all end before they have sent a page more will not be followed by a better one. Then
//! the guest is lost; it may not wait for ever for a page that never comes.

use std::time::{Duration, Instant};

use keyframe_agent_api::{Bytes, FaultKind};

use super::place::remove_file;
use super::process::{self, Process};
use super::qmp::QmpError;
use super::{Live, Shared, Slot, load};
use crate::Result;

/// QEMU's main loop may itself wait for a page.
const ASK: Duration = Duration::from_secs(1);
/// Before the first try, and the longest between two.
const FIRST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(15);
/// So many servers that bring nothing are no accident.
const TRIES: u32 = 8;

pub(super) struct Supply {
    /// QEMU waits for another page server.
    lost: bool,
    /// QEMU has said that all is in.
    complete: bool,
    /// The last one that was started here.
    server: Option<Process>,
    /// How many were started since memory last came.
    tries: u32,
    /// What was still to come at the last try.
    left: Bytes,
    next: Instant,
}

impl Supply {
    pub(super) fn new() -> Supply {
        let next = Instant::now();
        Supply { lost: false, complete: false, server: None, tries: 0, left: Bytes(u64::MAX), next }
    }

    /// Asks how it stands; for what QEMU said before anybody listened.
    pub(super) fn ask(&mut self, live: &Live) {
        match live.qmp.execute_within("query-migrate", serde_json::json!({}), ASK) {
            Ok(progress) => self.hear(progress["status"].as_str().unwrap_or_default()),
            // Whoever waits for a page that nobody sends says nothing; the rest refuse a server that they do not need.
            Err(QmpError::Silent { .. }) => self.lose(),
            Err(_) => {}
        }
    }

    /// Takes in what QEMU says of its migration.
    pub(super) fn hear(&mut self, status: &str) {
        match status {
            "completed" => self.complete = true,
            "postcopy-paused" => self.lose(),
            "postcopy-active" | "postcopy-recover" | "postcopy-recover-setup" => self.lost = false,
            _ => {}
        }
    }

    fn lose(&mut self) {
        if !self.lost {
            self.lost = true;
            // Its server may be about to say why it went.
            self.next = self.next.max(Instant::now() + FIRST);
        }
    }

    /// Does what is to be done now. An error means that the guest is lost.
    pub(super) fn see_to(&mut self, shared: &Shared, slot: &Slot, live: &Live) -> Result<()> {
        if self.complete {
            if let Err(fault) = load::all_in(slot, live) {
                tracing::warn!("{fault}");
            }
            return Ok(());
        }
        if self.server.as_ref().is_some_and(Process::has_ended) {
            self.server = None;
            self.lose();
        }
        let act = "load the rest of its memory";
        // Whatever QEMU says or does not say: no page comes any more.
        if let Some(why) = load::damage(&slot.place) {
            return Err(slot.fault(FaultKind::Corrupt, act, why));
        }
        if !self.lost || Instant::now() < self.next {
            return Ok(());
        }
        let left = load::pending(&slot.place);
        if left < self.left {
            self.tries = 0;
        }
        self.left = left;
        if self.tries == TRIES {
            let why = process::last_words(&slot.place.log());
            return Err(slot.fault(FaultKind::Internal, act, format!("its page servers bring nothing more: {why}")));
        }
        self.next = Instant::now() + LONGEST.min(FIRST * 2_u32.pow(self.tries));
        self.replace(shared, slot, live);
        Ok(())
    }

    fn replace(&mut self, shared: &Shared, slot: &Slot, live: &Live) {
        let Some(image) = live.record.lock().memory.clone() else { return };
        remove_file(&slot.place.memory());
        match live.qmp.execute_oob("migrate-recover", load::uri(&slot.place)) {
            Ok(_) => {
                tracing::warn!(vm = %slot.vm, "its page server has gone; starting another");
                self.tries += 1;
                match load::serve_on(shared, &slot.place, &image) {
                    Ok(server) => (self.server, self.lost) = (Some(server), false),
                    Err(e) => tracing::error!(vm = %slot.vm, "start a page server: {e}"),
                }
            }
            // It has one.
            Err(e) if e.is_refusal() && e.to_string().contains("when postcopy is paused") => self.lost = false,
            Err(e) => tracing::warn!(vm = %slot.vm, "let another page server in: {e}"),
        }
    }
}
