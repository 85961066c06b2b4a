//! Catalogs of both kinds, and things to put into them.

use keyframe_agent_api::{
    Bytes, DiskId, Firmware, Generation, JobId, Quiesce, SnapshotId, TemplateId, Timestamp, VmId, VolumeRef,
};
use keyframe_catalog::{Catalog, Job};
use keyframe_model::{
    Disk, Hardware, JobKind, JobState, Progress, Rest, Snapshot, SnapshotKind, SnapshotOrigin, SnapshotState, Template,
    TemplateOrigin, TemplateState, Vm, VmState,
};
use serde_json::json;

/// A catalog, and where it is.
pub(crate) struct Place {
    pub(crate) catalog: Catalog,
    pub(crate) url: String,
    _dir: Option<tempfile::TempDir>,
}

pub(crate) async fn sqlite() -> Place {
    let dir = tempfile::tempdir().unwrap();
    let url = dir.path().join("a catalog?100%.db").to_str().unwrap().to_owned();
    Place { catalog: Catalog::open(&url).await.unwrap(), url, _dir: Some(dir) }
}

pub(crate) async fn postgres() -> Place {
    let url = tokio::task::spawn_blocking(super::server::new_database).await.unwrap();
    Place { catalog: Catalog::open(&url).await.unwrap(), url, _dir: None }
}

/// Makes one test of a function for each database.
macro_rules! on_both {
    ($($name:ident)*) => {
        mod on_sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(crate::world::sqlite().await).await;
            })*
        }
        mod on_postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(crate::world::postgres().await).await;
            })*
        }
    };
}
pub(crate) use on_both;

pub(crate) fn volume(name: &str) -> VolumeRef {
    VolumeRef { array: "local".into(), volume: name.into() }
}

pub(crate) fn hardware(volumes: &[&str]) -> Hardware {
    let disk = |(slot, name): (u8, &&str)| Disk {
        id: DiskId::new(),
        name: format!("disk-{slot}").parse().unwrap(),
        slot,
        volume: volume(name),
        size: Bytes::mib(8),
        read_only: false,
        firmware_variables: false,
    };
    Hardware {
        machine_type: "pc-q35-10.0".into(),
        generation_id: VmId::new().uuid(),
        cpus: 2,
        memory: Bytes::mib(256),
        firmware: Firmware::Bios,
        direct_boot: None,
        disks: (0..).zip(volumes).map(disk).collect(),
        nics: Vec::new(),
        cloud_init: None,
    }
}

pub(crate) fn vm(name: &str) -> Vm {
    Vm {
        id: VmId::new(),
        name: name.parse().unwrap(),
        description: format!("The machine {name}, 100% real_ly"),
        generation: Generation(1),
        state: VmState::At { rest: Rest::Stopped },
        created: Timestamp(1_000_000),
        hardware: hardware(&[]),
        current: None,
        notice: None,
    }
}

pub(crate) fn snapshot(vm: &Vm, name: &str, parent: Option<SnapshotId>) -> Snapshot {
    Snapshot {
        id: SnapshotId::new(),
        vm: vm.id,
        name: name.parse().unwrap(),
        description: String::new(),
        tags: Vec::new(),
        generation: Generation(1),
        state: SnapshotState::Ready,
        kind: SnapshotKind::Disk,
        origin: SnapshotOrigin::User,
        parent,
        created: Timestamp(2_000_000),
        expires: None,
        locked: false,
        quiesce: Quiesce::No,
        hardware: vm.hardware.clone(),
        report: None,
        verification: None,
    }
}

pub(crate) fn template(name: &str, volumes: &[&str]) -> Template {
    Template {
        id: TemplateId::new(),
        name: name.parse().unwrap(),
        description: "Golden".into(),
        generation: Generation(1),
        state: TemplateState::Ready,
        created: Timestamp(3_000_000),
        origin: TemplateOrigin::Vm { vm: VmId::new() },
        hardware: hardware(volumes),
        snapshot: SnapshotId::new(),
    }
}

pub(crate) fn job(kind: JobKind, vms: &[VmId]) -> Job {
    Job {
        id: JobId::new(),
        kind,
        state: JobState::Queued,
        generation: Generation(1),
        title: "do something".into(),
        caller: "me".into(),
        vms: vms.to_vec(),
        source: None,
        snapshot: None,
        template: None,
        plan: json!({ "deep": [1, { "er": null }] }),
        progress: Progress::default(),
        message: String::new(),
        cancel: false,
        committed: false,
        error: None,
        left: Vec::new(),
        result: None,
        created: Timestamp(4_000_000),
        started: None,
        ended: None,
    }
}
