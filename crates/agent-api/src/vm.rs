//! Running machines.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{Bytes, DiskSlot, Fault, Generation, Machine, Micros, NicId, SnapshotId, Timestamp, VmId};

/// What a machine is doing.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(tag = "power", rename_all = "kebab-case")]
pub enum Power {
    /// There is no process.
    Off,
    /// The guest runs.
    Running,
    /// The process is there, the guest's processors stand still.
    Paused {
        /// Why.
        reason: PauseReason,
    },
}

/// Why a guest stands still.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PauseReason {
    /// Somebody asked for it.
    Asked,
    /// An array is full; goes on when there is space and somebody resumes it.
    NoSpace,
    /// A disk failed; resuming tries again.
    IoError,
    /// The guest's system gave up, or the hypervisor did.
    Crashed,
}

/// Starts a machine. If it runs already with this generation, nothing is done.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct StartVm {
    /// The machine's.
    pub generation: Generation,
    /// What to run.
    pub machine: Machine,
    /// Where its memory comes from.
    #[serde(default)]
    pub from: StartFrom,
    /// Leave the processors standing still.
    #[serde(default)]
    pub paused: bool,
}

/// Where a starting machine's memory comes from.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum StartFrom {
    /// Nowhere: the firmware starts.
    #[default]
    Cold,
    /// The guest goes on where it was at that snapshot.
    Memory {
        /// Its memory image.
        snapshot: SnapshotId,
        /// The machine is a new one: no packet leaves it under the identity that the image holds. Its network interfaces
        /// come up with the cable out; [`FixIdentity`] plugs in those whose slot says so.
        new_identity: bool,
    },
}

/// A call about a machine that needs nothing else.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct VmCall {
    /// The machine's.
    pub generation: Generation,
}

/// Gives up a machine that stands still, but for its memory, which goes to an instant that was taken of it since. Nothing is
/// done if it was given up for that already.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct GiveUp {
    /// The machine's.
    pub generation: Generation,
    /// The instant.
    pub snapshot: SnapshotId,
}

/// Stops a machine. If it is off already, nothing is done.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct StopVm {
    /// The machine's.
    pub generation: Generation,
    /// In what way.
    pub how: StopHow,
}

/// In what way a machine is stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum StopHow {
    /// The guest is asked, by its agent or the power button. After the deadline the call fails, unless `then_hard`.
    Graceful {
        /// How long the guest may take.
        deadline: Micros,
        /// Pull the plug after the deadline.
        then_hard: bool,
    },
    /// The plug is pulled.
    Hard,
}

/// Adds a disk to a running machine.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct ConfigureDisk {
    /// The machine's.
    pub generation: Generation,
    /// The disk.
    pub disk: DiskSlot,
}

/// Plugs a cable in or out.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct SetLink {
    /// The machine's.
    pub generation: Generation,
    /// Which interface.
    pub nic: NicId,
    /// In.
    pub up: bool,
}

/// Makes a copied guest notice who it is now, through its agent; then plugs in the cables that its machine says are in.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct FixIdentity {
    /// The machine's.
    pub generation: Generation,
    /// What to set.
    pub identity: GuestIdentity,
    /// How long the guest agent may take in all.
    pub deadline: Micros,
}

/// What a guest is told about itself.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct GuestIdentity {
    /// Its host name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_name: Option<String>,
    /// Old and new hardware addresses of its network interfaces.
    #[serde(default)]
    pub macs: Vec<(String, String)>,
    /// Its clock is set to the host's.
    #[serde(default)]
    pub clock: bool,
}

/// What came of a [`FixIdentity`]; each is `None` where it was not asked for.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct FixedIdentity {
    /// The guest agent answered.
    pub agent: bool,
    /// The host name is set.
    pub host_name: Option<bool>,
    /// All addresses are set.
    pub macs: Option<bool>,
    /// The clock is set.
    pub clock: Option<bool>,
    /// The cables of a copy, one that was given a name or addresses, that its machine says are in are in. They stay out while the
    /// guest has the addresses of the other one.
    pub plugged: bool,
    /// What went wrong, for people.
    pub complaints: Vec<String>,
}

/// Opens a machine's console, which one session has at a time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenConsole {
    /// Take it over from whoever has it.
    #[serde(default)]
    pub force: bool,
}

/// Forgets a machine that is off: its sockets, logs and stored generation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct RemoveMachine {
    /// The machine's.
    pub generation: Generation,
}

/// A machine as it is found.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct VmStatus {
    /// Which.
    pub vm: VmId,
    /// The newest generation that the agent has seen.
    pub generation: Generation,
    /// What it does.
    #[serde(flatten)]
    pub power: Power,
    /// The machine it runs as; absent when off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<Machine>,
    /// The hypervisor's process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// When the process was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// The hypervisor and its version, for example `qemu 10.0.2`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hypervisor: Option<String>,
    /// Emulated rather than run by the processor.
    #[serde(default)]
    pub emulated: bool,
    /// Memory that still lies in the image the machine was resumed from.
    #[serde(default)]
    pub memory_pending: Bytes,
    /// Where a local viewer finds the screen (VNC) and the console: Unix sockets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vnc: Option<String>,
    /// See `vnc`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub console: Option<String>,
}

impl VmStatus {
    /// A machine of which nothing is known but what it does.
    pub const fn bare(vm: VmId, power: Power) -> VmStatus {
        VmStatus {
            vm,
            generation: Generation(0),
            power,
            machine: None,
            pid: None,
            since: None,
            hypervisor: None,
            emulated: false,
            memory_pending: Bytes(0),
            vnc: None,
            console: None,
        }
    }
}

/// One line of the agent's stream of events: the machine's status after something happened to it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum VmEvent {
    /// What a machine does has changed.
    Changed(Box<VmStatus>),
    /// Something went wrong that nobody had asked for.
    Complaint {
        /// The machine.
        vm: VmId,
        /// What went wrong.
        fault: Fault,
    },
}
