//! The agent's calls. Bodies are JSON; a failed call answers with a [`Fault`](crate::Fault).
//!
//! | method and path | body | answer |
//! |---|---|---|
//! | `GET /v1/host` | | [`HostInfo`](crate::HostInfo) |
//! | `GET /v1/volumes/{array}` (`?after=&limit=`) | | `[VolumeInfo]` |
//! | `PUT /v1/volumes/{array}/{volume}` | [`CreateVolume`](crate::CreateVolume) | [`VolumeInfo`](crate::VolumeInfo) |
//! | `POST /v1/volumes/{array}/{volume}/cancel` | | ends its filling from an image |
//! | `GET /v1/volumes/{array}/{volume}/progress` | | [`WorkProgress`](crate::WorkProgress) of its filling |
//! | `GET /v1/volumes/{array}/{volume}` | | [`VolumeInfo`](crate::VolumeInfo) |
//! | `DELETE /v1/volumes/{array}/{volume}` | | with its snapshots; nothing if it is not there |
//! | `POST /v1/volumes/{array}/{volume}/resize` | [`ResizeVolume`](crate::ResizeVolume) | [`VolumeInfo`](crate::VolumeInfo) |
//! | `POST /v1/volumes/{array}/{volume}/revert` | [`RevertVolume`](crate::RevertVolume) | |
//! | `DELETE /v1/volumes/{array}/{volume}/snapshots/{snapshot}` | | nothing if it is not there |
//! | `POST /v1/space` | [`SpaceRequest`](crate::SpaceRequest) | [`SpaceResponse`](crate::SpaceResponse) |
//! | `POST /v1/diff` | [`DiffRequest`](crate::DiffRequest) | [`DiffResponse`](crate::DiffResponse) |
//! | `PUT /v1/instants/{snapshot}` | [`TakeInstant`](crate::TakeInstant) | [`InstantReport`](crate::InstantReport) |
//! | `GET /v1/instants/{snapshot}` (`?volume=array/volume` repeated) | | [`InstantProbe`](crate::InstantProbe) |
//! | `DELETE /v1/instants/{snapshot}` (`?volume=array/volume` repeated) | | snapshots of these volumes, and memory |
//! | `POST /v1/instants/{snapshot}/cancel` | | ends one that is being taken, or compressed |
//! | `POST /v1/memory/{snapshot}/store` | | [`InstantReport`](crate::InstantReport) of a machine that was given up |
//! | `POST /v1/memory/{snapshot}/drop` | | ends what was given up for it; what is stored stays |
//! | `POST /v1/memory/{snapshot}/compress` | | [`MemoryInfo`](crate::MemoryInfo) |
//! | `POST /v1/memory/{snapshot}/verify` | | [`MemoryState`](crate::MemoryState); ends with its connection |
//! | `GET /v1/memory/{snapshot}/progress` | | [`WorkProgress`](crate::WorkProgress) of either |
//! | `GET /v1/vms` | | `[VmStatus]` |
//! | `GET /v1/vms/{vm}` | | [`VmStatus`](crate::VmStatus) |
//! | `PUT /v1/vms/{vm}/run` | [`StartVm`](crate::StartVm) | [`VmStatus`](crate::VmStatus) |
//! | `POST /v1/vms/{vm}/check` | [`StartVm`](crate::StartVm) | refuses what `run` would refuse before it does anything |
//! | `POST /v1/vms/{vm}/give-up` | [`GiveUp`](crate::GiveUp) | [`VmStatus`](crate::VmStatus) |
//! | `POST /v1/vms/{vm}/stop` | [`StopVm`](crate::StopVm) | [`VmStatus`](crate::VmStatus) |
//! | `POST /v1/vms/{vm}/pause`, `/resume`, `/reset` | [`VmCall`](crate::VmCall) | [`VmStatus`](crate::VmStatus) |
//! | `PUT /v1/vms/{vm}/disks/{disk}` | [`ConfigureDisk`](crate::ConfigureDisk) | adds it while the machine runs |
//! | `POST /v1/vms/{vm}/disks/{disk}/remove`, `/resized` | [`VmCall`](crate::VmCall) | takes it out; tells the guest its new size |
//! | `POST /v1/vms/{vm}/link` | [`SetLink`](crate::SetLink) | |
//! | `POST /v1/vms/{vm}/identity` | [`FixIdentity`](crate::FixIdentity) | [`FixedIdentity`](crate::FixedIdentity) |
//! | `POST /v1/vms/{vm}/remove` | [`RemoveMachine`](crate::RemoveMachine) | |
//! | `GET /v1/vms/{vm}/console` ([`OpenConsole`] in the query) | upgrade to `websocket` | binary frames, both ways |
//! | `GET /v1/events` | | server-sent events, each a [`VmEvent`](crate::VmEvent) |

use crate::{DiskId, OpenConsole, SnapshotId, VmId, VolumeRef};

/// All machines.
pub const VMS: &str = "/v1/vms";
/// The host.
pub const HOST: &str = "/v1/host";
/// Space.
pub const SPACE: &str = "/v1/space";
/// Differences.
pub const DIFF: &str = "/v1/diff";
/// The stream of events.
pub const EVENTS: &str = "/v1/events";

/// With this code a console is closed that another session took over (RFC 6455, section 7.4.2: for private use).
pub const TAKEN_OVER: u16 = 4001;

/// A volume.
pub fn volume(volume: &VolumeRef) -> String {
    format!("/v1/volumes/{}/{}", volume.array, volume.volume)
}

/// A snapshot of a volume.
pub fn volume_snapshot(of: &VolumeRef, snapshot: SnapshotId) -> String {
    format!("{}/snapshots/{snapshot}", volume(of))
}

/// An instant, with the volumes that it is asked about.
pub fn instant(snapshot: SnapshotId, volumes: &[VolumeRef]) -> String {
    let query: Vec<String> = volumes.iter().map(|volume| format!("volume={volume}")).collect();
    let mark = if query.is_empty() { "" } else { "?" };
    format!("/v1/instants/{snapshot}{mark}{}", query.join("&"))
}

/// A memory image.
pub fn memory(snapshot: SnapshotId, act: &str) -> String {
    format!("/v1/memory/{snapshot}/{act}")
}

/// A machine.
pub fn vm(vm: VmId) -> String {
    format!("{VMS}/{vm}")
}

/// Something done to a machine: `run`, `stop`, `pause` and so on.
pub fn vm_act(id: VmId, act: &str) -> String {
    format!("{}/{act}", vm(id))
}

/// A machine's console.
pub fn console(id: VmId, wish: OpenConsole) -> String {
    format!("{}?force={}", vm_act(id, "console"), wish.force)
}

/// A disk of a running machine.
pub fn vm_disk(id: VmId, disk: DiskId) -> String {
    format!("{}/disks/{disk}", vm(id))
}
