//! Machines.

use keyframe_manager::request::{
    Apply, ConsoleRequest, JobView, Page, PageRequest, PlanView, StartRequest, StopRequest, VmCreate, VmDelete,
    VmFilter, VmUpdate, VmView,
};
use keyframe_model::agent::Generation;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::State;
use crate::ask::{Answer, Ask, Versioned};
use crate::body::Body;
use crate::console::Handshake;
use crate::params::{Params, Part, Path, Wait};
use crate::problem::Problem;

pub(super) fn routes() -> OpenApiRouter<State> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(show, update, delete))
        .routes(routes!(start))
        .routes(routes!(stop))
        .routes(routes!(pause))
        .routes(routes!(resume))
        .routes(routes!(reset))
        .routes(routes!(revert))
        .routes(routes!(console))
}

impl Versioned for VmView {
    fn generation(&self) -> Generation {
        self.vm.generation
    }
}

/// List machines
#[utoipa::path(get, path = "/v1/vms", tag = "vms", operation_id = "list_vms", params(VmFilter, PageRequest),
    responses((status = 200, body = Page<VmView>)))]
async fn list(ask: Ask, part: Part<VmFilter>) -> Answer {
    ask.page(&ask.manager().list_vms(ask.caller(), &part.filter, &part.page).await?)
}

/// Make a machine
#[utoipa::path(post, path = "/v1/vms", tag = "vms", operation_id = "create_vm", params(Wait), request_body = VmCreate,
    responses((status = 202, body = JobView)))]
async fn create(ask: Ask, _: Params<Wait>, Body(wish): Body<VmCreate>) -> Answer {
    ask.ordered(ask.manager().create_vm(ask.call(), wish).await?).await
}

/// Show a machine
#[utoipa::path(get, path = "/v1/vms/{vm}", tag = "vms", operation_id = "show_vm", params(("vm" = String, Path)),
    responses((status = 200, body = VmView)))]
async fn show(ask: Ask, Path(vm): Path<String>) -> Answer {
    let vm = ask.vm(&vm).await?;
    ask.found(&ask.manager().vm(ask.caller(), vm).await?)
}

/// Change a machine: name and description at once, hardware by a job
#[utoipa::path(patch, path = "/v1/vms/{vm}", tag = "vms", operation_id = "update_vm",
    params(("vm" = String, Path), Wait), request_body = VmUpdate,
    responses((status = 200, body = VmView), (status = 202, body = JobView)))]
async fn update(ask: Ask, Path(vm): Path<String>, _: Params<Wait>, Body(wish): Body<VmUpdate>) -> Answer {
    let vm = ask.vm(&vm).await?;
    ask.outcome(ask.manager().update_vm(ask.call(), vm, wish).await?).await
}

/// Delete a machine with its disks and snapshots
#[utoipa::path(delete, path = "/v1/vms/{vm}", tag = "vms", operation_id = "delete_vm",
    params(("vm" = String, Path), VmDelete, Wait),
    responses((status = 200, body = PlanView, description = "what would happen"), (status = 202, body = JobView)))]
async fn delete(ask: Ask, Path(vm): Path<String>, Params(wish): Params<VmDelete>) -> Answer {
    let vm = ask.vm(&vm).await?;
    ask.outcome(ask.manager().delete_vm(ask.call(), vm, wish).await?).await
}

/// Start a machine
#[utoipa::path(post, path = "/v1/vms/{vm}/start", tag = "vms", operation_id = "start_vm",
    params(("vm" = String, Path), Wait), request_body = StartRequest, responses((status = 202, body = JobView)))]
async fn start(ask: Ask, Path(vm): Path<String>, _: Params<Wait>, Body(wish): Body<StartRequest>) -> Answer {
    let vm = ask.vm(&vm).await?;
    ask.ordered(ask.manager().start_vm(ask.call(), vm, wish).await?).await
}

/// Stop a machine
#[utoipa::path(post, path = "/v1/vms/{vm}/stop", tag = "vms", operation_id = "stop_vm",
    params(("vm" = String, Path), Wait), request_body = StopRequest, responses((status = 202, body = JobView)))]
async fn stop(ask: Ask, Path(vm): Path<String>, _: Params<Wait>, Body(wish): Body<StopRequest>) -> Answer {
    let vm = ask.vm(&vm).await?;
    ask.ordered(ask.manager().stop_vm(ask.call(), vm, wish).await?).await
}

/// Let a machine's processors stand still
#[utoipa::path(post, path = "/v1/vms/{vm}/pause", tag = "vms", operation_id = "pause_vm",
    params(("vm" = String, Path), Wait), responses((status = 202, body = JobView)))]
async fn pause(ask: Ask, Path(vm): Path<String>, _: Params<Wait>) -> Answer {
    let vm = ask.vm(&vm).await?;
    ask.ordered(ask.manager().pause_vm(ask.call(), vm).await?).await
}

/// Let a machine's processors go on
#[utoipa::path(post, path = "/v1/vms/{vm}/resume", tag = "vms", operation_id = "resume_vm",
    params(("vm" = String, Path), Wait), responses((status = 202, body = JobView)))]
async fn resume(ask: Ask, Path(vm): Path<String>, _: Params<Wait>) -> Answer {
    let vm = ask.vm(&vm).await?;
    ask.ordered(ask.manager().resume_vm(ask.call(), vm).await?).await
}

/// Press a machine's reset button
#[utoipa::path(post, path = "/v1/vms/{vm}/reset", tag = "vms", operation_id = "reset_vm",
    params(("vm" = String, Path), Wait), responses((status = 202, body = JobView)))]
async fn reset(ask: Ask, Path(vm): Path<String>, _: Params<Wait>) -> Answer {
    let vm = ask.vm(&vm).await?;
    ask.ordered(ask.manager().reset_vm(ask.call(), vm).await?).await
}

/// Take a machine to the snapshot that its state descends from
#[utoipa::path(post, path = "/v1/vms/{vm}/revert", tag = "snapshots", operation_id = "revert_vm",
    params(("vm" = String, Path), Wait), request_body = Apply,
    responses((status = 200, body = PlanView, description = "what would happen"), (status = 202, body = JobView)))]
async fn revert(ask: Ask, Path(vm): Path<String>, _: Params<Wait>, Body(wish): Body<Apply>) -> Answer {
    let vm = ask.vm(&vm).await?;
    ask.outcome(ask.manager().revert_vm(ask.call(), vm, wish).await?).await
}

/// Open a machine's console as a WebSocket: binary frames, both ways
#[utoipa::path(get, path = "/v1/vms/{vm}/console", tag = "vms", operation_id = "vm_console",
    params(("vm" = String, Path), ConsoleRequest), responses((status = 101, description = "a WebSocket"),
    (status = 409, body = Problem, description = "another session has it")))]
async fn console(
    ask: Ask,
    Path(vm): Path<String>,
    Params(wish): Params<ConsoleRequest>,
    handshake: Handshake,
) -> Answer {
    let vm = ask.vm(&vm).await?;
    let console = ask.manager().console(ask.caller(), vm, &handshake.key, wish).await?;
    handshake.join(console, ask.state().stop.clone())
}
