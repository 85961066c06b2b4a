//! How every job takes hold of what it works on, and lets go of it at its end.
//!
//! Taking hold is part of the transaction that makes the job, letting go part of the one that ends it: a machine is busy
//! exactly as long as its job is not ended.

use keyframe_catalog::{Mode, Resource, Transaction};
use keyframe_model::agent::{Generation, JobId, PauseReason, Power, VmId};
use keyframe_model::{Activity, Name, Rest, Snapshot, Vm, VmEvent, VmState};

use crate::job::Outcome;
use crate::{Error, ErrorKind, Result};

/// Refuses if the thing is not the one that the caller has seen.
pub(crate) fn check_generation(what: &str, has: Generation, expected: Option<Generation>) -> Result<()> {
    match expected {
        Some(expected) if expected != has => {
            let message = format!("{what} has changed since (generation {has}, not {expected}); look again");
            Err(Error::new(ErrorKind::Stale, message))
        }
        Some(_) | None => Ok(()),
    }
}

/// The same failure; a name that is taken, with the machine where it is.
pub(crate) fn of_snapshot<'a>(vm: &'a Vm, name: &'a Name) -> impl FnOnce(keyframe_catalog::Error) -> Error + 'a {
    move |e| match e.kind {
        keyframe_catalog::ErrorKind::Taken => Error::new(
            ErrorKind::Taken,
            format!("{} has a snapshot named {name} already; choose another name", vm.name),
        ),
        _ => e.into(),
    }
}

/// Makes a machine busy with the job; nobody else can have it until the job's end.
pub(crate) async fn take_vm(
    tx: &mut Transaction,
    job: JobId,
    vm: VmId,
    expected: Option<Generation>,
    activity: Activity,
) -> Result<Vm> {
    let mut vm = tx.vm(vm).await?;
    check_generation(vm.name.as_str(), vm.generation, expected)?;
    vm.state = vm.after(&VmEvent::Begin { activity, job })?;
    hold_vm(tx, job, &mut vm, activity).await?;
    Ok(vm)
}

/// The same for a machine that is off, whose state would refuse what does no harm.
pub(crate) async fn take_idle_vm(tx: &mut Transaction, job: JobId, vm: VmId, activity: Activity) -> Result<Vm> {
    let mut vm = tx.vm(vm).await?;
    vm.state = VmState::Busy { from: Some(Rest::Stopped), error: None, activity, job };
    hold_vm(tx, job, &mut vm, activity).await?;
    Ok(vm)
}

async fn hold_vm(tx: &mut Transaction, job: JobId, vm: &mut Vm, activity: Activity) -> Result<()> {
    tx.update_vm(vm).await?;
    tx.lock(job, &locks(vm.id, activity)).await?;
    Ok(())
}

/// What is locked of a machine.
pub(crate) fn locks(vm: VmId, activity: Activity) -> Vec<(Resource, Mode)> {
    let mut all = vec![(Resource::Vm(vm), Mode::Exclusive)];
    all.extend(activity.holds_tree().then_some((Resource::Tree(vm), Mode::Exclusive)));
    all
}

/// Adds to what stands in the way of a job the jobs that have what it would lock, unless they are named already.
pub(crate) async fn add_holders(
    tx: &mut Transaction,
    wanted: &[(Resource, Mode)],
    objections: &mut Vec<Error>,
) -> Result<()> {
    for (job, error) in tx.in_the_way(wanted).await? {
        let job = job.to_string();
        if !objections.iter().any(|known| known.message.contains(&job)) {
            objections.push(error.into());
        }
    }
    Ok(())
}

/// What the machine did before the job took it.
pub(crate) fn rest_before(vm: &Vm) -> Rest {
    match vm.state {
        VmState::Busy { from: Some(rest), .. } | VmState::At { rest } => rest,
        VmState::Busy { from: None, .. } | VmState::Error { .. } | VmState::Gone => Rest::Stopped,
    }
}

/// What a host's answer means for a machine at rest.
pub(crate) fn rest_of(power: &Power) -> Rest {
    match power {
        Power::Off => Rest::Stopped,
        Power::Running => Rest::Running,
        Power::Paused { reason } => Rest::Paused { reason: *reason },
    }
}

/// The machine stands still because somebody asked for it.
pub(crate) const PAUSED: Rest = Rest::Paused { reason: PauseReason::Asked };

/// What a job's end means to the machine it worked on; `done` is what it does after a success.
pub(crate) fn vm_event(outcome: &Outcome, done: Rest) -> VmEvent {
    match outcome {
        Outcome::Done => VmEvent::Finished(done),
        Outcome::Undone { .. } => VmEvent::Undone,
        Outcome::Broken { cause, left } => VmEvent::Broke(reason(cause, left)),
    }
}

/// Lets go of a machine that was there before the job. `change` is what else becomes of it.
pub(crate) async fn leave_vm(
    tx: &mut Transaction,
    vm: VmId,
    event: VmEvent,
    change: impl FnOnce(&mut Vm),
) -> Result<()> {
    let mut vm = tx.vm(vm).await?;
    if let (VmEvent::Finished(_), VmState::Busy { activity, .. }) = (&event, &vm.state)
        && matches!(
            activity,
            Activity::Starting | Activity::Stopping | Activity::Resuming | Activity::Resetting | Activity::Applying
        )
    {
        vm.notice = None;
    }
    vm.state = vm.after(&event)?;
    change(&mut vm);
    tx.update_vm(&mut vm).await?;
    Ok(())
}

/// Whether the machine is there and the job has it still.
pub(crate) async fn holds_vm(tx: &mut Transaction, job: JobId, vm: VmId) -> Result<bool> {
    match tx.vm(vm).await {
        Ok(vm) => Ok(matches!(vm.state, VmState::Busy { job: by, .. } if by == job)),
        Err(e) if e.kind == keyframe_catalog::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// Lets go of a machine to which nothing happened, with its locks, while the job goes on.
pub(crate) async fn release_vm(tx: &mut Transaction, job: JobId, vm: VmId, rest: Rest) -> Result<()> {
    if !holds_vm(tx, job, vm).await? {
        return Ok(());
    }
    leave_vm(tx, vm, VmEvent::Finished(rest), |_| {}).await?;
    tx.unlock_these(job, &[Resource::Vm(vm), Resource::Tree(vm)]).await?;
    Ok(())
}

/// Lets go of a machine that the job was to make: it stays only if something of it does.
pub(crate) async fn leave_new_vm(
    tx: &mut Transaction,
    vm: VmId,
    event: VmEvent,
    change: impl FnOnce(&mut Vm),
) -> Result<()> {
    let row = tx.vm(vm).await?;
    if row.after(&event)? == VmState::Gone {
        tx.delete_vm(vm, row.generation).await?;
        return Ok(());
    }
    leave_vm(tx, vm, event, change).await
}

/// Why something cannot be used, for people.
pub(crate) fn reason(cause: &Error, left: &[String]) -> String {
    if left.is_empty() {
        return cause.message.clone();
    }
    // What is left behind for that very reason need not say it again.
    let again = format!(": {}", cause.message);
    let left: Vec<&str> = left.iter().map(|left| left.strip_suffix(&again).unwrap_or(left)).collect();
    format!("{}; left behind: {}", cause.message, left.join(", "))
}

/// Nobody deletes the snapshot until the job's end.
pub(crate) async fn hold_snapshot(tx: &mut Transaction, job: JobId, snapshot: &Snapshot) -> Result<()> {
    snapshot.usable()?;
    tx.lock(job, &[(Resource::Snapshot(snapshot.id), Mode::Shared)]).await?;
    Ok(())
}
