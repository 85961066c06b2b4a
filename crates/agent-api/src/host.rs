//! A host and its agent.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{ArrayInfo, Bytes};

/// What a host is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct HostInfo {
    /// The host's name.
    pub name: String,
    /// The agent's version.
    pub agent: String,
    /// The hypervisor and its version, for example `qemu 10.0.2`.
    pub hypervisor: String,
    /// The newest machine type, for new machines.
    pub machine_type: String,
    /// How guests are run.
    pub accelerator: Accelerator,
    /// Processors of the host.
    pub cpus: u32,
    /// RAM of the host.
    pub memory: Bytes,
    /// The firmware for [`Firmware::Uefi`](crate::Firmware::Uefi) is installed.
    pub uefi: bool,
    /// A fresh variable store for it, a file to be imported into a volume of exactly its size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uefi_variables: Option<String>,
    /// Free space where memory images are kept.
    pub memory_free: Bytes,
    /// What makes volumes here.
    pub arrays: Vec<ArrayInfo>,
}

/// How guests are run.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Accelerator {
    /// By the processor.
    Kvm,
    /// Emulated, which is many times slower.
    Emulation {
        /// Why the processor cannot.
        reason: String,
    },
}
