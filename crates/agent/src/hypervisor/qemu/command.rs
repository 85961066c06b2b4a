//! A machine as a command line of QEMU: a pure function.
//!
//! Every device has a fixed place, because a memory image loads only into a machine with the same devices at the same
//! places, whatever was added and removed while it ran:
//!
//! ```text
//!  pcie.0  1 screen  2 random numbers  3 serial ports (guest agent)  5 panic notifier
//!          10.0 … 12.7 root ports of disk slots 0 … 23    13.0 … 13.7 root ports of interface slots 0 … 7
//!          14.0 root port of the cloud-init volume, behind the disks so that they keep their names in the guest
//! ```
//!
//! Of the root ports there are those that [`Ports`] says.
//!
//! What an interface can offload is pinned to nothing: it would depend on the other end of the cable, and a copy of the
//! machine may be plugged in elsewhere.

use std::collections::BTreeMap;
use std::path::Path;

use keyframe_agent_api::{Accelerator, DiskId, DiskSlot, Firmware, Machine, NicConnection, NicSlot};
use serde_json::{Value, json};

use super::net;
use super::place::{Place, Ports};
use crate::hypervisor::BlockAddress;

const SEED_PORT: &str = "seed-port";
/// The character device that a guest's agent is behind.
pub(super) const AGENT_PORT: &str = "agent";
/// How long a disk waits for its server before the guest is stopped.
const RECONNECT_SECONDS: u32 = 300;

/// What a process that a guest has broken into cannot do: become another, start another, take more of the host.
pub(super) const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

/// All that the command line is made of.
pub(super) struct Plan<'a> {
    pub(super) machine: &'a Machine,
    pub(super) blocks: &'a BTreeMap<DiskId, BlockAddress>,
    pub(super) place: &'a Place,
    pub(super) accelerator: &'a Accelerator,
    pub(super) ports: Ports,
    /// Code of the UEFI firmware.
    pub(super) uefi_code: Option<&'a Path>,
    /// The folder of the sockets of isolated networks.
    pub(super) networks: &'a Path,
    /// Memory comes through the monitor's commands.
    pub(super) incoming: bool,
    /// How many networks of QEMU's own the memory was captured with. Each has a state, which needs a place also where the
    /// machine's interfaces lead elsewhere now.
    pub(super) user_networks: usize,
    /// QEMU gives up the system calls that it does not need.
    pub(super) sandbox: bool,
    /// QEMU knows the offloads of UDP, which are switched off with the others.
    pub(super) uso: bool,
}

/// QEMU's arguments. The guest stands still until it is told to go on.
pub(super) fn arguments(plan: &Plan<'_>) -> Vec<String> {
    let mut line = Line::default();
    base(&mut line, plan);
    devices(&mut line, plan);
    for slot in 0..plan.ports.disks {
        root_port(&mut line, disk_port(slot), 0x10, slot);
    }
    for slot in 0..plan.ports.nics {
        root_port(&mut line, nic_port(slot), 0x13, Ports::DISKS + slot);
    }
    if plan.ports.seed {
        root_port(&mut line, SEED_PORT.into(), 0x14, Ports::DISKS + Ports::NICS);
    }
    let mut disks: Vec<&DiskSlot> = plan.machine.disks.iter().filter(|disk| !disk.firmware_variables).collect();
    disks.sort_by_key(|disk| disk.slot);
    for disk in disks {
        if let Some(address) = plan.blocks.get(&disk.id) {
            line.json("-blockdev", &server_node(disk.slot, false, address, disk.read_only));
            line.json("-blockdev", &disk_node(disk.slot, false, disk.read_only));
            line.json("-device", &disk_device(disk));
        }
    }
    seed(&mut line, plan);
    let mut nics: Vec<&NicSlot> = plan.machine.nics.iter().collect();
    nics.sort_by_key(|nic| nic.slot);
    for nic in nics {
        if let Some(end) = cable(nic, plan.networks) {
            line.json("-netdev", &end);
        }
        line.json("-device", &nic_device(nic, plan.uso));
    }
    let own = plan.machine.nics.iter().filter(|nic| nic.connection == NicConnection::User).count();
    for spare in own..plan.user_networks {
        line.json("-netdev", &json!({ "type": "user", "id": format!("spare{spare}"), "restrict": true }));
    }
    if plan.incoming {
        line.pair("-incoming", "defer");
    }
    line.words
}

