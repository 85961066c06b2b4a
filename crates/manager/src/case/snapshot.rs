//! Snapshots and their tree.

use keyframe_model::agent::{SnapshotId, VmId};

use crate::request::{
    Apply, Call, Caller, JobRef, Outcome, Page, PageRequest, PlanView, SnapshotCreate, SnapshotDelete, SnapshotFilter,
    SnapshotUpdate, SnapshotView, TreeView,
};
use crate::{Manager, Result};

impl Manager {
    /// All snapshots that match; by the order of their making within a machine.
    pub async fn list_snapshots(
        &self,
        caller: &Caller,
        filter: &SnapshotFilter,
        page: &PageRequest,
    ) -> Result<Page<SnapshotView>> {
        Err(self.unfinished(format_args!("{:?}", (&caller, &filter, &page,))))
    }

    /// One snapshot, with its space if asked for.
    pub async fn snapshot(&self, caller: &Caller, snapshot: SnapshotId, space: bool) -> Result<SnapshotView> {
        Err(self.unfinished(format_args!("{:?}", (&caller, &snapshot, &space,))))
    }

    /// A snapshot by its identifier, or by its name within a machine.
    pub async fn find_snapshot(&self, caller: &Caller, vm: Option<VmId>, name: &str) -> Result<SnapshotId> {
        Err(self.unfinished(format_args!("{:?}", (&caller, &vm, &name,))))
    }

    /// A machine's tree, with space if asked for.
    pub async fn tree(&self, caller: &Caller, vm: VmId, space: bool) -> Result<TreeView> {
        Err(self.unfinished(format_args!("{:?}", (&caller, &vm, &space,))))
    }

    /// Takes one.
    pub async fn create_snapshot(&self, call: &Call, vm: VmId, wish: SnapshotCreate) -> Result<JobRef> {
        Err(self.unfinished(format_args!("{:?}", (&call, &vm, &wish,))))
    }

    /// Changes what is said about one.
    pub async fn update_snapshot(
        &self,
        call: &Call,
        snapshot: SnapshotId,
        wish: SnapshotUpdate,
    ) -> Result<SnapshotView> {
        Err(self.unfinished(format_args!("{:?}", (&call, &snapshot, &wish,))))
    }

    /// Takes its machine to it; a plan only, if `dry_run`.
    pub async fn apply_snapshot(&self, call: &Call, snapshot: SnapshotId, wish: Apply) -> Result<Outcome<PlanView>> {
        Err(self.unfinished(format_args!("{:?}", (&call, &snapshot, &wish,))))
    }

    /// Takes a machine to the snapshot that its state descends from; a plan only, if `dry_run`.
    pub async fn revert_vm(&self, call: &Call, vm: VmId, wish: Apply) -> Result<Outcome<PlanView>> {
        Err(self.unfinished(format_args!("{:?}", (&call, &vm, &wish,))))
    }

    /// Deletes one, or its subtree; a plan only, if `dry_run`.
    pub async fn delete_snapshot(
        &self,
        call: &Call,
        snapshot: SnapshotId,
        wish: SnapshotDelete,
    ) -> Result<Outcome<PlanView>> {
        Err(self.unfinished(format_args!("{:?}", (&call, &snapshot, &wish,))))
    }

    /// Deletes all of a machine; a plan only, if `dry_run`.
    pub async fn delete_snapshots(&self, call: &Call, vm: VmId, dry_run: bool) -> Result<Outcome<PlanView>> {
        Err(self.unfinished(format_args!("{:?}", (&call, &vm, &dry_run,))))
    }
}
