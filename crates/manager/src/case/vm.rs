//! Machines.

use keyframe_model::agent::VmId;

use crate::request::{
    Call, Caller, JobRef, Outcome, Page, PageRequest, PlanView, StartRequest, StopRequest, VmCreate, VmDelete,
    VmFilter, VmUpdate, VmView,
};
use crate::{Manager, Result};

impl Manager {
    /// All machines that match, by the order of their making.
    pub async fn list_vms(&self, caller: &Caller, filter: &VmFilter, page: &PageRequest) -> Result<Page<VmView>> {
        Err(self.unfinished(format_args!("{:?}", (&caller, &filter, &page,))))
    }

    /// One machine.
    pub async fn vm(&self, caller: &Caller, vm: VmId) -> Result<VmView> {
        Err(self.unfinished(format_args!("{:?}", (&caller, &vm,))))
    }

    /// A machine by its identifier or its name.
    pub async fn find_vm(&self, caller: &Caller, name: &str) -> Result<VmId> {
        Err(self.unfinished(format_args!("{:?}", (&caller, &name,))))
    }

    /// Makes a machine.
    pub async fn create_vm(&self, call: &Call, wish: VmCreate) -> Result<JobRef> {
        Err(self.unfinished(format_args!("{:?}", (&call, &wish,))))
    }

    /// Changes a machine: its name and description at once, its hardware by a job.
    pub async fn update_vm(&self, call: &Call, vm: VmId, wish: VmUpdate) -> Result<Outcome<VmView>> {
        Err(self.unfinished(format_args!("{:?}", (&call, &vm, &wish,))))
    }

    /// Starts it.
    pub async fn start_vm(&self, call: &Call, vm: VmId, wish: StartRequest) -> Result<JobRef> {
        Err(self.unfinished(format_args!("{:?}", (&call, &vm, &wish,))))
    }

    /// Stops it.
    pub async fn stop_vm(&self, call: &Call, vm: VmId, wish: StopRequest) -> Result<JobRef> {
        Err(self.unfinished(format_args!("{:?}", (&call, &vm, &wish,))))
    }

    /// Lets its processors stand still.
    pub async fn pause_vm(&self, call: &Call, vm: VmId) -> Result<JobRef> {
        Err(self.unfinished(format_args!("{:?}", (&call, &vm,))))
    }

    /// Lets them go on.
    pub async fn resume_vm(&self, call: &Call, vm: VmId) -> Result<JobRef> {
        Err(self.unfinished(format_args!("{:?}", (&call, &vm,))))
    }

    /// Presses the reset button.
    pub async fn reset_vm(&self, call: &Call, vm: VmId) -> Result<JobRef> {
        Err(self.unfinished(format_args!("{:?}", (&call, &vm,))))
    }

    /// Deletes it with its snapshots; a plan only, if `dry_run`.
    pub async fn delete_vm(&self, call: &Call, vm: VmId, wish: VmDelete) -> Result<Outcome<PlanView>> {
        Err(self.unfinished(format_args!("{:?}", (&call, &vm, &wish,))))
    }
}
