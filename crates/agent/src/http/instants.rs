//! Calls about instants and memory images.

use std::sync::Arc;

use axum::extract::{RawQuery, State};
use keyframe_agent_api::{
    Fault, FaultKind, InstantProbe, InstantReport, MemoryInfo, MemoryState, SnapshotId, TakeInstant, VolumeRef,
    WorkProgress,
};

use super::answer::{Answer, Body, Path, Refused, run};
use crate::agent::Agent;
use crate::work::Work;

type Agents = State<Arc<Agent>>;

/// `volume=array/name`, any number of times. Names that are sound need no decoding, and others are refused anyway.
fn volumes(query: Option<&str>) -> Result<Vec<VolumeRef>, Refused> {
    let parts = query.unwrap_or_default().split('&').filter(|part| !part.is_empty());
    let volume = |part: &str| {
        let name = part.strip_prefix("volume=").map(|name| name.replace("%2F", "/").replace("%2f", "/"));
        let parsed = name.as_deref().and_then(|name| name.split_once('/'));
        let (array, volume) = parsed.ok_or_else(|| {
            let why = format!("not a part of this call: {part:?}; say volume=ARRAY/VOLUME");
            Refused(Fault::new(FaultKind::Invalid, why))
        })?;
        Ok(VolumeRef { array: array.to_owned(), volume: volume.to_owned() })
    };
    parts.map(volume).collect()
}

pub(super) async fn take(
    State(agent): Agents,
    Path(snapshot): Path<SnapshotId>,
    Body(wish): Body<TakeInstant>,
) -> Answer<InstantReport> {
    run(agent, "take instant", move |agent| agent.machines.take_instant(snapshot, &wish)).await
}

pub(super) async fn probe(
    State(agent): Agents,
    Path(snapshot): Path<SnapshotId>,
    RawQuery(query): RawQuery,
) -> Answer<InstantProbe> {
    let volumes = volumes(query.as_deref())?;
    run(agent, "probe instant", move |agent| agent.instants.probe(snapshot, &volumes)).await
}

pub(super) async fn delete(
    State(agent): Agents,
    Path(snapshot): Path<SnapshotId>,
    RawQuery(query): RawQuery,
) -> Answer<()> {
    let volumes = volumes(query.as_deref())?;
    run(agent, "delete instant", move |agent| agent.instants.delete(snapshot, &volumes)).await
}

pub(super) async fn cancel(State(agent): Agents, Path(snapshot): Path<SnapshotId>) -> Answer<()> {
    agent.instants.cancel(snapshot);
    Ok(axum::Json(()))
}

pub(super) async fn store(State(agent): Agents, Path(snapshot): Path<SnapshotId>) -> Answer<InstantReport> {
    run(agent, "store memory", move |agent| agent.instants.store_memory(snapshot)).await
}

pub(super) async fn drop_memory(State(agent): Agents, Path(snapshot): Path<SnapshotId>) -> Answer<()> {
    run(agent, "drop memory", move |agent| agent.instants.drop_memory(snapshot)).await
}

pub(super) async fn compress(State(agent): Agents, Path(snapshot): Path<SnapshotId>) -> Answer<MemoryInfo> {
    run(agent, "compress memory", move |agent| agent.instants.compress(snapshot)).await
}

pub(super) async fn progress(State(agent): Agents, Path(snapshot): Path<SnapshotId>) -> Answer<WorkProgress> {
    Ok(axum::Json(agent.instants.progress(snapshot)))
}

/// Nobody reads an image to its end for a caller who has gone away.
pub(super) async fn verify(State(agent): Agents, Path(snapshot): Path<SnapshotId>) -> Answer<MemoryState> {
    let work = WhileAsked(Arc::default());
    let read = Arc::clone(&work.0);
    run(agent, "verify memory", move |agent| agent.instants.verify(snapshot, &read)).await
}

/// Calls a work off when the call that waits for it is dropped, as it is when its connection is closed.
struct WhileAsked(Arc<Work>);

impl Drop for WhileAsked {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_stand_in_the_query() {
        let check = |query: &str, expected: Option<&[(&str, &str)]>| {
            let found = volumes(Some(query)).ok();
            let expected = expected.map(|pairs| {
                let one =
                    |(array, volume): &(&str, &str)| VolumeRef { array: (*array).into(), volume: (*volume).into() };
                pairs.iter().map(one).collect::<Vec<_>>()
            });
            assert_eq!(found, expected, "{query}");
        };
        check("", Some(&[]));
        check("volume=a/b", Some(&[("a", "b")]));
        check("volume=a/b&volume=c%2Fd", Some(&[("a", "b"), ("c", "d")]));
        check("volume=a", None);
        check("disk=a/b", None);
    }
}
