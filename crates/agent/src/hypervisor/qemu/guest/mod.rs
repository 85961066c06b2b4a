//! What a guest's agent does for us. It may hang, die or lie at any moment; nothing here believes more than it checked.
//!
//! Freezing is left to a process of its own ([`freezer`]), because a thaw must follow whatever becomes of this one.

pub(super) mod freezer;
mod identity;
pub(super) mod thaw;

use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::process::{ChildStdin, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use keyframe_agent_api::FaultKind;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::place::remove_file;
use super::process::detach;
use super::{Shared, Slot, helper};
use crate::Result;
pub(super) use identity::fix as fix_identity;

/// What the freezer needs beyond its own deadlines.
const GRACE: Duration = Duration::from_secs(5);
/// A thaw waits for the guest's file systems, not for I/O.
const THAW: Duration = Duration::from_secs(10);

/// A freezer at work: as long as its input is open, the agent lives.
pub(super) struct Freezer {
    tell: ChildStdin,
    hear: BufReader<ChildStdout>,
}

impl Freezer {
    /// Its next line, if it comes in time.
    fn line(&mut self, until: Instant) -> Option<String> {
        if self.hear.buffer().is_empty() {
            let left = until.saturating_duration_since(Instant::now());
            let timeout = Timespec { tv_sec: i64::try_from(left.as_secs()).ok()?, tv_nsec: left.subsec_nanos().into() };
            let fd = self.hear.get_ref().as_fd();
            if poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)).ok()? == 0 {
                return None;
            }
        }
        // The freezer writes whole lines.
        let mut line = String::new();
        self.hear.read_line(&mut line).ok()?;
        Some(line.trim_end().to_owned())
    }
}

pub(super) fn freeze(shared: &Shared, slot: &Slot, deadline: Duration, hold: Duration) -> Result<u32> {
    let _turn = slot.turn();
    slot.live()?;
    let mut current = slot.freezer.lock();
    if current.is_some() {
        return Err(slot.fault(FaultKind::Conflict, "freeze", "it is frozen already; thaw it first"));
    }
    let until = Instant::now() + deadline + GRACE;
    let trouble = slot.file("start its freezer");
    let mark = slot.place.frozen();
    let may_be_frozen = mark.exists();
    std::fs::write(&mark, b"").map_err(&trouble)?;
    let mut command = helper::command(&shared.config, "freezer").map_err(&trouble)?;
    command.arg(slot.place.agent()).arg(deadline.as_millis().to_string()).arg(hold.as_millis().to_string());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    detach(&mut command);
    let mut child = command.spawn().map_err(&trouble)?;
    let (Some(tell), Some(hear)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(slot.fault(FaultKind::Internal, "freeze", "the freezer has no pipes"));
    };
    let reap = move || drop(child.wait());
    std::thread::Builder::new().name("reaper".into()).stack_size(64 << 10).spawn(reap).map_err(&trouble)?;
    let mut freezer = Freezer { tell, hear: BufReader::new(hear) };
    // Dropped with an error, it thaws what may come to be frozen later.
    let said = freezer.line(until).unwrap_or_else(|| "deadline the freezer does not answer".into());
    let said = match said.strip_prefix(freezer::UNASKED) {
        Some(why) => {
            if !may_be_frozen {
                remove_file(&mark);
            }
            why
        }
        None => &said,
    };
    match said.split_once(' ') {
        Some(("frozen", count)) if count.parse::<u32>().is_ok() => {
            *current = Some(freezer);
            Ok(count.parse().unwrap_or(0))
        }
        Some(("deadline", why)) => Err(slot.fault(FaultKind::Deadline, "freeze", why)),
        Some((_, why)) => Err(slot.fault(FaultKind::Guest, "freeze", why)),
        None => Err(slot.fault(FaultKind::Guest, "freeze", "the freezer has ended")),
    }
}

pub(super) fn thaw(slot: &Slot) -> Result<()> {
    let _turn = slot.turn();
    let freezer = slot.freezer.lock().take();
    let Some(mut freezer) = freezer else {
        return Err(slot.fault(FaultKind::Conflict, "thaw", "it is not frozen"));
    };
    // When the freezer has gone already, its last line says why.
    let told = freezer.tell.write_all(b"thaw\n");
    let said = freezer.line(Instant::now() + THAW + GRACE).unwrap_or_default();
    drop(freezer);
    match (told, said.as_str()) {
        (Ok(()), "thawed") => {
            remove_file(&slot.place.frozen());
            Ok(())
        }
        (_, "") => {
            if let Err(e) = thaw::directly(slot) {
                tracing::error!(vm = %slot.vm, "it may still be frozen: {e}");
            }
            Err(slot.fault(
                FaultKind::Guest,
                "thaw",
                "the freezer has ended; nobody knows since when the guest is thawed",
            ))
        }
        (_, said) => Err(slot.fault(FaultKind::Guest, "thaw", said.strip_prefix("lost ").unwrap_or(said))),
    }
}
