//! Disks of machines.

use keyframe_manager::Error;
use keyframe_manager::request::{DiskAttach, DiskResize, DiskView, JobView};
use keyframe_model::agent::VmId;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::State;
use crate::ask::{Answer, Ask};
use crate::body::Body;
use crate::params::{Params, Path, Wait};
use crate::problem::Problem;

pub(super) fn routes() -> OpenApiRouter<State> {
    OpenApiRouter::new().routes(routes!(list, attach)).routes(routes!(show, detach)).routes(routes!(resize))
}

/// A disk by its identifier or name; of two with one name, the one that is in the machine.
async fn find(ask: &Ask, vm: VmId, name: &str) -> Result<DiskView, Problem> {
    let all = ask.manager().disks(ask.caller(), vm).await?;
    let mut of_name: Vec<DiskView> =
        all.into_iter().filter(|view| view.disk.id.to_string() == name || view.disk.name.as_str() == name).collect();
    of_name.sort_by_key(|view| !view.attached);
    let shown: String = name.chars().take(80).collect();
    let missing = || Error::not_found(format!("disk '{}'", shown.escape_debug()), "disk list VM");
    Ok(of_name.into_iter().next().ok_or_else(missing)?)
}

/// List the disks of a machine: those in it, and those that only its snapshots hold
#[utoipa::path(get, path = "/v1/vms/{vm}/disks", tag = "disks", operation_id = "list_disks",
    params(("vm" = String, Path)), responses((status = 200, body = Vec<DiskView>)))]
async fn list(ask: Ask, Path(vm): Path<String>) -> Answer {
    let vm = ask.vm(&vm).await?;
    ask.done(&ask.manager().disks(ask.caller(), vm).await?)
}

/// Add a disk to a machine, also while it runs
#[utoipa::path(post, path = "/v1/vms/{vm}/disks", tag = "disks", operation_id = "attach_disk",
    params(("vm" = String, Path), Wait), request_body = DiskAttach, responses((status = 202, body = JobView)))]
async fn attach(ask: Ask, Path(vm): Path<String>, _: Params<Wait>, Body(wish): Body<DiskAttach>) -> Answer {
    let vm = ask.vm(&vm).await?;
    ask.ordered(ask.manager().attach_disk(ask.call(), vm, wish).await?).await
}

/// Show a disk
#[utoipa::path(get, path = "/v1/vms/{vm}/disks/{disk}", tag = "disks", operation_id = "show_disk",
    params(("vm" = String, Path), ("disk" = String, Path)), responses((status = 200, body = DiskView)))]
async fn show(ask: Ask, Path((vm, disk)): Path<(String, String)>) -> Answer {
    let vm = ask.vm(&vm).await?;
    ask.done(&find(&ask, vm, &disk).await?)
}

/// Take a disk out of a machine; it goes for good unless a snapshot holds it
#[utoipa::path(delete, path = "/v1/vms/{vm}/disks/{disk}", tag = "disks", operation_id = "detach_disk",
    params(("vm" = String, Path), ("disk" = String, Path), Wait), responses((status = 202, body = JobView)))]
async fn detach(ask: Ask, Path((vm, disk)): Path<(String, String)>, _: Params<Wait>) -> Answer {
    let vm = ask.vm(&vm).await?;
    let disk = find(&ask, vm, &disk).await?.disk.id;
    ask.ordered(ask.manager().detach_disk(ask.call(), vm, disk).await?).await
}

/// Set the size of a disk
#[utoipa::path(post, path = "/v1/vms/{vm}/disks/{disk}/resize", tag = "disks", operation_id = "resize_disk",
    params(("vm" = String, Path), ("disk" = String, Path), Wait), request_body = DiskResize,
    responses((status = 202, body = JobView)))]
async fn resize(
    ask: Ask,
    Path((vm, disk)): Path<(String, String)>,
    _: Params<Wait>,
    Body(wish): Body<DiskResize>,
) -> Answer {
    let vm = ask.vm(&vm).await?;
    let disk = find(&ask, vm, &disk).await?.disk.id;
    ask.ordered(ask.manager().resize_disk(ask.call(), vm, disk, wish).await?).await
}
