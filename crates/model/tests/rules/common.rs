//! Things to ask the rules about.

use keyframe_model::agent::{
    Bytes, DiskId, Firmware, Generation, JobId, NicConnection, NicId, Quiesce, SnapshotId, TemplateId, Timestamp, VmId,
    VolumeRef,
};
use keyframe_model::hardware::Fresh;
use keyframe_model::{
    Disk, Hardware, Nic, Rest, Snapshot, SnapshotKind, SnapshotOrigin, SnapshotState, Template, TemplateOrigin,
    TemplateState, Vm, VmState,
};
use uuid::Uuid;

pub(crate) fn job() -> JobId {
    Uuid::from_u128(0x10b).into()
}

pub(crate) fn snapshot_id(number: u128) -> SnapshotId {
    Uuid::from_u128(0x5000 + number).into()
}

pub(crate) fn disk(number: u128, slot: u8) -> Disk {
    let id: DiskId = Uuid::from_u128(0xd000 + number).into();
    Disk {
        id,
        name: format!("disk{number}").parse().unwrap(),
        slot,
        volume: VolumeRef { array: "local".to_owned(), volume: id.to_string() },
        size: Bytes(1 << 20),
        read_only: false,
        firmware_variables: false,
    }
}

pub(crate) fn nic(number: u128, slot: u8, connection: NicConnection) -> Nic {
    let id: NicId = Uuid::from_u128(0xe000 + number).into();
    Nic { id, slot, mac: format!("52:54:00:00:00:{number:02x}"), connection, link_up: true }
}

pub(crate) fn hardware(disks: Vec<Disk>) -> Hardware {
    Hardware {
        machine_type: "pc-q35-10.0".to_owned(),
        generation_id: Uuid::from_u128(1),
        cpus: 2,
        memory: Bytes::mib(256),
        firmware: Firmware::Bios,
        direct_boot: None,
        disks,
        nics: vec![nic(1, 0, NicConnection::User)],
        cloud_init: None,
    }
}

pub(crate) fn vm(state: VmState, disks: Vec<Disk>) -> Vm {
    Vm {
        id: VmId::from(Uuid::from_u128(0x77)),
        name: "web-1".parse().unwrap(),
        description: String::new(),
        generation: Generation(7),
        state,
        created: Timestamp(0),
        hardware: hardware(disks),
        current: None,
        notice: None,
    }
}

pub(crate) fn stopped() -> VmState {
    VmState::At { rest: Rest::Stopped }
}

pub(crate) fn snapshot(number: u128, state: SnapshotState, disks: Vec<Disk>) -> Snapshot {
    Snapshot {
        id: snapshot_id(number),
        vm: Uuid::from_u128(0x77).into(),
        name: format!("s{number}").parse().unwrap(),
        description: String::new(),
        tags: Vec::new(),
        generation: Generation(1),
        state,
        kind: SnapshotKind::Disk,
        origin: SnapshotOrigin::User,
        parent: None,
        created: Timestamp(0),
        expires: None,
        locked: false,
        quiesce: Quiesce::No,
        hardware: hardware(disks),
        report: None,
        verification: None,
    }
}

pub(crate) fn template(state: TemplateState) -> Template {
    Template {
        id: TemplateId::from(Uuid::from_u128(0x7e)),
        name: "golden".parse().unwrap(),
        description: String::new(),
        generation: Generation(1),
        state,
        created: Timestamp(0),
        origin: TemplateOrigin::Vm { vm: Uuid::from_u128(0x77).into() },
        hardware: hardware(Vec::new()),
        snapshot: snapshot_id(9),
    }
}

/// New identities that count.
#[derive(Default)]
pub(crate) struct Counted(u128);

impl Fresh for Counted {
    fn uuid(&mut self) -> Uuid {
        self.0 += 1;
        Uuid::from_u128(0xf000 + self.0)
    }

    fn disk(&mut self) -> DiskId {
        self.uuid().into()
    }

    fn nic(&mut self) -> NicId {
        self.uuid().into()
    }

    fn address(&mut self) -> [u8; 6] {
        self.0 += 1;
        [0xff, 0, 0, 0, 0, u8::try_from(self.0 % 256).unwrap()]
    }
}
