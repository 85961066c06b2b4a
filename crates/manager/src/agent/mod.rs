//! The manager's side of the agent's interface: one method for each of its calls.
//!
//! Every call can be repeated, so a call whose outcome is unknown (the agent restarts, the connection broke) is sent again
//! until `patience` is over; only then it fails as [`Unreachable`](keyframe_model::agent::FaultKind::Unreachable), and
//! whether it was carried out is unknown. A machine that is busy with an earlier copy of the same call is waited for
//! likewise.

mod address;
mod transport;

use keyframe_model::agent::{
    ConfigureDisk, CreateVolume, DiffRequest, DiffResponse, DiskId, FixIdentity, FixedIdentity, Generation, GiveUp,
    HostInfo, InstantProbe, InstantReport, MemoryInfo, MemoryState, RemoveMachine, ResizeVolume, RevertVolume, SetLink,
    SnapshotId, SpaceRequest, SpaceResponse, StartVm, StopVm, TakeInstant, VmCall, VmId, VmStatus, VolumeInfo,
    VolumeRef, WorkProgress, route,
};

pub use address::AgentAddress;
pub use transport::{Agent, Console, Events};

use crate::Result;

impl Agent {
    /// What the host is.
    pub async fn host(&self) -> Result<HostInfo> {
        self.get(route::HOST).await
    }

    /// Makes a volume.
    pub async fn create_volume(&self, volume: &VolumeRef, wish: &CreateVolume) -> Result<VolumeInfo> {
        self.put(&route::volume(volume), wish).await
    }

    /// Ends the filling of a volume from an image; its call fails.
    pub async fn cancel_volume(&self, volume: &VolumeRef) -> Result<()> {
        self.order(&format!("{}/cancel", route::volume(volume)), &()).await
    }

    /// How far that filling is.
    pub async fn volume_progress(&self, volume: &VolumeRef) -> Result<WorkProgress> {
        self.get(&format!("{}/progress", route::volume(volume))).await
    }

    /// A volume.
    pub async fn volume(&self, volume: &VolumeRef) -> Result<VolumeInfo> {
        self.get(&route::volume(volume)).await
    }

    /// Deletes a volume with its snapshots.
    pub async fn delete_volume(&self, volume: &VolumeRef) -> Result<()> {
        self.delete(&route::volume(volume)).await
    }

    /// Sets a volume's size.
    pub async fn resize_volume(&self, volume: &VolumeRef, wish: &ResizeVolume) -> Result<VolumeInfo> {
        self.post(&format!("{}/resize", route::volume(volume)), wish).await
    }

    /// Takes a volume to one of its snapshots.
    pub async fn revert_volume(&self, volume: &VolumeRef, wish: &RevertVolume) -> Result<()> {
        self.order(&format!("{}/revert", route::volume(volume)), wish).await
    }

    /// What versions of volumes hold.
    pub async fn space(&self, wish: &SpaceRequest) -> Result<SpaceResponse> {
        self.post(route::SPACE, wish).await
    }

    /// Takes one instant of a machine.
    pub async fn take_instant(&self, snapshot: SnapshotId, wish: &TakeInstant) -> Result<InstantReport> {
        self.put(&route::instant(snapshot, &[]), wish).await
    }

    /// What is there of an instant.
    pub async fn probe_instant(&self, snapshot: SnapshotId, volumes: &[VolumeRef]) -> Result<InstantProbe> {
        self.get(&route::instant(snapshot, volumes)).await
    }

    /// Deletes the parts of an instant that lie on these volumes, and its memory.
    pub async fn delete_instant(&self, snapshot: SnapshotId, volumes: &[VolumeRef]) -> Result<()> {
        self.delete(&route::instant(snapshot, volumes)).await
    }

    /// Ends an instant that is being taken, or whose memory is being compressed; its call fails.
    pub async fn cancel_instant(&self, snapshot: SnapshotId) -> Result<()> {
        self.order(&format!("{}/cancel", route::instant(snapshot, &[])), &()).await
    }

    /// Stores the memory of a machine that was given up for an instant.
    pub async fn store_memory(&self, snapshot: SnapshotId) -> Result<InstantReport> {
        self.post(&route::memory(snapshot, "store"), &()).await
    }

