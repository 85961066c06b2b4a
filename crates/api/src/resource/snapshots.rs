//! Snapshots.

use keyframe_manager::request::{
    Apply, DiffView, JobView, Page, PageRequest, PlanView, SnapshotCreate, SnapshotDelete, SnapshotFilter,
    SnapshotUpdate, SnapshotView,
};
use keyframe_model::agent::Generation;
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::tree::WithSpace;
use crate::State;
use crate::ask::{Answer, Ask, Versioned};
use crate::body::Body;
use crate::params::{Params, Part, Path, Wait};

pub(super) fn routes() -> OpenApiRouter<State> {
    OpenApiRouter::new()
        .routes(routes!(list_of_vm, create, delete_all))
        .routes(routes!(list))
        .routes(routes!(show, update, delete))
        .routes(routes!(apply))
        .routes(routes!(compress))
        .routes(routes!(verify))
        .routes(routes!(diff))
}

impl Versioned for SnapshotView {
    fn generation(&self) -> Generation {
        self.snapshot.generation
    }
}

/// Whether to do it.
#[derive(Clone, Copy, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct DryRun {
    /// Change nothing, say what would happen.
    #[serde(default)]
    dry_run: bool,
}

/// What to compare with.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct ComparedWith {
    /// An identifier, or MACHINE@SNAPSHOT; of the same machine.
    from: String,
}

/// List the snapshots of a machine
#[utoipa::path(get, path = "/v1/vms/{vm}/snapshots", tag = "snapshots", operation_id = "list_snapshots_of_vm",
    params(("vm" = String, Path), SnapshotFilter, PageRequest), responses((status = 200, body = Page<SnapshotView>)))]
async fn list_of_vm(ask: Ask, Path(vm): Path<String>, mut part: Part<SnapshotFilter>) -> Answer {
    part.filter.vm = Some(ask.vm(&vm).await?);
    ask.page(&ask.manager().list_snapshots(ask.caller(), &part.filter, &part.page).await?)
}

/// Take a snapshot of a machine: all its disks at one instant, and its memory if asked
#[utoipa::path(post, path = "/v1/vms/{vm}/snapshots", tag = "snapshots", operation_id = "create_snapshot",
    params(("vm" = String, Path), Wait), request_body = SnapshotCreate, responses((status = 202, body = JobView)))]
async fn create(ask: Ask, Path(vm): Path<String>, _: Params<Wait>, Body(wish): Body<SnapshotCreate>) -> Answer {
    let vm = ask.vm(&vm).await?;
    ask.ordered(ask.manager().create_snapshot(ask.call(), vm, wish).await?).await
}

/// Delete all snapshots of a machine
#[utoipa::path(delete, path = "/v1/vms/{vm}/snapshots", tag = "snapshots", operation_id = "delete_snapshots_of_vm",
    params(("vm" = String, Path), DryRun, Wait),
    responses((status = 200, body = PlanView, description = "what would happen"), (status = 202, body = JobView)))]
async fn delete_all(ask: Ask, Path(vm): Path<String>, Params(wish): Params<DryRun>) -> Answer {
    let vm = ask.vm(&vm).await?;
    ask.outcome(ask.manager().delete_snapshots(ask.call(), vm, wish.dry_run).await?).await
}

/// List snapshots, of all machines
#[utoipa::path(get, path = "/v1/snapshots", tag = "snapshots", operation_id = "list_snapshots",
    params(SnapshotFilter, PageRequest), responses((status = 200, body = Page<SnapshotView>)))]
async fn list(ask: Ask, part: Part<SnapshotFilter>) -> Answer {
    ask.page(&ask.manager().list_snapshots(ask.caller(), &part.filter, &part.page).await?)
}

/// Show a snapshot
#[utoipa::path(get, path = "/v1/snapshots/{snapshot}", tag = "snapshots", operation_id = "show_snapshot",
    params(("snapshot" = String, Path, description = "an identifier, or MACHINE@SNAPSHOT"), WithSpace),
    responses((status = 200, body = SnapshotView)))]
