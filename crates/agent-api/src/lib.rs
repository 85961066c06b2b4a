//! What the manager and the agents say to each other: the shapes, their units, and the errors. No I/O.
//!
//! The agent speaks HTTP with JSON bodies; `route` has the table of its calls. Every call can be repeated: the caller
//! names what is to exist, and an agent that finds it there answers as if it had just made it. Calls about a machine
//! carry the machine's *generation*, which the manager raises with every operation; an agent refuses a call older than
//! the newest it has seen, so that a delayed call of a dead manager changes nothing.

mod array;
mod error;
mod host;
pub mod id;
mod instant;
mod machine;
mod progress;
pub mod route;
mod units;
mod vm;

pub use array::{
    ArrayInfo, Capabilities, ChangedExtent, CreateVolume, DiffRequest, DiffResponse, ImageFormat, ResizeVolume,
    RevertVolume, SnapshotRef, SpaceRequest, SpaceResponse, SpaceUse, VolumeInfo, VolumeRef, VolumeSource,
};
pub use error::{Fault, FaultKind};
pub use host::{Accelerator, HostInfo};
pub use id::{DiskId, HostId, Id, JobId, NicId, SnapshotId, TemplateId, VmId};
pub use instant::{CutMethod, GuestAnswer, InstantProbe, InstantReport, MemoryInfo, MemoryState, Quiesce, TakeInstant};
pub use machine::{CloudInit, DirectBoot, DiskSlot, Firmware, Machine, NicConnection, NicSlot};
pub use progress::WorkProgress;
pub use units::{Bytes, Generation, Micros, Timestamp};
pub use vm::{
    ConfigureDisk, FixIdentity, FixedIdentity, GiveUp, GuestIdentity, OpenConsole, PauseReason, Power, RemoveMachine,
    SetLink, StartFrom, StartVm, StopHow, StopVm, VmCall, VmEvent, VmStatus,
};