/// Several processors take turns. With a thread for each, what one writes to a device lands in another device while a second
/// moves registers about, as guests do when they boot: interrupts are never heard of again, or QEMU ends with an assertion in
/// `msix_table_mmio_write`. On a busy host 4 of 63 boots failed so with QEMU 10.0.2; of 96 in turns, none.
fn translator(cpus: u32) -> &'static str {
    if cpus > 1 { "tcg,thread=single" } else { "tcg,thread=multi" }
}

fn base(line: &mut Line, plan: &Plan<'_>) {
    let machine = plan.machine;
    let mebibytes = machine.memory.0 >> 20;
    line.pair("-name", &format!("guest={}", escape(&machine.name)));
    match plan.accelerator {
        Accelerator::Kvm => line.pair("-accel", "kvm").pair("-cpu", "host"),
        // What current distributions ask for at least (x86-64-v2); more costs the translator time at every boot.
        Accelerator::Emulation { .. } => {
            line.pair("-accel", translator(machine.cpus));
            line.pair("-cpu", "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+cx16,+lahf-lm")
        }
    };
    if plan.sandbox {
        line.pair("-sandbox", SANDBOX);
    }
    line.flag("-nodefaults").flag("-no-user-config").pair("-display", "none").flag("-S");
    line.pair("-pidfile", &plan.place.pid().display().to_string());
    line.pair("-action", "panic=pause,reboot=reset,shutdown=poweroff").pair("-rtc", "base=utc");
    let mut kind = format!("{},usb=off,vmport=off,memory-backend=ram0", escape(&machine.machine_type));
    if machine.firmware == Firmware::Uefi {
        kind.push_str(",pflash0=firmware,pflash1=variables");
    }
    line.pair("-machine", &kind).pair("-m", &mebibytes.to_string());
    // Anonymous memory is the quickest to protect against writes.
    line.json("-object", &json!({ "qom-type": "memory-backend-ram", "id": "ram0", "size": machine.memory.0 }));
    line.pair("-smp", &format!("cpus={0},sockets=1,cores={0},threads=1", machine.cpus));
    line.pair("-uuid", &machine.uuid.to_string());
    line.pair("-smbios", "type=1,manufacturer=Keyframe,product=Virtual Machine");
    if let Some(boot) = &machine.direct_boot {
        line.pair("-kernel", &boot.kernel);
        if let Some(initrd) = &boot.initrd {
            line.pair("-initrd", initrd);
        }
        line.pair("-append", &boot.command_line);
    }
    firmware(line, plan);
}

fn firmware(line: &mut Line, plan: &Plan<'_>) {
    if plan.machine.firmware != Firmware::Uefi {
        return;
    }
    let file = json!({ "driver": "file", "filename": plan.uefi_code });
    line.json("-blockdev", &json!({ "driver": "raw", "node-name": "firmware", "read-only": true, "file": file }));
    let store = plan.machine.disks.iter().find(|disk| disk.firmware_variables);
    if let Some(address) = store.and_then(|disk| plan.blocks.get(&disk.id)) {
        line.json("-blockdev", &json!({ "driver": "raw", "node-name": "variables", "file": server(address) }));
    }
}

