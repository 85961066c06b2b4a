//! What a machine may consist of: limits, places, addresses, and what a host is told of it.

use std::collections::BTreeSet;

use uuid::Uuid;

use crate::agent::{Bytes, DiskId, DiskSlot, Machine, NicConnection, NicId, NicSlot, VmId, VolumeRef};
use crate::vm::{Disk, Hardware, Nic};
use crate::{Name, Refusal, RefusalKind};

/// Most virtual processors.
pub const MAX_CPUS: u32 = 255;
/// Least RAM.
pub const MIN_MEMORY: Bytes = Bytes::mib(16);
/// Most RAM.
pub const MAX_MEMORY: Bytes = Bytes::mib(4 << 20);
/// Most disks.
pub const MAX_DISKS: u8 = 24;
/// Most network interfaces.
pub const MAX_NICS: u8 = 8;
/// Sizes of disks are multiples of this.
pub const DISK_UNIT: Bytes = Bytes(4096);
/// The largest disk, 128 TiB: what a volume of the built-in engine can have.
pub const MAX_DISK: Bytes = Bytes(1 << 47);
/// RAM is a multiple of this.
pub const MEMORY_UNIT: Bytes = Bytes::mib(1);

/// Makes what has to be new each time. The manager's is random; that of tests counts.
pub trait Fresh {
    /// A UUID that nobody has.
    fn uuid(&mut self) -> Uuid;
    /// An identifier for a disk.
    fn disk(&mut self) -> DiskId;
    /// An identifier for a network interface.
    fn nic(&mut self) -> NicId;
    /// Six random bytes.
    fn address(&mut self) -> [u8; 6];

    /// A hardware address of its own: not of a group, administered locally (IEEE 802, section 8.2).
    fn mac(&mut self) -> String {
        let mut bytes = self.address();
        bytes[0] = (bytes[0] & 0xfc) | 0x02;
        format_mac(bytes)
    }
}

/// Reads a hardware address and writes it the way it is kept.
pub fn parse_mac(text: &str) -> Result<String, Refusal> {
    let refuse = |why: &str| {
        let shown: String = text.chars().take(32).collect();
        Err(Refusal::new(RefusalKind::Invalid, format!("the address '{}' {why}", shown.escape_debug())))
    };
    let parts: Vec<&str> = text.split(':').collect();
    let mut bytes = [0; 6];
    if parts.len() != bytes.len() {
        return refuse("is not six bytes with colons between, such as 52:54:00:12:34:56");
    }
    for (byte, part) in bytes.iter_mut().zip(&parts) {
        match u8::from_str_radix(part, 16) {
            Ok(value) if part.len() == 2 => *byte = value,
            _ => return refuse("has something else than two hexadecimal digits between its colons"),
        }
    }
    if bytes == [0; 6] {
        return refuse("is all zeroes");
    }
    if bytes[0] & 1 != 0 {
        return refuse("is a group's, not one interface's");
    }
    Ok(format_mac(bytes))
}

fn format_mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}

/// Whether a machine can have so many processors.
pub fn check_cpus(cpus: u32) -> Result<(), Refusal> {
    if (1..=MAX_CPUS).contains(&cpus) {
        return Ok(());
    }
    Err(Refusal::new(RefusalKind::Limit, format!("a machine has 1 to {MAX_CPUS} processors, not {cpus}")))
}

/// Whether a machine can have so much RAM.
pub fn check_memory(memory: Bytes) -> Result<(), Refusal> {
    if !memory.0.is_multiple_of(MEMORY_UNIT.0) {
        return Err(Refusal::new(RefusalKind::Invalid, format!("{memory} bytes of memory are not whole mebibytes")));
    }
    if (MIN_MEMORY..=MAX_MEMORY).contains(&memory) {
        return Ok(());
    }
    let mib = |bytes: Bytes| bytes.0 / Bytes::MIB;
    let (least, most, asked) = (mib(MIN_MEMORY), mib(MAX_MEMORY), mib(memory));
    Err(Refusal::new(RefusalKind::Limit, format!("a machine has {least} to {most} MiB of memory, not {asked}")))
}

/// Whether a disk can have this size.
pub fn check_disk_size(size: Bytes) -> Result<(), Refusal> {
    if size.0 == 0 || !size.0.is_multiple_of(DISK_UNIT.0) {
        let message = format!("a disk of {size} bytes: its size must be a multiple of {DISK_UNIT}, and more than none");
        return Err(Refusal::new(RefusalKind::Invalid, message));
    }
    if size > MAX_DISK {
        let message = format!("a disk of {size} bytes is above the limit of 128 TiB");
        return Err(Refusal::new(RefusalKind::Limit, message));
    }
    Ok(())
}

/// Whether an interface can lead there.
pub fn check_connection(connection: &NicConnection) -> Result<(), Refusal> {
    let refuse = |message: String| Err(Refusal::new(RefusalKind::Invalid, message));
    match connection {
        NicConnection::User | NicConnection::None => Ok(()),
        NicConnection::Bridge { bridge, vlan } => {
            // The kernel's limit for names of interfaces is 15 characters.
            let good = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            if bridge.is_empty() || bridge.len() > 15 || !bridge.chars().all(good) {
                let shown: String = bridge.chars().take(32).collect();
                return refuse(format!("'{}' is no name of a bridge", shown.escape_debug()));
            }
            vlan.map_or(Ok(()), check_vlan)
        }
        NicConnection::Isolated { network } => network.parse::<Name>().map(drop),
    }
}

