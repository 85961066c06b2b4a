//! Keeps the catalog equal to the hosts: what machines do that nobody asked for, whether hosts answer, and what has expired.
//!
//! Takes no input: it looks, compares, and changes the catalog; doing it again changes nothing. A machine that a job works
//! on is left to the job.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use keyframe_catalog::{Catalog, Host, Leftover, Transaction};
use keyframe_model::agent::{
    Fault, FaultKind, Generation, HostId, HostInfo, PauseReason, Power, Timestamp, VmEvent as AgentEvent, VmId,
    VmStatus,
};
use keyframe_model::{Notice, Rest, Vm, VmEvent, VmState, delete};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use crate::agent::{Agent, Events};
use crate::job::{FULL, named};
use crate::kind::hold::rest_of;
use crate::kind::snapshot_delete::{SnapshotDelete, SnapshotDeleteOrder};
use crate::{ErrorKind, Manager, Result};

/// The name of the one host that there is so far.
pub(crate) const LOCAL: &str = "local";
/// Until the stream of events of a host that does not answer is tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// When a host is looked at again after a machine has changed that a job has.
const SOON: Duration = Duration::from_millis(500);
/// How often what has expired is looked for.
const TIDY: Duration = Duration::from_secs(10);
/// Most automatic snapshots that are deleted in one go; their jobs have to end first.
const PRUNE: u32 = 100;
/// So many events are kept for those who were away.
const EVENTS: u32 = 100_000;

/// Writes the host down.
pub(crate) async fn register(catalog: &Catalog, agent: &Agent) -> Result<()> {
    let mut tx = catalog.write().await?;
    match tx.find_host(LOCAL).await? {
        Some(host) if host.address == agent.name() => {}
        Some(mut host) => {
            host.address = agent.name().to_owned();
            tx.update_host(&mut host).await?;
        }
        None => {
            let (id, name, address) = (HostId::new(), LOCAL.to_owned(), agent.name().to_owned());
            tx.insert_host(&Host { id, name, address, generation: Generation(1), info: None, seen: None }).await?;
        }
    }
    tx.commit().await?;
    Ok(())
}

/// Listens to the host for ever, and looks at all of it whenever it has missed something.
pub(crate) async fn listen(manager: Arc<Manager>, look: Duration) {
    loop {
        match manager.agent.events().await {
            Ok(mut events) => {
                if let Err(e) = follow(&manager, &mut events, look).await {
                    tracing::debug!(error = &e as &dyn std::error::Error, "the host's events broke off");
                }
            }
            Err(e) => tracing::debug!(error = &e as &dyn std::error::Error, "the host has no events"),
        }
        sleep(AGAIN).await;
    }
}

async fn follow(manager: &Manager, events: &mut Events, look: Duration) -> Result<()> {
    // Looked at only once the stream is open, so that nothing is missed between.
    look_at_host(manager).await?;
    let mut looked = tokio::time::Instant::now();
    // Those that changed while a job had them: they may not be what the job leaves them as.
    let mut missed: HashSet<VmId> = HashSet::new();
    loop {
        let pause = if missed.is_empty() { look } else { look.min(SOON) };
        if looked.elapsed() >= pause {
            let busy = look_at_host(manager).await?;
            missed.retain(|vm| busy.contains(vm));
            looked = tokio::time::Instant::now();
        }
        match timeout(pause, events.next()).await {
            Err(_) => {}
            Ok(event) => match event? {
                Some(AgentEvent::Changed(status)) => {
                    if observe(manager, status.vm, &status.power).await? {
                        missed.insert(status.vm);
                    }
                }
                Some(AgentEvent::Complaint { vm, fault }) => complain(manager, vm, &fault).await?,
                None => return Ok(()),
            },
        }
    }
}

/// Compares all machines with what the host says, but those that jobs have or had meanwhile; says which those are.
pub(crate) async fn look_at_host(manager: &Manager) -> Result<HashSet<VmId>> {
    let seen = generations(manager).await?;
    let info = manager.agent.host().await?;
    let statuses = manager.agent.vms().await?;
    compare(manager, &seen, info, &statuses).await
}

/// All machines as they are before the host is asked: what it says of one that has changed since is older than the change.
pub(crate) async fn generations(manager: &Manager) -> Result<HashMap<VmId, Generation>> {
    let all = manager.catalog.read().await?.all_vms().await?;
    Ok(all.into_iter().map(|vm| (vm.id, vm.generation)).collect())
}

