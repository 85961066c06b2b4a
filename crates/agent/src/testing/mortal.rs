//! A hypervisor as one agent sees it: when the agent is dead, it can do nothing to machines any more.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use keyframe_agent_api::{
    DiskId, DiskSlot, FixedIdentity, GuestIdentity, Machine, MemoryInfo, NicId, SnapshotId, StopHow, VmId, VmStatus,
};

use crate::Result;
use crate::hypervisor::{BlockAddress, Cancel, Captured, Cut, Hypervisor, HypervisorInfo, Start, Tell};
use crate::life::Life;
use crate::work::Work;

/// A hypervisor that asks whether its agent lives, before each call and after it.
pub struct Mortal {
    inner: Arc<dyn Hypervisor>,
    life: Life,
}

impl Mortal {
    /// The same machines, for one agent.
    pub fn new(inner: Arc<dyn Hypervisor>, life: Life) -> Mortal {
        Mortal { inner, life }
    }

    fn call<T>(&self, act: impl FnOnce(&dyn Hypervisor) -> Result<T>) -> Result<T> {
        self.life.check()?;
        let done = act(&*self.inner)?;
        // An answer does not reach the dead.
        self.life.check()?;
        Ok(done)
    }
}

impl Hypervisor for Mortal {
    fn info(&self) -> Result<HypervisorInfo> {
        self.call(|inner| inner.info())
    }

    fn adopt(&self) -> Result<Vec<VmId>> {
        self.call(|inner| inner.adopt())
    }

    fn check(&self, machine: &Machine, memory: Option<&Path>) -> Result<()> {
        self.call(|inner| inner.check(machine, memory))
    }

    fn start(&self, vm: VmId, start: &Start<'_>) -> Result<()> {
        self.call(|inner| inner.start(vm, start))
    }

    fn status(&self, vm: VmId) -> Result<VmStatus> {
        self.call(|inner| inner.status(vm))
    }

    fn stop(&self, vm: VmId, how: StopHow) -> Result<Option<u32>> {
        self.call(|inner| inner.stop(vm, how))
    }

    fn pause(&self, vm: VmId) -> Result<()> {
        self.call(|inner| inner.pause(vm))
    }

    fn resume(&self, vm: VmId) -> Result<()> {
        self.call(|inner| inner.resume(vm))
    }

    fn reset(&self, vm: VmId) -> Result<()> {
        self.call(|inner| inner.reset(vm))
    }

    fn add_disk(&self, vm: VmId, disk: &DiskSlot, blocks: &BlockAddress) -> Result<()> {
        self.call(|inner| inner.add_disk(vm, disk, blocks))
    }

    fn remove_disk(&self, vm: VmId, disk: DiskId, deadline: Duration) -> Result<()> {
        self.call(|inner| inner.remove_disk(vm, disk, deadline))
    }

    fn disk_resized(&self, vm: VmId, disk: DiskId) -> Result<()> {
        self.call(|inner| inner.disk_resized(vm, disk))
    }

    fn set_link(&self, vm: VmId, nic: NicId, up: bool) -> Result<()> {
        self.call(|inner| inner.set_link(vm, nic, up))
    }

    fn fix_identity(&self, vm: VmId, identity: &GuestIdentity, deadline: Duration) -> Result<FixedIdentity> {
        self.call(|inner| inner.fix_identity(vm, identity, deadline))
    }

    fn freeze(&self, vm: VmId, deadline: Duration, hold: Duration) -> Result<u32> {
        self.call(|inner| inner.freeze(vm, deadline, hold))
    }

    fn thaw(&self, vm: VmId) -> Result<()> {
        self.call(|inner| inner.thaw(vm))
    }

    fn capture(&self, vm: VmId, to: &Path, cut: &mut dyn Cut, cancel: &dyn Cancel) -> Result<Captured> {
        self.call(|inner| inner.capture(vm, to, cut, cancel))
    }

    fn set_aside(&self, vm: VmId, snapshot: SnapshotId) -> Result<Option<u32>> {
        self.call(|inner| inner.set_aside(vm, snapshot))
    }

    fn is_aside(&self, snapshot: SnapshotId) -> bool {
        self.inner.is_aside(snapshot)
    }

    fn store_aside(&self, snapshot: SnapshotId, to: &Path, cancel: &dyn Cancel) -> Result<()> {
        self.call(|inner| inner.store_aside(snapshot, to, cancel))
    }

    fn drop_aside(&self, snapshot: SnapshotId) -> Result<()> {
        self.call(|inner| inner.drop_aside(snapshot))
    }

    fn image(&self, image: &Path) -> Result<MemoryInfo> {
        self.call(|inner| inner.image(image))
    }

    fn verify(&self, image: &Path, work: &Work) -> Result<MemoryInfo> {
        self.call(|inner| inner.verify(image, work))
    }

    fn compress(&self, image: &Path, work: &Work) -> Result<MemoryInfo> {
        self.call(|inner| inner.compress(image, work))
    }

    fn console(&self, vm: VmId) -> Result<PathBuf> {
        self.call(|inner| inner.console(vm))
    }

    fn remove(&self, vm: VmId) -> Result<()> {
        self.call(|inner| inner.remove(vm))
    }

    fn watch(&self, tell: Box<Tell>) {
        self.inner.watch(tell);
    }
}