/// Whether it is a number of a VLAN.
pub fn check_vlan(vlan: u16) -> Result<(), Refusal> {
    if (1..=4094).contains(&vlan) {
        return Ok(());
    }
    Err(Refusal::new(RefusalKind::Invalid, format!("VLAN {vlan}: its number must be 1 to 4094")))
}

impl Disk {
    /// What a host is told of it.
    pub fn slot(&self) -> DiskSlot {
        DiskSlot {
            id: self.id,
            slot: self.slot,
            volume: self.volume.clone(),
            read_only: self.read_only,
            firmware_variables: self.firmware_variables,
        }
    }
}

impl Hardware {
    /// What a host is told of the machine.
    pub fn machine(&self, vm: VmId, name: &Name) -> Machine {
        Machine {
            name: name.to_string(),
            uuid: vm.uuid(),
            generation_id: self.generation_id,
            machine_type: self.machine_type.clone(),
            cpus: self.cpus,
            memory: self.memory,
            firmware: self.firmware,
            direct_boot: self.direct_boot.clone(),
            disks: self.disks.iter().map(Disk::slot).collect(),
            nics: self.nics.iter().map(nic_slot).collect(),
            cloud_init: self.cloud_init.clone(),
        }
    }

    /// The volumes of its disks.
    pub fn volumes(&self) -> Vec<VolumeRef> {
        self.disks.iter().map(|disk| disk.volume.clone()).collect()
    }

    /// A disk.
    pub fn disk(&self, id: DiskId) -> Option<&Disk> {
        self.disks.iter().find(|disk| disk.id == id)
    }

    /// The wished place for a disk if it is free, or the first free one.
    pub fn disk_place(&self, wished: Option<u8>) -> Result<u8, Refusal> {
        place("disk", self.disks.iter().map(|disk| disk.slot), MAX_DISKS, wished)
    }

    /// The first free place for a network interface.
    pub fn nic_place(&self) -> Result<u8, Refusal> {
        place("network interface", self.nics.iter().map(|nic| nic.slot), MAX_NICS, None)
    }

    /// The wished name for a disk if it is free, or `disk` with the number of its place or the next free one.
    pub fn disk_name(&self, wished: Option<Name>, place: u8) -> Result<Name, Refusal> {
        let taken = |name: &Name| self.disks.iter().any(|disk| disk.name == *name);
        if let Some(name) = wished {
            if taken(&name) {
                return Err(Refusal::new(
                    RefusalKind::Taken,
                    format!("the machine has a disk {name}; choose another name"),
                ));
            }
            return Ok(name);
        }
        let mut number = u32::from(place);
        loop {
            let name: Name = format!("disk{number}").parse()?;
            if !taken(&name) {
                return Ok(name);
            }
            number += 1;
        }
    }

    /// Whether a machine can consist of this.
    pub fn check(&self) -> Result<(), Refusal> {
        check_cpus(self.cpus)?;
        check_memory(self.memory)?;
        for disk in &self.disks {
            check_disk_size(disk.size)?;
        }
        for nic in &self.nics {
            check_connection(&nic.connection)?;
            parse_mac(&nic.mac)?;
        }
        places("disk", self.disks.iter().map(|disk| disk.slot), MAX_DISKS)?;
        places("network interface", self.nics.iter().map(|nic| nic.slot), MAX_NICS)?;
        unique("disk", self.disks.iter().map(|disk| disk.name.as_str()))?;
        unique("address", self.nics.iter().map(|nic| nic.mac.as_str()))
    }
}

fn nic_slot(nic: &Nic) -> NicSlot {
    NicSlot {
        id: nic.id,
        slot: nic.slot,
        mac: nic.mac.clone(),
        connection: nic.connection.clone(),
        link_up: nic.link_up,
    }
}

fn place(what: &str, taken: impl Iterator<Item = u8>, most: u8, wished: Option<u8>) -> Result<u8, Refusal> {
    let taken: BTreeSet<u8> = taken.collect();
    match wished {
        Some(slot) if slot >= most => {
            let message = format!("a {what} at place {slot}: places are 0 to {}", most - 1);
            Err(Refusal::new(RefusalKind::Invalid, message))
        }
        Some(slot) if taken.contains(&slot) => {
            Err(Refusal::new(RefusalKind::Taken, format!("place {slot} has a {what} already; choose another")))
        }
        Some(slot) => Ok(slot),
        None => (0..most).find(|slot| !taken.contains(slot)).ok_or_else(|| {
            Refusal::new(RefusalKind::Limit, format!("the machine has {most} {what}s, which is the most"))
        }),
    }
}

fn places(what: &str, slots: impl Iterator<Item = u8>, most: u8) -> Result<(), Refusal> {
    let mut seen = BTreeSet::new();
    for slot in slots {
        place(what, seen.iter().copied(), most, Some(slot))?;
        seen.insert(slot);
    }
    Ok(())
}

fn unique<'a>(what: &str, words: impl Iterator<Item = &'a str>) -> Result<(), Refusal> {
    let mut seen = BTreeSet::new();
    for word in words {
        if !seen.insert(word) {
            return Err(Refusal::new(RefusalKind::Taken, format!("the machine has {what} {word} twice")));
        }
    }
    Ok(())
}
