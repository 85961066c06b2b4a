//! Hypervisors: the seam to whatever runs machines.
//!
//! A machine is a process of its own that outlives the agent. A driver finds the ones it started before
//! ([`adopt`](Hypervisor::adopt)), and every call about a machine that is not there says so rather than guess.

use std::path::{Path, PathBuf};
use std::time::Duration;

use keyframe_agent_api::{
    Accelerator, CutMethod, DiskId, DiskSlot, Fault, FixedIdentity, GuestIdentity, Machine, MemoryInfo, NicId, Power,
    SnapshotId, StopHow, VmId, VmStatus, VolumeRef,
};
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::work::Work;

#[cfg(any(test, feature = "testing"))]
pub mod fake;
pub mod qemu;

/// What a hypervisor is and can do on this host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HypervisorInfo {
    /// For example `qemu 10.0.2`; stored with each memory image.
    pub version: String,
    /// The newest machine type.
    pub machine_type: String,
    /// How guests are run.
    pub accelerator: Accelerator,
    /// A fresh variable store for UEFI, to be imported into a volume of exactly its size; absent when the firmware is not
    /// installed.
    pub uefi_variables: Option<PathBuf>,
}

/// Where a hypervisor finds the blocks of a volume: an NBD export that stays the same through reverts and restarts.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BlockAddress {
    /// The server's Unix socket.
    pub socket: PathBuf,
    /// The export's name.
    pub export: String,
}

/// What a machine is started with besides its hardware.
pub struct Start<'a> {
    /// The hardware.
    pub machine: &'a Machine,
    /// Where the blocks of its volumes are.
    pub blocks: &'a dyn Fn(&VolumeRef) -> BlockAddress,
    /// Go on from this memory image rather than from the firmware.
    pub memory: Option<&'a Path>,
    /// It is a copy: nothing leaves it under the identity in the image; all its cables stay out.
    pub new_identity: bool,
    /// Leave the processors standing still.
    pub paused: bool,
    /// Called before the guest runs for the first time; it does not run if this fails.
    pub going: &'a dyn Fn() -> Result<()>,
}

/// The cut through a machine's disks, made by whoever holds their exports. The hypervisor decides when.
pub trait Cut: Send {
    /// From now on writes to the disks wait, and for each batch of waiting ones `on_write` is called from another thread,
    /// which must be cheap: it wakes whoever calls [`pass`](Cut::pass) or [`cut`](Cut::cut).
    fn arm(&mut self, on_write: Box<dyn Fn() + Send + Sync>) -> Result<()>;

    /// Remembers now. Whoever decides marks first and looks for the instant then: a write that comes in between waits.
    fn mark(&mut self);

    /// The writes that waited at the last [`mark`](Cut::mark) came before the instant: lets them go. Later ones wait on.
    fn pass(&mut self) -> Result<()>;

    /// This is the instant: snapshots all disks, then lets the writes go. Also without [`arm`](Cut::arm), for a machine
    /// that stands still. Once only.
    fn cut(&mut self) -> Result<()>;

    /// Lets all writes go without an instant. Nothing to do after a cut.
    fn abandon(&mut self);
}

/// For a memory whose disks have been cut before.
pub(crate) struct NoCut;

impl Cut for NoCut {
    fn arm(&mut self, _: Box<dyn Fn() + Send + Sync>) -> Result<()> {
        Ok(())
    }

    fn mark(&mut self) {}

    fn pass(&mut self) -> Result<()> {
        Ok(())
    }

    fn cut(&mut self) -> Result<()> {
        Ok(())
    }

    fn abandon(&mut self) {}
}

/// How a memory was captured.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Captured {
    /// How disks and memory came to be of one instant.
    pub method: CutMethod,
    /// How long the guest's processors stood still.
    pub paused: Duration,
}

/// What happened to a machine that nobody asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum News {
    /// It does something else now.
    Does(Power),
    /// Something of it was lost, or had to be given up.
    Complains(Fault),
}

/// Whoever wants to be told.
pub type Tell = dyn Fn(VmId, News) + Send + Sync;

/// A wish of somebody else to end a long call.
pub trait Cancel: Sync {
    /// Whether the call is to end; asked often.
    fn cancelled(&self) -> bool;
}

/// What runs machines. Calls wait; any number of threads may call at once, and calls about one machine take turns.
pub trait Hypervisor: Send + Sync {
    /// What it is.
    fn info(&self) -> Result<HypervisorInfo>;

    /// Finds the machines that run since before, with their hardware. Thaws whatever an earlier agent left frozen.
    fn adopt(&self) -> Result<Vec<VmId>>;

    /// Refuses what [`start`](Hypervisor::start) would refuse before it does anything: a machine that makes no sense here, an
    /// image that cannot be resumed in it.
    fn check(&self, machine: &Machine, memory: Option<&Path>) -> Result<()>;

