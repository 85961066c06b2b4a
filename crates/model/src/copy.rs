//! What a copy of a machine consists of: the same hardware under a new identity.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::agent::{NicConnection, SnapshotId, SnapshotRef, VolumeRef};
use crate::hardware::{Fresh, check_connection, check_vlan};
use crate::vm::{Disk, Hardware, Nic};
use crate::{Refusal, RefusalKind};

/// What becomes of the network interfaces of a copy. They get new addresses in any case.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum NicPolicy {
    /// Connected as the source's.
    Keep,
    /// There, but with the cable out.
    Disconnect,
    /// On the same bridges in this VLAN; those without a bridge have the cable out.
    Vlan {
        /// 1 to 4094.
        vlan: u16,
    },
    /// In a network of this name, with those that say the same and nobody else.
    Isolated {
        /// The network; one for the clones of this call when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        network: Option<String>,
    },
}

impl NicPolicy {
    /// What happens when nobody says anything: a copy with memory would answer under the source's identity.
    pub const fn default_for(memory: bool) -> NicPolicy {
        if memory { NicPolicy::Disconnect } else { NicPolicy::Keep }
    }

    /// Whether it makes sense.
    pub fn check(&self) -> Result<(), Refusal> {
        match self {
            NicPolicy::Keep | NicPolicy::Disconnect => Ok(()),
            NicPolicy::Vlan { vlan } => check_vlan(*vlan),
            NicPolicy::Isolated { network: None } => Ok(()),
            NicPolicy::Isolated { network: Some(network) } => {
                check_connection(&NicConnection::Isolated { network: network.clone() })
            }
        }
    }

    /// Whether it does anything for a copy of that hardware: a VLAN needs a bridge.
    pub fn fits(&self, source: &str, hardware: &Hardware) -> Result<(), Refusal> {
        let bridged = |nic: &Nic| matches!(nic.connection, NicConnection::Bridge { .. });
        match self {
            NicPolicy::Vlan { vlan } if !hardware.nics.iter().any(bridged) => {
                let message = format!(
                    "no network interface of {source} is on a bridge, so a copy cannot be in VLAN {vlan}; disconnect it, or \
                     isolate it"
                );
                Err(Refusal::new(RefusalKind::Invalid, message))
            }
            NicPolicy::Keep | NicPolicy::Disconnect | NicPolicy::Vlan { .. } | NicPolicy::Isolated { .. } => Ok(()),
        }
    }

    /// Where an interface leads in the copy, and whether its cable is in. `network` is the one for this call.
    fn connect(&self, nic: &Nic, network: &str) -> (NicConnection, bool) {
        match self {
            NicPolicy::Keep => (nic.connection.clone(), nic.link_up),
            NicPolicy::Disconnect => (nic.connection.clone(), false),
            NicPolicy::Vlan { vlan } => match &nic.connection {
                NicConnection::Bridge { bridge, .. } => {
                    (NicConnection::Bridge { bridge: bridge.clone(), vlan: Some(*vlan) }, nic.link_up)
                }
                other @ (NicConnection::User | NicConnection::Isolated { .. } | NicConnection::None) => {
                    (other.clone(), false)
                }
            },
            NicPolicy::Isolated { network: wished } => {
                let network = wished.as_deref().unwrap_or(network).to_owned();
                (NicConnection::Isolated { network }, nic.link_up)
            }
        }
    }
}

/// A copy: what it consists of, and what its volumes are clones of.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Copy {
    /// The new hardware, with identifiers, addresses and volumes of its own.
    pub hardware: Hardware,
    /// For each disk, in their order: what its volume is a clone of.
    pub sources: Vec<SnapshotRef>,
    /// The old and new addresses of the network interfaces.
    pub macs: Vec<(String, String)>,
}

/// A copy of hardware whose volumes have that snapshot.
pub fn copy(source: &Hardware, snapshot: SnapshotId, nics: &NicPolicy, network: &str, fresh: &mut dyn Fresh) -> Copy {
    let mut sources = Vec::new();
    let mut macs = Vec::new();
    let disks = source.disks.iter().map(|disk| {
        sources.push(SnapshotRef { volume: disk.volume.clone(), snapshot });
        let id = fresh.disk();
        let volume = VolumeRef { array: disk.volume.array.clone(), volume: id.to_string() };
        Disk { id, volume, ..disk.clone() }
    });
    let disks = disks.collect();
    let nics = source.nics.iter().map(|nic| {
        let (connection, link_up) = nics.connect(nic, network);
        let mac = fresh.mac();
        macs.push((nic.mac.clone(), mac.clone()));
        Nic { id: fresh.nic(), slot: nic.slot, mac, connection, link_up }
    });
    let nics = nics.collect();
    let hardware = Hardware { generation_id: fresh.uuid(), disks, nics, ..source.clone() };
    Copy { hardware, sources, macs }
}

/// Whether so many copies can be made at once.
pub fn check_count(count: u32) -> Result<(), Refusal> {
    if (1..=MAX_COPIES).contains(&count) {
        return Ok(());
    }
    Err(Refusal::new(RefusalKind::Limit, format!("1 to {MAX_COPIES} copies can be made at once, not {count}")))
}

/// Most copies that one call makes.
pub const MAX_COPIES: u32 = 1000;