pub(crate) async fn compare(
    manager: &Manager,
    seen: &HashMap<VmId, Generation>,
    info: HostInfo,
    statuses: &[VmStatus],
) -> Result<HashSet<VmId>> {
    let mut tx = manager.catalog.write().await?;
    if let Some(mut host) = tx.find_host(LOCAL).await?
        && (host.info.as_ref().map(steady) != Some(steady(&info)) || host.seen.is_none())
    {
        (host.info, host.seen) = (Some(info), Some(Timestamp::now()));
        tx.update_host(&mut host).await?;
    }
    let mut busy = HashSet::new();
    for vm in tx.all_vms().await? {
        if matches!(vm.state, VmState::Busy { .. }) || seen.get(&vm.id) != Some(&vm.generation) {
            busy.insert(vm.id);
            continue;
        }
        let status = statuses.iter().find(|status| status.vm == vm.id);
        let power = status.map_or(Power::Off, |status| status.power.clone());
        settle(&mut tx, vm, &power).await?;
    }
    tx.commit().await?;
    Ok(busy)
}

/// Writes down what a machine does, and why, if nobody wished it.
async fn settle(tx: &mut Transaction, mut vm: Vm, power: &Power) -> Result<()> {
    let next = vm.after(&VmEvent::Observed(rest_of(power)))?;
    if next == vm.state {
        return Ok(());
    }
    tracing::info!(vm = %vm.name, was = %vm.state, now = %next, "changed by itself");
    let text = match (power, &vm.state) {
        (Power::Off, _) => {
            "its process ended although nobody stopped it here: the guest shut down, or the process was killed"
                .to_owned()
        }
        (Power::Paused { reason: PauseReason::NoSpace }, _) => {
            "it stands still because its storage is full; it goes on when there is space".to_owned()
        }
        (Power::Paused { reason: PauseReason::IoError }, _) => {
            "it stands still because a disk failed; resuming it tries again".to_owned()
        }
        (Power::Paused { reason: PauseReason::Crashed }, _) => {
            "its guest has crashed; reset it, or apply a snapshot to it".to_owned()
        }
        (Power::Paused { reason: PauseReason::Asked }, _) => "it was paused, but not here".to_owned(),
        (Power::Running, VmState::At { rest: rest @ Rest::Paused { .. } }) => {
            format!("it was {rest}, and goes on again")
        }
        (Power::Running, _) => "it was started, but not here".to_owned(),
    };
    vm.state = next;
    notice(tx, vm, text).await
}

/// Writes down what people should know of a machine, and tells whoever listens.
async fn notice(tx: &mut Transaction, mut vm: Vm, text: String) -> Result<()> {
    vm.notice = Some(Notice { at: Timestamp::now(), text: text.clone() });
    tx.update_vm(&mut vm).await?;
    tx.remark(&text);
    Ok(())
}

/// Writes down what went wrong on the host without anybody having asked for anything, in words that people know.
async fn complain(manager: &Manager, vm: VmId, fault: &Fault) -> Result<()> {
    tracing::warn!(%vm, error = %fault, "the host complains");
    let mut tx = manager.catalog.write().await?;
    let vm = match tx.vm(vm).await {
        Ok(vm) => vm,
        Err(e) if e.kind == keyframe_catalog::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e.into()),
    };
    let text = named(&mut tx, &fault.message).await;
    notice(&mut tx, vm, text).await?;
    tx.commit().await?;
    Ok(())
}

/// What of a host does not change all the time.
fn steady(info: &HostInfo) -> (String, String, String, usize) {
    (info.agent.clone(), info.hypervisor.clone(), info.machine_type.clone(), info.arrays.len())
}

