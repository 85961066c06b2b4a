//! Calls about the host and its machines.

use std::sync::Arc;

use axum::extract::State;
use keyframe_agent_api::{
    ConfigureDisk, DiskId, FixIdentity, FixedIdentity, GiveUp, HostInfo, RemoveMachine, SetLink, StartVm, StopVm,
    VmCall, VmId, VmStatus,
};

use super::answer::{Answer, Body, Path, run as call};
use crate::agent::Agent;
use crate::machines::Act;

type Agents = State<Arc<Agent>>;
type Disk = Path<(VmId, DiskId)>;

pub(super) async fn host(State(agent): Agents) -> Answer<HostInfo> {
    call(agent, "host", Agent::host).await
}

pub(super) async fn list(State(agent): Agents) -> Answer<Vec<VmStatus>> {
    call(agent, "list machines", |agent| agent.machines.list()).await
}

pub(super) async fn get(State(agent): Agents, Path(vm): Path<VmId>) -> Answer<VmStatus> {
    call(agent, "show machine", move |agent| agent.machines.status(vm)).await
}

pub(super) async fn stop(State(agent): Agents, Path(vm): Path<VmId>, Body(wish): Body<StopVm>) -> Answer<VmStatus> {
    call(agent, "stop machine", move |agent| agent.machines.stop(vm, &wish)).await
}

pub(super) async fn run(State(agent): Agents, Path(vm): Path<VmId>, Body(wish): Body<StartVm>) -> Answer<VmStatus> {
    call(agent, "run machine", move |agent| agent.machines.run(vm, &wish)).await
}

pub(super) async fn check(State(agent): Agents, Path(_): Path<VmId>, Body(wish): Body<StartVm>) -> Answer<()> {
    call(agent, "check machine", move |agent| agent.machines.check(&wish)).await
}

pub(super) async fn give_up(State(agent): Agents, Path(vm): Path<VmId>, Body(wish): Body<GiveUp>) -> Answer<VmStatus> {
    call(agent, "give machine up", move |agent| agent.machines.give_up(vm, &wish)).await
}

pub(super) async fn pause(State(agent): Agents, Path(vm): Path<VmId>, Body(wish): Body<VmCall>) -> Answer<VmStatus> {
    call(agent, "pause machine", move |agent| agent.machines.act(vm, &wish, Act::Pause)).await
}

pub(super) async fn resume(State(agent): Agents, Path(vm): Path<VmId>, Body(wish): Body<VmCall>) -> Answer<VmStatus> {
    call(agent, "resume machine", move |agent| agent.machines.act(vm, &wish, Act::Resume)).await
}

pub(super) async fn reset(State(agent): Agents, Path(vm): Path<VmId>, Body(wish): Body<VmCall>) -> Answer<VmStatus> {
    call(agent, "reset machine", move |agent| agent.machines.act(vm, &wish, Act::Reset)).await
}

pub(super) async fn add_disk(
    State(agent): Agents,
    Path((vm, disk)): Disk,
    Body(wish): Body<ConfigureDisk>,
) -> Answer<()> {
    call(agent, "add disk", move |agent| agent.machines.add_disk(vm, disk, &wish)).await
}

pub(super) async fn remove_disk(State(agent): Agents, Path((vm, disk)): Disk, Body(wish): Body<VmCall>) -> Answer<()> {
    call(agent, "remove disk", move |agent| agent.machines.remove_disk(vm, disk, &wish)).await
}

pub(super) async fn disk_resized(State(agent): Agents, Path((vm, disk)): Disk, Body(wish): Body<VmCall>) -> Answer<()> {
    call(agent, "disk resized", move |agent| agent.machines.disk_resized(vm, disk, &wish)).await
}

pub(super) async fn link(State(agent): Agents, Path(vm): Path<VmId>, Body(wish): Body<SetLink>) -> Answer<()> {
    call(agent, "set link", move |agent| agent.machines.set_link(vm, &wish)).await
}

pub(super) async fn identity(
    State(agent): Agents,
    Path(vm): Path<VmId>,
    Body(wish): Body<FixIdentity>,
) -> Answer<FixedIdentity> {
    call(agent, "fix identity", move |agent| agent.machines.fix_identity(vm, &wish)).await
}

pub(super) async fn remove(State(agent): Agents, Path(vm): Path<VmId>, Body(wish): Body<RemoveMachine>) -> Answer<()> {
    call(agent, "remove machine", move |agent| agent.machines.remove(vm, &wish)).await
}
