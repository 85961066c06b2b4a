//! Disks of machines.

use keyframe_model::agent::{DiskId, VmId};

use crate::request::{Call, Caller, DiskAttach, DiskResize, DiskView, JobRef};
use crate::{Manager, Result};

impl Manager {
    /// The disks of a machine: those in it, and those that only its snapshots hold.
    pub async fn disks(&self, caller: &Caller, vm: VmId) -> Result<Vec<DiskView>> {
        Err(self.unfinished(format_args!("{:?}", (&caller, &vm,))))
    }

    /// Adds one.
    pub async fn attach_disk(&self, call: &Call, vm: VmId, wish: DiskAttach) -> Result<JobRef> {
        Err(self.unfinished(format_args!("{:?}", (&call, &vm, &wish,))))
    }

    /// Takes one out. It goes for good unless a snapshot holds it.
    pub async fn detach_disk(&self, call: &Call, vm: VmId, disk: DiskId) -> Result<JobRef> {
        Err(self.unfinished(format_args!("{:?}", (&call, &vm, &disk,))))
    }

    /// Sets its size.
    pub async fn resize_disk(&self, call: &Call, vm: VmId, disk: DiskId, wish: DiskResize) -> Result<JobRef> {
        Err(self.unfinished(format_args!("{:?}", (&call, &vm, &disk, &wish,))))
    }
}