/// Writes down what a machine does now, unless a job has it; says whether one has.
async fn observe(manager: &Manager, vm: VmId, power: &Power) -> Result<bool> {
    let seen = manager.catalog.read().await?.vm(vm).await;
    let differs = |state: &VmState| matches!(state, VmState::At { rest } if *rest != rest_of(power));
    match seen {
        Ok(vm) if differs(&vm.state) => {}
        Ok(vm) => return Ok(matches!(vm.state, VmState::Busy { .. })),
        Err(e) if e.kind == keyframe_catalog::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(e.into()),
    }
    // The event may be older than the job that has ended since: what counts is what the machine does now.
    let power = match manager.agent.vm(vm).await {
        Ok(status) => status.power,
        Err(e) if e.kind == ErrorKind::from(FaultKind::NotFound) => Power::Off,
        Err(e) => return Err(e),
    };
    let mut tx = manager.catalog.write().await?;
    let vm = tx.vm(vm).await?;
    settle(&mut tx, vm, &power).await?;
    tx.commit().await?;
    Ok(false)
}

/// Deletes what has expired, for ever.
pub(crate) async fn tidy(manager: Arc<Manager>, memory: Duration) {
    let mut ticks = interval(TIDY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told = false;
    loop {
        ticks.tick().await;
        if let Err(e) = tell_of_room(&manager, &mut told).await {
            tracing::warn!(error = &e as &dyn std::error::Error, "cannot tell how full the catalog's disk is");
        }
        if let Err(e) = prune(&manager, memory).await {
            tracing::warn!(error = &e as &dyn std::error::Error, "cannot delete what has expired");
        }
        if let Err(e) = clear(&manager).await {
            tracing::warn!(error = &e as &dyn std::error::Error, "cannot delete what jobs have left");
        }
    }
}

/// Looks after the catalog's reserve, and tells whoever listens when nothing else is left, and when there is room again.
pub(crate) async fn tell_of_room(manager: &Manager, told: &mut bool) -> Result<()> {
    manager.catalog.tend_reserve().await?;
    let short = manager.catalog.is_short_of_room();
    if short == *told {
        return Ok(());
    }
    let mut tx = manager.catalog.write().await?;
    if let Some(mut host) = tx.find_host(LOCAL).await? {
        tx.update_host(&mut host).await?;
        tx.remark(if short { FULL } else { "there is room again on the disk that the catalog is on" });
    }
    tx.commit().await?;
    *told = short;
    Ok(())
}

/// Deletes what jobs could not delete, unless something refers to it.
pub(crate) async fn clear(manager: &Manager) -> Result<()> {
    let all = manager.catalog.read().await?.leftovers().await?;
    for left in all {
        if manager.catalog.read().await?.is_wanted(&left).await? {
            continue;
        }
        let gone = match &left {
            Leftover::Instant { snapshot, volumes } => manager.agent.delete_instant(*snapshot, volumes).await,
            Leftover::Volume(volume) => manager.agent.delete_volume(volume).await,
        };
        match gone {
            Err(e) if e.kind != ErrorKind::NotFound => {
                tracing::warn!(?left, error = &e as &dyn std::error::Error, "cannot be deleted yet");
            }
            Ok(()) | Err(_) => {
                tracing::info!(?left, "is deleted, which a job could not do");
                let mut tx = manager.catalog.write().await?;
                tx.delete_leftover(&left).await?;
                tx.commit().await?;
            }
        }
    }
    Ok(())
}

/// Deletes what has expired now.
pub(crate) async fn prune(manager: &Manager, memory: Duration) -> Result<()> {
    let now = Timestamp::now();
    let expired = manager.catalog.read().await?.expired_snapshots(now, PRUNE).await?;
    for snapshot in expired {
        let order = SnapshotDeleteOrder {
            vm: snapshot.vm,
            doomed: delete::Doomed::One(snapshot.id),
            expected: Some(snapshot.generation),
        };
        match manager.engine.submit::<SnapshotDelete>("expiry", order).await {
            Ok(job) => tracing::info!(snapshot = %snapshot.name, %job, "has expired and is deleted"),
            // Its turn comes when whatever is done to the machine is done.
            Err(e) if matches!(e.kind, ErrorKind::Busy | ErrorKind::Stale | ErrorKind::NotFound) => {}
            Err(e) => tracing::warn!(snapshot = %snapshot.name, error = %e, "has expired but cannot be deleted"),
        }
    }
    let before = Timestamp(now.0.saturating_sub(i64::try_from(memory.as_micros()).unwrap_or(i64::MAX)));
    let mut tx = manager.catalog.write().await?;
    tx.prune_jobs(before, 1000).await?;
    tx.prune_requests(before).await?;
    tx.prune_events(EVENTS).await?;
    tx.commit().await?;
    Ok(())
}
