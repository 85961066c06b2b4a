//! Tap devices on the host's bridges, made with `ip` and `bridge`: each belongs to one interface of one machine.

use std::path::Path;
use std::process::Command;

use keyframe_agent_api::{Fault, FaultKind, Machine, NicConnection, NicSlot};

use super::net::tap_name;
use crate::Result;

/// Makes what the machine's interfaces need. What an earlier process left is removed first.
pub(super) fn create_all(machine: &Machine) -> Result<()> {
    for nic in &machine.nics {
        if let NicConnection::Bridge { bridge, vlan } = &nic.connection {
            create(&machine.name, nic, bridge, *vlan)?;
        }
    }
    Ok(())
}

/// Removes them; they may be gone.
pub(super) fn remove_all(machine: &Machine) {
    for nic in machine.nics.iter().filter(|nic| matches!(nic.connection, NicConnection::Bridge { .. })) {
        let name = tap_name(nic.id);
        if !exists(&name) {
            continue;
        }
        if let Err(why) = run("ip", &["link", "delete", "dev", &name]) {
            tracing::warn!("remove tap device {name}: {why}");
        }
    }
}

fn create(machine: &str, nic: &NicSlot, bridge: &str, vlan: Option<u16>) -> Result<()> {
    let fault = |kind, why: String| Fault::new(kind, format!("network interface {} of {machine}: {why}", nic.slot));
    let sound =
        (1..16).contains(&bridge.len()) && bridge.bytes().all(|c| c.is_ascii_alphanumeric() || b"._-".contains(&c));
    if !sound || bridge.starts_with(['-', '.']) {
        return Err(fault(FaultKind::Invalid, format!("{bridge:?} is no name of a bridge")));
    }
    if !Path::new("/sys/class/net").join(bridge).join("bridge").is_dir() {
        let why = format!("this host has no bridge {bridge}; make one, or choose a user or isolated network");
        return Err(fault(FaultKind::Unsupported, why));
    }
    let name = tap_name(nic.id);
    let name = name.as_str();
    let attach = || -> std::result::Result<(), String> {
        if exists(name) {
            // It may be in another VLAN.
            run("ip", &["link", "delete", "dev", name])?;
        }
        run("ip", &["tuntap", "add", "dev", name, "mode", "tap"])?;
        run("ip", &["link", "set", "dev", name, "master", bridge])?;
        if let Some(vlan) = vlan {
            run("ip", &["link", "set", "dev", bridge, "type", "bridge", "vlan_filtering", "1"])?;
            run("bridge", &["vlan", "del", "dev", name, "vid", "1"])?;
            run("bridge", &["vlan", "add", "dev", name, "vid", &vlan.to_string(), "pvid", "untagged"])?;
        }
        run("ip", &["link", "set", "dev", name, "up"])
    };
    attach().map_err(|why| fault(FaultKind::Unsupported, format!("no tap device on bridge {bridge}: {why}")))
}

fn exists(name: &str) -> bool {
    Path::new("/sys/class/net").join(name).exists()
}

fn run(program: &str, arguments: &[&str]) -> std::result::Result<(), String> {
    let output = Command::new(program).args(arguments).output().map_err(|e| format!("{program}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{program} {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim()))
}