fn devices(line: &mut Line, plan: &Plan<'_>) {
    let place = plan.place;
    let socket = |id: &str, path: &Path| {
        format!("socket,id={id},path={},server=on,wait=off", escape(&path.display().to_string()))
    };
    line.pair("-chardev", &socket("qmp", &place.qmp())).pair("-mon", "chardev=qmp,mode=control");
    if plan.incoming {
        line.pair("-chardev", &socket("spare", &place.spare())).pair("-mon", "chardev=spare,mode=control");
    }
    // What the guest says while nobody listens is not lost.
    let log = escape(&place.console_log().display().to_string());
    line.pair("-chardev", &format!("{},logfile={log},logappend=on", socket("console", &place.console())));
    line.pair("-serial", "chardev:console");
    line.json("-device", &json!({ "driver": "VGA", "id": "screen", "vgamem_mb": 16, "bus": "pcie.0", "addr": "0x1" }));
    line.pair("-vnc", &format!("unix:{}", escape(&place.vnc().display().to_string())));
    line.json("-object", &json!({ "qom-type": "rng-random", "id": "entropy", "filename": "/dev/urandom" }));
    line.json("-device", &json!({ "driver": "virtio-rng-pci", "rng": "entropy", "bus": "pcie.0", "addr": "0x2" }));
    line.json("-device", &json!({ "driver": "virtio-serial-pci", "id": "ports", "bus": "pcie.0", "addr": "0x3" }));
    line.pair("-chardev", &socket(AGENT_PORT, &place.agent()));
    let port = "org.qemu.guest_agent.0";
    line.json(
        "-device",
        &json!({ "driver": "virtserialport", "bus": "ports.0", "nr": 1, "chardev": AGENT_PORT, "name": port }),
    );
    line.json("-device", &json!({ "driver": "pvpanic-pci", "bus": "pcie.0", "addr": "0x5" }));
    line.json("-device", &json!({ "driver": "vmgenid", "guid": plan.machine.generation_id }));
}

/// What a fresh guest reads to set itself up.
fn seed(line: &mut Line, plan: &Plan<'_>) {
    if plan.machine.cloud_init.is_some() {
        let file = json!({ "driver": "file", "filename": plan.place.seed() });
        line.json("-blockdev", &json!({ "driver": "raw", "node-name": "seed", "read-only": true, "file": file }));
        let at = json!({ "driver": "virtio-blk-pci", "id": "seed", "drive": "seed", "serial": "cidata", "num-queues": 1,
            "bus": SEED_PORT, "addr": "0x0" });
        line.json("-device", &at);
    }
}

fn root_port(line: &mut Line, id: String, first: u8, index: u8) {
    let (device, function) = (if first == 0x10 { first + index / 8 } else { first }, index % 8);
    line.json(
        "-device",
        &json!({ "driver": "pcie-root-port", "id": id, "chassis": index + 1, "port": index, "io-reserve": 0,
            "multifunction": true, "bus": "pcie.0", "addr": format!("{device:#x}.{function:#x}") }),
    );
}

fn disk_port(slot: u8) -> String {
    format!("disk-port{slot}")
}

fn nic_port(slot: u8) -> String {
    format!("nic-port{slot}")
}

/// The device of a disk.
pub(super) fn disk_id(slot: u8) -> String {
    format!("disk{slot}")
}

/// The device of an interface.
pub(super) fn nic_id(slot: u8) -> String {
    format!("nic{slot}")
}

/// The node that a disk's device reads and writes; it stays while the one below is replaced.
pub(super) fn node(slot: u8) -> String {
    format!("slot{slot}")
}

/// The node that talks to the disk's server: one of two names, so that a new one can be there beside the old one.
pub(super) fn server_name(slot: u8, second: bool) -> String {
    format!("slot{slot}-{}", if second { "b" } else { "a" })
}

fn server(address: &BlockAddress) -> Value {
    json!({
        "driver": "nbd",
        "server": { "type": "unix", "path": address.socket },
        "export": address.export,
        "reconnect-delay": RECONNECT_SECONDS,
        "open-timeout": 10,
    })
}

