//! Freezing a guest's file systems around an instant: what is asked, what the guest answered, and what that is worth.

use std::time::{Duration, Instant};

use keyframe_agent_api::{FaultKind, GuestAnswer, Power, Quiesce, TakeInstant, VmId};

use crate::Result;
use crate::fault::fault;
use crate::hypervisor::Hypervisor;

/// Beyond the deadlines of freezing and of holding writes, for the calls in between.
const MARGIN: Duration = Duration::from_secs(5);

/// File systems that may be frozen.
pub(super) struct Frozen<'a> {
    hypervisor: &'a dyn Hypervisor,
    vm: VmId,
    since: Instant,
    answer: GuestAnswer,
}

/// Freezes if that is wished. An error means that the instant is not to be taken, and nothing is frozen.
pub(super) fn freeze<'a>(hypervisor: &'a dyn Hypervisor, wish: &TakeInstant, power: &Power) -> Result<Frozen<'a>> {
    let since = Instant::now();
    let deadline: Duration = wish.deadline.into();
    let answer = match wish.quiesce {
        _ if *power != Power::Running => at_rest(wish, power)?,
        Quiesce::No => GuestAnswer::NotAsked,
        Quiesce::Preferred | Quiesce::Required => {
            let hold = deadline.saturating_mul(2).saturating_add(MARGIN);
            match hypervisor.freeze(wish.vm, deadline, hold) {
                Ok(file_systems) => GuestAnswer::Frozen { file_systems },
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
