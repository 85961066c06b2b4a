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
    let attached = plan(&name, exists(&name), bridge, vlan).iter().try_for_each(|line| {
        let words: Vec<&str> = line.split(' ').collect();
        run(words[0], &words[1..])
    });
    attached.map_err(|why| fault(FaultKind::Unsupported, format!("no tap device on bridge {bridge}: {why}")))
}

/// What makes a device and plugs it into a bridge. No name has a space in it.
fn plan(name: &str, left: bool, bridge: &str, vlan: Option<u16>) -> Vec<String> {
    // One that an earlier process left may be in another VLAN.
    let mut lines: Vec<String> = left.then(|| format!("ip link delete dev {name}")).into_iter().collect();
    lines.push(format!("ip tuntap add dev {name} mode tap"));
    lines.push(format!("ip link set dev {name} master {bridge}"));
    if let Some(vlan) = vlan {
        // Of itself a bridge puts all in VLAN 1, and looks at no tag.
        lines.push(format!("ip link set dev {bridge} type bridge vlan_filtering 1"));
        lines.push(format!("bridge vlan del dev {name} vid 1"));
        lines.push(format!("bridge vlan add dev {name} vid {vlan} pvid untagged"));
    }
    // Nothing goes through before it is where it belongs.
    lines.push(format!("ip link set dev {name} up"));
    lines
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

#[cfg(test)]
mod tests {
    use super::*;

    /// As ip-link(8), ip-tuntap(8) and bridge(8) have it: what leaves the machine is of the VLAN, and nothing else enters it.
    #[test]
    fn a_device_is_in_its_vlan_before_it_is_up() {
        let lines = |left, vlan| plan("kf0", left, "br0", vlan).join("\n");
        assert_eq!(
            lines(false, None),
            "ip tuntap add dev kf0 mode tap\nip link set dev kf0 master br0\nip link set dev kf0 up"
        );
        assert_eq!(
            lines(true, Some(7)),
            "ip link delete dev kf0\n\
             ip tuntap add dev kf0 mode tap\n\
             ip link set dev kf0 master br0\n\
             ip link set dev br0 type bridge vlan_filtering 1\n\
             bridge vlan del dev kf0 vid 1\n\
             bridge vlan add dev kf0 vid 7 pvid untagged\n\
             ip link set dev kf0 up"
        );
    }
}
