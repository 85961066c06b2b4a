//! What machines and snapshots take: blocks as their arrays count them, and stored memory. One call to the host for a page.

use keyframe_model::Snapshot;
use keyframe_model::agent::{Bytes, SnapshotRef, SpaceRequest, SpaceUse, VolumeRef};

use crate::Result;
use crate::agent::Agent;
use crate::request::{SnapshotSpace, VmSpace};

/// The stored memory of a snapshot.
pub(crate) fn stored(snapshot: &Snapshot) -> Bytes {
    let memory = snapshot.report.as_ref().and_then(|report| report.memory.as_ref());
    memory.map_or(Bytes(0), |memory| memory.stored)
}

fn parts(snapshot: &Snapshot) -> Vec<SnapshotRef> {
    snapshot.hardware.volumes().into_iter().map(|volume| SnapshotRef { volume, snapshot: snapshot.id }).collect()
}

/// What each of these takes, in their order.
pub(crate) async fn of_snapshots(agent: &Agent, snapshots: &[Snapshot]) -> Result<Vec<SnapshotSpace>> {
    let each: Vec<SnapshotRef> = snapshots.iter().flat_map(parts).collect();
    let found = agent.space(&SpaceRequest { each, ..SpaceRequest::default() }).await?.each;
    let mut found = found.into_iter();
    let space = |snapshot: &Snapshot| {
        let disks = found.by_ref().take(snapshot.hardware.disks.len()).flatten();
        let sum = disks.fold(SpaceUse::default(), |sum, one| SpaceUse {
            referenced: sum.referenced + one.referenced,
            unique: sum.unique + one.unique,
        });
        let memory = stored(snapshot);
        SnapshotSpace {
            referenced: sum.referenced,
            unique: sum.unique,
            shared: Bytes(sum.referenced.0.saturating_sub(sum.unique.0)),
            memory,
            would_free: sum.unique + memory,
        }
    };
    Ok(snapshots.iter().map(space).collect())
}

/// What deleting these snapshots and volumes together makes free, without memory.
pub(crate) async fn would_free(agent: &Agent, snapshots: &[Snapshot], volumes: &[VolumeRef]) -> Result<Bytes> {
    let kept = |part: &SnapshotRef| !volumes.contains(&part.volume);
    let would_free = snapshots.iter().flat_map(parts).filter(kept).collect();
    let wish = SpaceRequest { would_free, would_free_volumes: volumes.to_vec(), ..SpaceRequest::default() };
    Ok(agent.space(&wish).await?.would_free)
}

/// What the current state of each of these takes; `None` for what is not there.
pub(crate) async fn of_heads(agent: &Agent, heads: Vec<VolumeRef>) -> Result<Vec<Option<SpaceUse>>> {
    Ok(agent.space(&SpaceRequest { heads, ..SpaceRequest::default() }).await?.heads)
}

/// What a machine takes, with its snapshots.
///
/// `held` are the volumes of its snapshots, `memory` is what their memories take.
pub(crate) async fn of_vm(
    agent: &Agent,
    vm: &keyframe_model::Vm,
    held: Vec<VolumeRef>,
    memory: Bytes,
) -> Result<VmSpace> {
    let heads = vm.hardware.volumes();
    let mut all: std::collections::BTreeSet<VolumeRef> = heads.iter().cloned().collect();
    all.extend(held);
    let would_free_volumes = all.into_iter().collect();
    let found = agent.space(&SpaceRequest { heads, would_free_volumes, ..SpaceRequest::default() }).await?;
    let sum = |part: fn(&SpaceUse) -> Bytes| found.heads.iter().flatten().map(part).sum();
    Ok(VmSpace {
        provisioned: vm.hardware.disks.iter().map(|disk| disk.size).sum(),
        referenced: sum(|space| space.referenced),
        unique: sum(|space| space.unique),
        memory,
        would_free: found.would_free + memory,
    })
}