    /// Ends what was given up for an instant; its memory is lost unless it is stored.
    pub async fn drop_memory(&self, snapshot: SnapshotId) -> Result<()> {
        self.order(&route::memory(snapshot, "drop"), &()).await
    }

    /// Compresses a memory image.
    pub async fn compress_memory(&self, snapshot: SnapshotId) -> Result<MemoryInfo> {
        self.post(&route::memory(snapshot, "compress"), &()).await
    }

    /// What a memory image is worth, every page of it.
    pub async fn verify_memory(&self, snapshot: SnapshotId) -> Result<MemoryState> {
        self.post(&route::memory(snapshot, "verify"), &()).await
    }

    /// How far the compressing or verifying of a memory image is.
    pub async fn memory_progress(&self, snapshot: SnapshotId) -> Result<WorkProgress> {
        self.get(&route::memory(snapshot, "progress")).await
    }

    /// What changed between two versions of a volume.
    pub async fn diff(&self, wish: &DiffRequest) -> Result<DiffResponse> {
        self.post(route::DIFF, wish).await
    }

    /// All machines that the host knows.
    pub async fn vms(&self) -> Result<Vec<VmStatus>> {
        self.get(route::VMS).await
    }

    /// A machine.
    pub async fn vm(&self, vm: VmId) -> Result<VmStatus> {
        self.get(&route::vm(vm)).await
    }

    /// Gives up a machine that stands still, but for its memory.
    pub async fn give_up(&self, vm: VmId, wish: &GiveUp) -> Result<VmStatus> {
        self.post(&route::vm_act(vm, "give-up"), wish).await
    }

    /// Whether a machine could be started like this, as far as that can be said before.
    pub async fn check(&self, vm: VmId, wish: &StartVm) -> Result<()> {
        self.post(&route::vm_act(vm, "check"), wish).await
    }

    /// Starts a machine.
    pub async fn start(&self, vm: VmId, wish: &StartVm) -> Result<VmStatus> {
        self.put(&route::vm_act(vm, "run"), wish).await
    }

    /// Stops a machine.
    pub async fn stop(&self, vm: VmId, wish: &StopVm) -> Result<VmStatus> {
        self.post(&route::vm_act(vm, "stop"), wish).await
    }

    /// Lets the processors stand still.
    pub async fn pause(&self, vm: VmId, generation: Generation) -> Result<VmStatus> {
        self.post(&route::vm_act(vm, "pause"), &VmCall { generation }).await
    }

    /// Lets them go on.
    pub async fn resume(&self, vm: VmId, generation: Generation) -> Result<VmStatus> {
        self.post(&route::vm_act(vm, "resume"), &VmCall { generation }).await
    }

    /// Presses the reset button.
    pub async fn reset(&self, vm: VmId, generation: Generation) -> Result<VmStatus> {
        self.post(&route::vm_act(vm, "reset"), &VmCall { generation }).await
    }

    /// Adds a disk while the machine runs.
    pub async fn add_disk(&self, vm: VmId, wish: &ConfigureDisk) -> Result<()> {
        self.order_put(&route::vm_disk(vm, wish.disk.id), wish).await
    }

    /// Takes one out while the machine runs.
    pub async fn remove_disk(&self, vm: VmId, disk: DiskId, generation: Generation) -> Result<()> {
        self.order(&format!("{}/remove", route::vm_disk(vm, disk)), &VmCall { generation }).await
    }

    /// Tells the guest that a disk has a new size.
    pub async fn disk_resized(&self, vm: VmId, disk: DiskId, generation: Generation) -> Result<()> {
        self.order(&format!("{}/resized", route::vm_disk(vm, disk)), &VmCall { generation }).await
    }

    /// Plugs a cable in or out.
    pub async fn set_link(&self, vm: VmId, wish: &SetLink) -> Result<()> {
        self.order(&route::vm_act(vm, "link"), wish).await
    }

    /// Makes a copied guest notice who it is.
    pub async fn fix_identity(&self, vm: VmId, wish: &FixIdentity) -> Result<FixedIdentity> {
        self.post(&route::vm_act(vm, "identity"), wish).await
    }

    /// Forgets a machine that is off.
    pub async fn remove(&self, vm: VmId, generation: Generation) -> Result<()> {
        self.order(&route::vm_act(vm, "remove"), &RemoveMachine { generation }).await
    }
}