    /// Starts a machine that is off. Returns when its guest runs (or stands still as wished), or with nothing left over.
    fn start(&self, vm: VmId, start: &Start<'_>) -> Result<()>;

    /// What the machine does, asked of its process; [`Power::Off`] if there is none. Does not wait for other calls. The
    /// generation in it means nothing: drivers know of none.
    fn status(&self, vm: VmId) -> Result<VmStatus>;

    /// Stops it; what is off already is a success. Nothing of it runs any more when this returns, but its process may still
    /// be giving memory back, the longer the more it had, and holds its disks until then: its number, so that they can be
    /// taken from it.
    fn stop(&self, vm: VmId, how: StopHow) -> Result<Option<u32>>;

    /// Lets the processors stand still.
    fn pause(&self, vm: VmId) -> Result<()>;

    /// Lets them go on, also after a full array or a failed disk.
    fn resume(&self, vm: VmId) -> Result<()>;

    /// Presses the reset button.
    fn reset(&self, vm: VmId) -> Result<()>;

    /// Adds a disk while the guest runs.
    fn add_disk(&self, vm: VmId, disk: &DiskSlot, blocks: &BlockAddress) -> Result<()>;

    /// Takes a disk out while the guest runs; the guest has to agree within the deadline.
    fn remove_disk(&self, vm: VmId, disk: DiskId, deadline: Duration) -> Result<()>;

    /// Tells the guest that a disk has a new size.
    fn disk_resized(&self, vm: VmId, disk: DiskId) -> Result<()>;

    /// Plugs a cable in or out.
    fn set_link(&self, vm: VmId, nic: NicId, up: bool) -> Result<()>;

    /// Makes a copied guest notice who it is now.
    fn fix_identity(&self, vm: VmId, identity: &GuestIdentity, deadline: Duration) -> Result<FixedIdentity>;

    /// Freezes the guest's file systems; returns how many. They thaw by themselves after `hold`, whatever happens to the
    /// agent. A failed call leaves nothing frozen.
    fn freeze(&self, vm: VmId, deadline: Duration, hold: Duration) -> Result<u32>;

    /// Thaws them. An error means that they were not frozen all the time, so that what was done meanwhile is not clean.
    fn thaw(&self, vm: VmId) -> Result<()>;

    /// Captures the memory of a running or paused machine into an image at `to`, with the cut through its disks at the
    /// very instant. The guest runs on as before. A failed call leaves no image and nothing held; the cut's own snapshots
    /// are the caller's to delete. Waits for memory that is still pending. While it works the image is `TO` with
    /// something behind it that ends in `partial`.
    fn capture(&self, vm: VmId, to: &Path, cut: &mut dyn Cut, cancel: &dyn Cancel) -> Result<Captured>;

    /// What is in an image that [`capture`](Hypervisor::capture) made, from its header: [`NotFound`], [`Corrupt`], or
    /// [`Unsupported`] if it is not understood. Whether it can be resumed here is for the caller to judge.
    ///
    /// [`NotFound`]: keyframe_agent_api::FaultKind::NotFound
    /// [`Corrupt`]: keyframe_agent_api::FaultKind::Corrupt
    /// [`Unsupported`]: keyframe_agent_api::FaultKind::Unsupported
    fn image(&self, image: &Path) -> Result<MemoryInfo>;

    /// The same, after every page in it has been read and found to be as it was captured. Called off, it ends soon.
    fn verify(&self, image: &Path, work: &Work) -> Result<MemoryInfo>;

    /// Stores an image smaller, in place; it can be resumed as before. What is compressed already is a success. Called off, the
    /// image is as before.
    fn compress(&self, image: &Path, work: &Work) -> Result<MemoryInfo>;

    /// Gives up a machine that stands still, but for its memory: it is off, has let its disks go, and can be started anew, and
    /// [`store_aside`](Hypervisor::store_aside) finds its memory under the name of a snapshot until that is dropped. Its
    /// process is answered as [`stop`](Hypervisor::stop) does. A failed call leaves the machine as it was;
    /// [`Unsupported`] if there is no such way for this one.
    ///
    /// [`Unsupported`]: keyframe_agent_api::FaultKind::Unsupported
    fn set_aside(&self, vm: VmId, snapshot: SnapshotId) -> Result<Option<u32>>;

    /// Whether there is something set aside for a snapshot; its process may have ended.
    fn is_aside(&self, snapshot: SnapshotId) -> bool;

    /// Stores a memory that was set aside, like [`capture`](Hypervisor::capture) that of a machine. It stays set aside.
    /// [`NotFound`] if it has not been, or its process has ended.
    ///
    /// [`NotFound`]: keyframe_agent_api::FaultKind::NotFound
    fn store_aside(&self, snapshot: SnapshotId, to: &Path, cancel: &dyn Cancel) -> Result<()>;

    /// Ends what was set aside for a snapshot. What is not there is a success.
    fn drop_aside(&self, snapshot: SnapshotId) -> Result<()>;

    /// The Unix socket of the serial console, for one reader.
    fn console(&self, vm: VmId) -> Result<PathBuf>;

    /// Forgets a machine that is off.
    fn remove(&self, vm: VmId) -> Result<()>;

    /// Calls `tell` from a thread of the driver's own after whatever happened that nobody asked for.
    fn watch(&self, tell: Box<Tell>);
}
