//! Freezing a guest's file systems around an instant: what is asked, what the guest answered, and what that is worth.
//!
//! A guest's agent can say what it likes, but its writes come by here: only a guest whose disks fall silent after its answer
//! is taken at its word.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use keyframe_agent_api::{FaultKind, GuestAnswer, Power, Quiesce, TakeInstant, VmId};
use keyframe_nbd::gate::{GateError, GateSet};

use crate::Result;
use crate::fault::{fault, of_gate};
use crate::hypervisor::Hypervisor;

/// Beyond the deadlines of freezing and of holding writes, for the calls in between.
const MARGIN: Duration = Duration::from_secs(5);

/// Disks to which nothing was written for so long are silent.
const SILENCE: Duration = Duration::from_millis(200);
/// The same once something was heard: a guest on a busy host may come to no write for a while.
const LONGER_SILENCE: Duration = Duration::from_millis(600);
/// So long may programs write on which write past file systems, until they come to need one.
const PATIENCE: Duration = Duration::from_secs(2);
/// What a write that was under way before may still take. File systems that are frozen have none.
const UNDER_WAY: Duration = Duration::from_millis(300);
/// A write that is heard is let go at once.
const LONGEST_HOLD: Duration = Duration::from_secs(1);

/// File systems that may be frozen.
pub(super) struct Frozen<'a> {
    hypervisor: &'a dyn Hypervisor,
    vm: VmId,
    since: Instant,
    answer: GuestAnswer,
}

/// Freezes if that is wished. An error means that the instant is not to be taken, and nothing is frozen.
pub(super) fn freeze<'a>(
    hypervisor: &'a dyn Hypervisor,
    wish: &TakeInstant,
    power: &Power,
    gates: &GateSet,
) -> Result<Frozen<'a>> {
    let since = Instant::now();
    let deadline: Duration = wish.deadline.into();
    let answer = match wish.quiesce {
        _ if *power != Power::Running => at_rest(wish, power)?,
        Quiesce::No => GuestAnswer::NotAsked,
        Quiesce::Preferred | Quiesce::Required => {
            let hold = deadline.saturating_mul(2).saturating_add(MARGIN);
            match hypervisor.freeze(wish.vm, deadline, hold) {
                Ok(file_systems) => weigh(hypervisor, wish.vm, file_systems, gates)?,
                Err(fault) => GuestAnswer::Failed { reason: fault.message },
            }
        }
    };
    enough(wish, &answer)?;
    Ok(Frozen { hypervisor, vm: wish.vm, since, answer })
}

impl Frozen<'_> {
    /// Thaws. What the guest answered counts only if it stayed frozen until now. Also, how long it was, at most.
    pub(super) fn thaw(self) -> (GuestAnswer, Duration) {
        match self.answer {
            GuestAnswer::Frozen { .. } => match self.hypervisor.thaw(self.vm) {
                Ok(()) => (self.answer, self.since.elapsed()),
                Err(fault) => (GuestAnswer::Failed { reason: fault.message }, self.since.elapsed()),
            },
            answer => (answer, Duration::ZERO),
        }
    }
}

/// What it is worth that a guest says that it has frozen its file systems. Thaws unless it is worth something.
fn weigh(hypervisor: &dyn Hypervisor, vm: VmId, file_systems: u32, gates: &GateSet) -> Result<GuestAnswer> {
    let silent = fall_silent(gates);
    if let Ok(true) = silent {
        return Ok(GuestAnswer::Frozen { file_systems });
    }
    if let Err(fault) = hypervisor.thaw(vm) {
        tracing::warn!(%vm, "{fault}");
    }
    silent?;
    let reason = format!(
        "it says that it froze {file_systems}, but its disks are written to: it swaps, or uses a disk without a file system, \
         or its agent does not do what it says"
    );
    Ok(GuestAnswer::Failed { reason })
}

/// Whether the writes end.
fn fall_silent(gates: &GateSet) -> Result<bool> {
    let until = Instant::now() + PATIENCE;
    let mut silence = SILENCE;
    while Instant::now() < until {
        let (tell, heard) = channel();
        // Nobody listens any more to those that come after the first.
        let hold = gates.arm(LONGEST_HOLD, move || tell.send(()).unwrap_or(())).map_err(|error| of_gate(&error))?;
        // Who waits for a write that is under way on a slow disk writes nothing new, which is no silence.
        let ended = match hold.drain(UNDER_WAY) {
            Ok(()) => true,
            Err(GateError::InFlight) => false,
            Err(error) => return Err(of_gate(&error)),
        };
        if ended && heard.recv_timeout(silence) == Err(RecvTimeoutError::Timeout) {
            return Ok(true);
        }
        drop(hold);
        silence = LONGER_SILENCE;
    }
    Ok(false)
}

/// Refuses an answer that is less than what was required.
pub(super) fn enough(wish: &TakeInstant, answer: &GuestAnswer) -> Result<()> {
    match (wish.quiesce, answer) {
        (Quiesce::Required, GuestAnswer::Failed { reason }) => {
            let why = format!("the guest of {} did not freeze its file systems, which was required: {reason}", wish.vm);
            Err(fault(FaultKind::Guest, why))
        }
        _ => Ok(()),
    }
}

/// The answer of a machine that is not running: an off one has nothing to freeze, a paused one cannot.
pub(super) fn at_rest(wish: &TakeInstant, power: &Power) -> Result<GuestAnswer> {
    let answer = match (wish.quiesce, power) {
        (Quiesce::No, _) | (_, Power::Off) => GuestAnswer::NotAsked,
        (_, Power::Running | Power::Paused { .. }) => {
            GuestAnswer::Failed { reason: "the machine is paused, so its guest cannot answer; resume it first".into() }
        }
    };
    enough(wish, &answer)?;
    Ok(answer)
}