/// The options of a server's node.
pub(super) fn server_node(slot: u8, second: bool, address: &BlockAddress, read_only: bool) -> Value {
    let mut node = server(address);
    node["node-name"] = server_name(slot, second).into();
    node["read-only"] = read_only.into();
    node["discard"] = "unmap".into();
    node
}

/// The options of a disk's node.
pub(super) fn disk_node(slot: u8, second: bool, read_only: bool) -> Value {
    json!({ "driver": "raw", "node-name": node(slot), "read-only": read_only, "discard": "unmap",
        "file": server_name(slot, second) })
}

/// The options of a disk's device.
pub(super) fn disk_device(disk: &DiskSlot) -> Value {
    let serial: String = disk.id.uuid().simple().to_string().chars().take(20).collect();
    // The firmware tries disks in the order of their slots. A full array or a broken one stops the guest, it never sees
    // an error.
    json!({ "driver": "virtio-blk-pci", "id": disk_id(disk.slot), "drive": node(disk.slot), "serial": serial,
        "bus": disk_port(disk.slot), "addr": "0x0", "bootindex": 10 + u32::from(disk.slot), "num-queues": 1,
        "physical_block_size": 4096, "werror": "stop", "rerror": "stop" })
}

/// The other end of an interface's cable.
pub(super) fn cable_id(slot: u8) -> String {
    format!("net{slot}")
}

/// The options of the cable's other end, unless there is none.
pub(super) fn cable(nic: &NicSlot, networks: &Path) -> Option<Value> {
    let id = cable_id(nic.slot);
    match &nic.connection {
        NicConnection::None => None,
        NicConnection::User => Some(json!({ "type": "user", "id": id })),
        // Headers that only taps have would be in the memory, which then could not go on in an isolated network.
        NicConnection::Bridge { .. } => Some(json!({ "type": "tap", "id": id, "ifname": net::tap_name(nic.id),
            "script": "no", "downscript": "no", "vhost": false, "vnet_hdr": false })),
        NicConnection::Isolated { network } => Some(json!({ "type": "stream", "id": id, "server": false,
            "addr": { "type": "unix", "path": net::hub_socket(networks, network) }, "reconnect-ms": 500 })),
    }
}

/// A cable to another kind of network would not have them, and the guest could not go on there.
const OFFLOADS: [&str; 11] = [
    "csum",
    "guest_csum",
    "gso",
    "guest_tso4",
    "guest_tso6",
    "guest_ecn",
    "guest_ufo",
    "host_tso4",
    "host_tso6",
    "host_ecn",
    "host_ufo",
];
/// Since QEMU 8.2.
const USO: [&str; 3] = ["guest_uso4", "guest_uso6", "host_uso"];

fn nic_device(nic: &NicSlot, uso: bool) -> Value {
    let mut device = json!({ "driver": "virtio-net-pci", "id": nic_id(nic.slot), "mac": nic.mac,
        "bus": nic_port(nic.slot), "addr": "0x0", "mq": false });
    for offload in OFFLOADS.iter().chain(USO.iter().filter(|_| uso)) {
        device[*offload] = false.into();
    }
    if nic.connection != NicConnection::None {
        device["netdev"] = cable_id(nic.slot).into();
    }
    device
}

/// A comma ends a value unless it is doubled.
fn escape(text: &str) -> String {
    text.replace(',', ",,")
}

#[derive(Default)]
struct Line {
    words: Vec<String>,
}

impl Line {
    fn flag(&mut self, name: &str) -> &mut Line {
        self.words.push(name.into());
        self
    }
    fn pair(&mut self, name: &str, value: &str) -> &mut Line {
        self.flag(name).flag(value)
    }
    fn json(&mut self, name: &str, value: &Value) {
        self.pair(name, &value.to_string());
    }
}

