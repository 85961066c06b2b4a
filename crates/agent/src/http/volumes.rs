//! Calls about volumes.

use std::sync::Arc;

use axum::extract::State;
use keyframe_agent_api::{
    CreateVolume, DiffRequest, DiffResponse, ResizeVolume, RevertVolume, SnapshotId, SpaceRequest, SpaceResponse,
    VolumeInfo, VolumeRef, WorkProgress,
};
use serde::Deserialize;

use super::answer::{Answer, Body, Path, Query, run};
use crate::agent::Agent;

/// Volumes in one answer unless the caller says otherwise, and at most.
const PAGE: usize = 1000;

#[derive(Deserialize)]
pub(super) struct Page {
    after: Option<String>,
    limit: Option<usize>,
}

type Agents = State<Arc<Agent>>;
type Of = Path<(String, String)>;

fn volume((array, volume): (String, String)) -> VolumeRef {
    VolumeRef { array, volume }
}

pub(super) async fn list(
    State(agent): Agents,
    Path(array): Path<String>,
    Query(page): Query<Page>,
) -> Answer<Vec<VolumeInfo>> {
    let limit = page.limit.unwrap_or(PAGE).min(PAGE);
    run(agent, "list volumes", move |agent| agent.volumes.list(&array, page.after.as_deref(), limit)).await
}

pub(super) async fn create(State(agent): Agents, Path(of): Of, Body(wish): Body<CreateVolume>) -> Answer<VolumeInfo> {
    run(agent, "create volume", move |agent| agent.volumes.create(&volume(of), &wish)).await
}

pub(super) async fn cancel(State(agent): Agents, Path(of): Of) -> Answer<()> {
    run(agent, "cancel volume", move |agent| agent.volumes.cancel(&volume(of))).await
}

pub(super) async fn progress(State(agent): Agents, Path(of): Of) -> Answer<WorkProgress> {
    run(agent, "progress of volume", move |agent| agent.volumes.progress(&volume(of))).await
}

pub(super) async fn get(State(agent): Agents, Path(of): Of) -> Answer<VolumeInfo> {
    run(agent, "show volume", move |agent| agent.volumes.get(&volume(of))).await
}

pub(super) async fn delete(State(agent): Agents, Path(of): Of) -> Answer<()> {
    run(agent, "delete volume", move |agent| agent.volumes.delete(&volume(of))).await
}

pub(super) async fn resize(State(agent): Agents, Path(of): Of, Body(wish): Body<ResizeVolume>) -> Answer<VolumeInfo> {
    run(agent, "resize volume", move |agent| agent.volumes.resize(&volume(of), &wish)).await
}

pub(super) async fn revert(State(agent): Agents, Path(of): Of, Body(wish): Body<RevertVolume>) -> Answer<()> {
    run(agent, "revert volume", move |agent| agent.revert(&volume(of), &wish)).await
}

pub(super) async fn delete_snapshot(
    State(agent): Agents,
    Path((array, name, snapshot)): Path<(String, String, SnapshotId)>,
) -> Answer<()> {
    let of = volume((array, name));
    run(agent, "delete snapshot", move |agent| agent.volumes.delete_snapshot(&of, snapshot)).await
}

pub(super) async fn space(State(agent): Agents, Body(ask): Body<SpaceRequest>) -> Answer<SpaceResponse> {
    run(agent, "space", move |agent| agent.volumes.space(&ask)).await
}

pub(super) async fn diff(State(agent): Agents, Body(ask): Body<DiffRequest>) -> Answer<DiffResponse> {
    run(agent, "diff", move |agent| agent.volumes.diff(&ask)).await
}