async fn show(ask: Ask, Path(snapshot): Path<String>, Params(wish): Params<WithSpace>) -> Answer {
    let snapshot = ask.snapshot(&snapshot).await?;
    ask.found(&ask.manager().snapshot(ask.caller(), snapshot, wish.space).await?)
}

/// Change what is said about a snapshot: name, description, tags, lock
#[utoipa::path(patch, path = "/v1/snapshots/{snapshot}", tag = "snapshots", operation_id = "update_snapshot",
    params(("snapshot" = String, Path)), request_body = SnapshotUpdate, responses((status = 200, body = SnapshotView)))]
async fn update(ask: Ask, Path(snapshot): Path<String>, Body(wish): Body<SnapshotUpdate>) -> Answer {
    let snapshot = ask.snapshot(&snapshot).await?;
    ask.found(&ask.manager().update_snapshot(ask.call(), snapshot, wish).await?)
}

/// Delete a snapshot, or with all that descend from it
#[utoipa::path(delete, path = "/v1/snapshots/{snapshot}", tag = "snapshots", operation_id = "delete_snapshot",
    params(("snapshot" = String, Path), SnapshotDelete, Wait),
    responses((status = 200, body = PlanView, description = "what would happen"), (status = 202, body = JobView)))]
async fn delete(ask: Ask, Path(snapshot): Path<String>, Params(wish): Params<SnapshotDelete>) -> Answer {
    let snapshot = ask.snapshot(&snapshot).await?;
    ask.outcome(ask.manager().delete_snapshot(ask.call(), snapshot, wish).await?).await
}

/// Take a snapshot's machine to it
#[utoipa::path(post, path = "/v1/snapshots/{snapshot}/apply", tag = "snapshots", operation_id = "apply_snapshot",
    params(("snapshot" = String, Path), Wait), request_body = Apply,
    responses((status = 200, body = PlanView, description = "what would happen"), (status = 202, body = JobView)))]
async fn apply(ask: Ask, Path(snapshot): Path<String>, _: Params<Wait>, Body(wish): Body<Apply>) -> Answer {
    let snapshot = ask.snapshot(&snapshot).await?;
    ask.outcome(ask.manager().apply_snapshot(ask.call(), snapshot, wish).await?).await
}

/// Compress a snapshot's memory now; by itself that happens when it is old enough
#[utoipa::path(post, path = "/v1/snapshots/{snapshot}/compress", tag = "snapshots", operation_id = "compress_snapshot",
    params(("snapshot" = String, Path), Wait), responses((status = 202, body = JobView)))]
async fn compress(ask: Ask, Path(snapshot): Path<String>, _: Params<Wait>) -> Answer {
    let snapshot = ask.snapshot(&snapshot).await?;
    ask.ordered(ask.manager().compress_snapshot(ask.call(), snapshot).await?).await
}

/// Verify that all of a snapshot is there, and every page of its memory; the job fails if not
#[utoipa::path(post, path = "/v1/snapshots/{snapshot}/verify", tag = "snapshots", operation_id = "verify_snapshot",
    params(("snapshot" = String, Path), Wait), responses((status = 202, body = JobView)))]
async fn verify(ask: Ask, Path(snapshot): Path<String>, _: Params<Wait>) -> Answer {
    let snapshot = ask.snapshot(&snapshot).await?;
    ask.ordered(ask.manager().verify_snapshot(ask.call(), snapshot).await?).await
}

/// Compare the disks of a snapshot with those of another one of its machine
#[utoipa::path(get, path = "/v1/snapshots/{snapshot}/diff", tag = "snapshots", operation_id = "diff_snapshots",
    params(("snapshot" = String, Path), ComparedWith), responses((status = 200, body = DiffView)))]
async fn diff(ask: Ask, Path(snapshot): Path<String>, Params(wish): Params<ComparedWith>) -> Answer {
    let (from, to) = (ask.snapshot(&wish.from).await?, ask.snapshot(&snapshot).await?);
    ask.done(&ask.manager().diff_snapshots(ask.caller(), from, to).await?)
}
