//! Disks and network interfaces.

use std::io::{self, Write};

use keyframe_manager::request::DiskView;
use keyframe_model::Nic;
use keyframe_model::agent::NicConnection;

use super::{or_dash, print, size};

pub(in crate::remote) fn disks(disks: &[DiskView], out: &mut impl Write) -> io::Result<()> {
    let row = |view: &DiskView| {
        let disk = &view.disk;
        let place = if view.attached { disk.slot.to_string() } else { "-".into() };
        let remark = match (disk.firmware_variables, disk.read_only) {
            (true, _) => "firmware variables",
            (false, true) => "read-only",
            (false, false) => "",
        };
        vec![
            disk.name.to_string(),
            place,
            size(disk.size),
            or_dash(view.space.map(|space| size(space.referenced))),
            view.snapshots.to_string(),
            disk.volume.to_string(),
            remark.to_owned(),
        ]
    };
    let heading = ["DISK", "SLOT", "SIZE", "REFERENCED", "SNAPSHOTS", "VOLUME", "REMARKS"];
    print(&heading, disks.iter().map(row).collect(), out)
}

/// Where an interface leads.
pub(super) fn leads(connection: &NicConnection) -> String {
    match connection {
        NicConnection::User => "user".into(),
        NicConnection::None => "none".into(),
        NicConnection::Bridge { bridge, vlan: None } => format!("bridge {bridge}"),
        NicConnection::Bridge { bridge, vlan: Some(vlan) } => format!("bridge {bridge}, vlan {vlan}"),
        NicConnection::Isolated { network } => format!("isolated network {network}"),
    }
}

pub(in crate::remote) fn nics(nics: &[Nic], out: &mut impl Write) -> io::Result<()> {
    let row = |nic: &Nic| {
        let cable = if nic.link_up { "in" } else { "out" };
        vec![nic.slot.to_string(), nic.mac.clone(), leads(&nic.connection), cable.to_owned()]
    };
    print(&["SLOT", "ADDRESS", "LEADS TO", "CABLE"], nics.iter().map(row).collect(), out)
}