#[cfg(test)]
mod tests {
    use keyframe_agent_api::{Bytes, CloudInit, DirectBoot, NicId, VmId, VolumeRef};
    use uuid::Uuid;

    use super::*;

    fn uuid(n: u128) -> Uuid {
        Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0000 + n)
    }

    fn disk(n: u8, slot: u8) -> DiskSlot {
        let volume = VolumeRef { array: "local".into(), volume: format!("volume{n}") };
        DiskSlot { id: uuid(n.into()).into(), slot, volume, read_only: false, firmware_variables: false }
    }

    fn nic(n: u8, connection: NicConnection) -> NicSlot {
        let id: NicId = uuid(100 + u128::from(n)).into();
        NicSlot { id, slot: n, mac: format!("52:54:00:00:00:0{n}"), connection, link_up: true }
    }

    fn machine() -> Machine {
        Machine {
            name: "web, the first".into(),
            uuid: uuid(1000),
            generation_id: uuid(1001),
            machine_type: "pc-q35-10.0".into(),
            cpus: 2,
            memory: Bytes::mib(512),
            firmware: Firmware::Bios,
            direct_boot: None,
            disks: vec![disk(2, 9), disk(1, 0)],
            nics: vec![nic(0, NicConnection::User)],
            cloud_init: None,
        }
    }

    /// One word a line, compared with a file that people have read.
    fn check(machine: &Machine, accelerator: &Accelerator, incoming: bool, golden: &str) {
        let vm: VmId = uuid(2000).into();
        let place = Place::new(Path::new("/vms"), Path::new("/short"), vm, 0);
        let address =
            |disk: &DiskSlot| BlockAddress { socket: "/run/nbd.sock".into(), export: disk.volume.to_string() };
        let blocks = machine.disks.iter().map(|disk| (disk.id, address(disk))).collect();
        let plan = Plan {
            machine,
            blocks: &blocks,
            place: &place,
            accelerator,
            ports: Ports::of(machine),
            uefi_code: Some(Path::new("/usr/share/OVMF/OVMF_CODE_4M.fd")),
            networks: Path::new("/short/networks"),
            incoming,
            user_networks: 0,
            sandbox: incoming,
            uso: true,
        };
        let found = arguments(&plan);
        // The order of an object's members is nobody's business.
        let word = |word: &str| serde_json::from_str::<Value>(word).unwrap_or_else(|_| word.into());
        let same = found.len() == golden.lines().count()
            && found.iter().zip(golden.lines()).all(|(found, golden)| word(found) == word(golden));
        assert!(same, "the command line is now:\n{}", found.join("\n"));
    }

    #[test]
    fn a_kernel_from_outside_emulated() {
        let direct_boot = Some(DirectBoot {
            kernel: "/boot/vmlinuz".into(),
            initrd: Some("/boot/initrd".into()),
            command_line: "console=ttyS0 root=/dev/vda".into(),
        });
        let nics = vec![
            nic(1, NicConnection::Isolated { network: "lab".into() }),
            nic(0, NicConnection::User),
            nic(2, NicConnection::None),
        ];
        let machine = Machine { direct_boot, nics, ..machine() };
        let accelerator = Accelerator::Emulation { reason: "no KVM".into() };
        check(&machine, &accelerator, true, include_str!("golden/direct.txt"));
    }

    #[test]
    fn uefi_with_everything_under_kvm() {
        let mut machine = Machine {
            firmware: Firmware::Uefi,
            cloud_init: Some(CloudInit::default()),
            nics: vec![nic(0, NicConnection::Bridge { bridge: "br0".into(), vlan: Some(7) })],
            ..machine()
        };
        machine.disks.push(DiskSlot { firmware_variables: true, ..disk(3, 23) });
        machine.disks.push(DiskSlot { read_only: true, ..disk(4, 3) });
        check(&machine, &Accelerator::Kvm, false, include_str!("golden/uefi.txt"));
    }
}
