//! The hardware of a virtual machine, as one host needs it to run it.
//!
//! Everything a guest can see is said here and nothing is left to a default of the hypervisor: a memory image loads only
//! into a machine with the same devices at the same places.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{Bytes, DiskId, NicId, VolumeRef};

/// A machine.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Machine {
    /// For people: the process's title, the host name of a seed that gives none.
    pub name: String,
    /// What the guest's firmware tables (SMBIOS) say.
    pub uuid: Uuid,
    /// The VM generation id: changes whenever the guest may have been copied or taken back.
    pub generation_id: Uuid,
    /// The hypervisor's machine type, versioned, for example `pc-q35-10.0`.
    pub machine_type: String,
    /// Virtual processors.
    pub cpus: u32,
    /// RAM, a multiple of 1 MiB.
    pub memory: Bytes,
    /// What starts first.
    pub firmware: Firmware,
    /// A kernel given from outside instead of a boot loader on a disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direct_boot: Option<DirectBoot>,
    /// In no order; their slots say where they are.
    pub disks: Vec<DiskSlot>,
    /// In no order; their slots say where they are.
    pub nics: Vec<NicSlot>,
    /// What a fresh guest reads to set itself up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cloud_init: Option<CloudInit>,
}

/// What starts first.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Firmware {
    /// SeaBIOS.
    #[default]
    Bios,
    /// OVMF; its variables are on the disk whose `firmware_variables` is set.
    Uefi,
}

/// Files of the host.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct DirectBoot {
    /// The kernel image.
    pub kernel: String,
    /// The initial RAM disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<String>,
    /// The kernel's command line.
    #[serde(default)]
    pub command_line: String,
}

/// A disk at its place.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct DiskSlot {
    /// Which disk. Its first 20 characters without hyphens are the serial number that the guest sees.
    pub id: DiskId,
    /// 0 to 23: the place on the bus, and the order in which the firmware tries them.
    pub slot: u8,
    /// Where the blocks are.
    pub volume: VolumeRef,
    /// The guest may only read.
    #[serde(default)]
    pub read_only: bool,
    /// The firmware's variable store rather than a disk that the guest sees.
    #[serde(default)]
    pub firmware_variables: bool,
}

/// A network interface at its place.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct NicSlot {
    /// Which interface.
    pub id: NicId,
    /// 0 to 7: the place on the bus.
    pub slot: u8,
    /// Six bytes in hexadecimal with colons, lower case.
    pub mac: String,
    /// The other end of the cable.
    pub connection: NicConnection,
    /// Whether the cable is plugged in.
    pub link_up: bool,
}

/// Where a network interface leads.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum NicConnection {
    /// The hypervisor's own network address translation; needs no rights.
    User,
    /// A tap device on a bridge of the host.
    Bridge {
        /// The bridge.
        bridge: String,
        /// 1 to 4094.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        vlan: Option<u16>,
    },
    /// A network of its own, shared with those of the same name on this host and nobody else.
    Isolated {
        /// The network.
        network: String,
    },
    /// Nowhere.
    None,
}

/// Data for cloud-init's NoCloud source, given to the guest as a small volume labelled `CIDATA`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct CloudInit {
    /// The file `user-data`.
    #[serde(default)]
    pub user_data: String,
    /// The file `meta-data`; made from the machine's name and UUID when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub meta_data: Option<String>,
    /// The file `network-config`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_config: Option<String>,
}
