//! Whether a machine makes sense, before anything is made of it.

use std::collections::HashSet;
use std::path::Path;

use keyframe_agent_api::{Fault, FaultKind, Firmware, Machine, NicConnection};

use super::host::Host;
use super::place::Ports;
use crate::Result;

/// QEMU's limit for this machine type without an interrupt controller that older guests do not know.
const MOST_CPUS: u32 = 255;

pub(super) fn machine(machine: &Machine, host: &Host) -> Result<()> {
    let refuse = |kind, why: String| Err(Fault::new(kind, format!("machine {}: {why}", machine.name)));
    let invalid = |why: String| refuse(FaultKind::Invalid, why);
    if !host.knows(&machine.machine_type) {
        let why = format!("{} knows no machine type {:?}", host.version(), machine.machine_type);
        return refuse(FaultKind::Unsupported, why);
    }
    if machine.cpus == 0 || machine.cpus > MOST_CPUS {
        return invalid(format!("{} processors; 1 to {MOST_CPUS} are possible", machine.cpus));
    }
    if machine.memory.0 == 0 || !machine.memory.0.is_multiple_of(1 << 20) {
        return invalid(format!("{} bytes of memory; it takes a multiple of 1 MiB", machine.memory));
    }
    let mut taken = HashSet::new();
    if let Some(disk) = machine.disks.iter().find(|d| d.slot >= Ports::DISKS || !taken.insert(d.slot)) {
        return invalid(format!("disk {}: slot {} is taken or beyond {}", disk.id, disk.slot, Ports::DISKS - 1));
    }
    let mut taken = HashSet::new();
    if let Some(nic) = machine.nics.iter().find(|n| n.slot >= Ports::NICS || !taken.insert(n.slot)) {
        return invalid(format!("interface {}: slot {} is taken or beyond {}", nic.id, nic.slot, Ports::NICS - 1));
    }
    for nic in &machine.nics {
        if !is_mac(&nic.mac) {
            return invalid(format!("interface {}: {:?} is no hardware address of one station", nic.id, nic.mac));
        }
        if matches!(nic.connection, NicConnection::Isolated { .. }) && !host.reconnects() {
            let why = format!("interface {}: isolated networks need QEMU 9.2, here is {}", nic.id, host.version());
            return refuse(FaultKind::Unsupported, why);
        }
        if matches!(nic.connection, NicConnection::Bridge { vlan: Some(vlan), .. } if !(1..=4094).contains(&vlan)) {
            return invalid(format!("interface {}: a VLAN is 1 to 4094", nic.id));
        }
    }
    if let Some(boot) = &machine.direct_boot {
        let files = [Some(&boot.kernel), boot.initrd.as_ref()];
        if let Some(missing) = files.into_iter().flatten().find(|path| !Path::new(path).is_file()) {
            return refuse(FaultKind::NotFound, format!("{missing} is not there"));
        }
    }
    let stores = machine.disks.iter().filter(|disk| disk.firmware_variables).count();
    match (machine.firmware, host.uefi_code(), stores) {
        (Firmware::Bios, _, 0) | (Firmware::Uefi, Some(_), 1) => Ok(()),
        (Firmware::Bios, ..) => invalid("a disk for UEFI's variables, but no UEFI".into()),
        (Firmware::Uefi, None, _) => {
            refuse(FaultKind::Unsupported, "no firmware for UEFI on this host; install ovmf".into())
        }
        (Firmware::Uefi, Some(_), n) => invalid(format!("UEFI keeps its variables on one disk, not on {n}")),
    }
}

/// `52:54:00:…`: six bytes, the first of them even.
fn is_mac(text: &str) -> bool {
    let bytes: Vec<&str> = text.split(':').collect();
    let digit = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
    bytes.len() == 6
        && bytes.iter().all(|byte| byte.len() == 2 && byte.bytes().all(digit))
        && u8::from_str_radix(bytes[0], 16).is_ok_and(|first| first & 1 == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_addresses_are_told_from_others() {
        let check = |text: &str, expected: bool| assert_eq!(is_mac(text), expected, "{text}");
        check("52:54:00:12:34:56", true);
        check("53:54:00:12:34:56", false);
        check("52:54:00:12:34:5G", false);
        check("52:54:00:12:34", false);
        check("52:54:00:12:34:56,x=y", false);
        check("+2:54:00:12:34:56", false);
    }
}
