//! Every kind of job under everything that can be done to a job: run twice, failing, undone twice, killed at every record.

use async_trait::async_trait;
use keyframe_catalog::Catalog;
use keyframe_model::agent::{
    Bytes, CreateVolume, DiskId, MemoryState, Micros, Quiesce, SnapshotId, TemplateId, VmId, VolumeSource,
};
use keyframe_model::copy::NicPolicy;
use keyframe_model::delete::Doomed;
use keyframe_model::memory::Loader;
use keyframe_model::{Hardware, Nic, SnapshotKind};
use serde_json::Value;

use super::site::{Site, make, snap, wish};
use crate::agent::Agent;
use crate::job::Kind;
use crate::job::kit::{World, check};
use crate::kind::{
    apply, clone, configure, disk, image, power, snapshot_create, snapshot_delete, template, vm_create, vm_delete,
};
use crate::request::TemplateSource;

/// What a kind finds: a machine with two disks, one snapshot that has an older disk too, and a template.
struct Made {
    site: Site,
    agent: Agent,
    vm: VmId,
    disks: Vec<DiskId>,
    hardware: Hardware,
    snapshot: SnapshotId,
    child: SnapshotId,
    template: TemplateId,
    image: String,
}

/// How it is prepared.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Before {
    Stopped,
    Running,
    Paused,
    /// Running, and the snapshots have memory.
    WithMemory,
}

impl Made {
    async fn new(before: Before) -> Made {
        let site = Site::new(false).await;
        let manager = site.manager().await;
        let call = super::site::call();
        let runs = before != Before::Stopped;
        let vm = make(&manager, wish(&site, "web", &[1, 2, 3], runs)).await.vm;
        let kind = if before == Before::WithMemory { SnapshotKind::DiskAndMemory } else { SnapshotKind::Disk };
        let snapshot = snap(&manager, vm.id, "one", kind).await;
        let detached = manager.detach_disk(&call, vm.id, vm.hardware.disks[1].id).await.unwrap();
        super::site::done(&manager, detached.id).await;
        let child = snap(&manager, vm.id, "two", kind).await;
        let template = crate::request::TemplateCreate {
            name: "golden".parse().unwrap(),
            description: String::new(),
            source: TemplateSource::Snapshot { snapshot },
        };
        let made = manager.create_template(&call, template).await.unwrap();
        super::site::done(&manager, made.id).await;
        if before == Before::Paused {
            super::site::done(&manager, manager.pause_vm(&call, vm.id).await.unwrap().id).await;
        }
        let now = manager.vm(&super::site::caller(), vm.id).await.unwrap().vm;
        manager.stop().await;
        // Its address is a path that is another one in each world.
        let mut tx = site.catalog.write().await.unwrap();
        let host = tx.hosts().await.unwrap().remove(0);
        tx.delete_host(host.id, host.generation).await.unwrap();
        tx.commit().await.unwrap();
        let (agent, image) = (site.client(), site.image(9));
        let disks = now.hardware.disks.iter().map(|disk| disk.id).collect();
        let (hardware, template) = (now.hardware, made.template.unwrap());
        Made { site, agent, vm: vm.id, disks, hardware, snapshot, child, template, image }
    }
}

/// A world for a kind: how it is made of an agent's client, and what is ordered.
struct Tested<K: Kind> {
    made: Made,
    kind: fn(Agent) -> K,
    order: fn(&Made) -> K::Order,
}

#[async_trait]
impl<K: Kind> World for Tested<K> {
    type Kind = K;

    fn catalog(&self) -> &Catalog {
        &self.made.site.catalog
    }

    fn kind(&self) -> K {
        (self.kind)(self.made.agent.clone())
    }

    fn order(&self) -> K::Order {
        (self.order)(&self.made)
    }

    async fn look(&self) -> Value {
        self.made.site.look().await
    }
}

async fn holds<K: Kind>(before: Before, kind: fn(Agent) -> K, order: fn(&Made) -> K::Order) {
    let world = || async move { Tested { made: Made::new(before).await, kind, order } };
    let report = check(world).await.unwrap_or_else(|violation| panic!("{violation}"));
    assert!(report.runs > report.steps, "{report:?}");
}

macro_rules! kinds {
    ($($name:ident: $before:ident, $module:ident::$kind:ident, $order:expr;)*) => {
        $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                holds(Before::$before, |agent| $module::$kind { agent }, $order).await;
            }
        )*
    };
}

fn power<A>(vm: VmId, act: A) -> power::PowerOrder<A> {
    power::PowerOrder { vm, expected: None, act }
}

fn stopping(hard: bool) -> power::Stopping {
    power::Stopping { hard, deadline: Micros(1_000_000), then_hard: true, even_if_off: false }
}

fn apply_order(made: &Made, discard: bool, keep_memory: bool, start: bool) -> apply::ApplyOrder {
    apply::ApplyOrder {
        vm: made.vm,
        expected: None,
        expected_snapshot: None,
        snapshot: made.snapshot,
        discard,
        keep_name: None,
        keep_memory,
        keep_for: Micros(1_000_000_000),
        start,
        without_memory: true,
        memory: MemoryState::Absent,
        loader: Loader::default(),
        most: 100,
    }
}

fn clones(origin: clone::Origin, count: u32, memory: bool, start: bool) -> clone::CloneOrder {
    clone::CloneOrder {
        origin,
        expected: None,
        names: (0..count).map(|n| format!("copy-{n}").parse().unwrap()).collect(),
        description: String::new(),
        memory,
        nics: NicPolicy::Keep,
        start,
        keep_identity: false,
        found: MemoryState::Absent,
        loader: Loader::default(),
    }
}

fn create(made: &Made, start: bool) -> vm_create::VmCreateOrder {
    let mut hardware = made.hardware.clone();
    hardware.disks.truncate(1);
    let id = DiskId::new();
    (hardware.disks[0].id, hardware.disks[0].volume.volume) = (id, id.to_string());
    let source = VolumeSource::Image { path: made.image.clone(), format: None };
    vm_create::VmCreateOrder {
        name: "new".parse().unwrap(),
        description: String::new(),
        hardware,
        contents: vec![CreateVolume { source, size: None }],
        source: None,
        expected: None,
        start,
    }
}

fn attach(made: &Made) -> disk::AttachOrder {
    disk::AttachOrder {
        vm: made.vm,
        expected: None,
        name: None,
        slot: None,
        array: "fake2".to_owned(),
        content: CreateVolume { source: VolumeSource::Empty, size: Some(Bytes(8192)) },
        read_only: false,
    }
}

fn snapshot(made: &Made, kind: SnapshotKind) -> snapshot_create::SnapshotOrder {
    snapshot_create::SnapshotOrder {
        vm: made.vm,
        expected: None,
        name: None,
        description: String::new(),
        tags: Vec::new(),
        kind,
        quiesce: Quiesce::No,
        deadline: Micros(5_000_000),
        locked: false,
        most: 100,
    }
}

fn image(made: &Made) -> image::ImageOrder {
    image::ImageOrder { snapshot: made.snapshot, expected: None }
}

fn deletion(made: &Made, doomed: Doomed) -> snapshot_delete::SnapshotDeleteOrder {
    snapshot_delete::SnapshotDeleteOrder { vm: made.vm, doomed, expected: None }
}

fn template_of(source: TemplateSource) -> template::TemplateOrder {
    template::TemplateOrder { name: "other".parse().unwrap(), description: String::new(), source, expected: None }
}

fn unplugged(made: &Made) -> configure::ConfigureOrder {
    let nics = made.hardware.nics.iter().map(|nic| Nic { link_up: false, ..nic.clone() });
    configure::ConfigureOrder { vm: made.vm, expected: None, cpus: None, memory: None, nics: Some(nics.collect()) }
}

kinds! {
    vm_create: Stopped, vm_create::VmCreate, |made| create(made, false);
    vm_create_and_start: Stopped, vm_create::VmCreate, |made| create(made, true);
    vm_start: Stopped, power::VmStart, |made| power(made.vm, power::Starting { paused: false });
    vm_stop: Running, power::VmStop, |made| power(made.vm, stopping(false));
    vm_stop_hard: Running, power::VmStop, |made| power(made.vm, stopping(true));
    vm_pause: Running, power::VmPause, |made| power(made.vm, power::Plain);
    vm_resume: Paused, power::VmResume, |made| power(made.vm, power::Plain);
    vm_reset: Running, power::VmReset, |made| power(made.vm, power::Plain);
    vm_configure: Running, configure::VmConfigure, unplugged;
    vm_delete: Running, vm_delete::VmDelete, |made| vm_delete::VmDeleteOrder {
        vm: made.vm, expected: None, force: true,
    };
    disk_attach: Stopped, disk::DiskAttach, attach;
    disk_attach_hot: Running, disk::DiskAttach, attach;
    disk_detach: Stopped, disk::DiskDetach, |made| disk::DetachOrder {
        vm: made.vm, expected: None, disk: made.disks[1],
    };
    disk_detach_hot: Running, disk::DiskDetach, |made| disk::DetachOrder {
        vm: made.vm, expected: None, disk: made.disks[1],
    };
    disk_grow_hot: Running, disk::DiskResize, |made| disk::ResizeOrder {
        vm: made.vm, expected: None, disk: made.disks[1], size: Bytes(1 << 17), shrink: false,
    };
    disk_shrink: Stopped, disk::DiskResize, |made| disk::ResizeOrder {
        vm: made.vm, expected: None, disk: made.disks[1], size: Bytes(1 << 13), shrink: true,
    };
    snapshot_create: Running, snapshot_create::SnapshotCreate, |made| snapshot(made, SnapshotKind::Disk);
    snapshot_create_with_memory: Running, snapshot_create::SnapshotCreate, |made| {
        snapshot(made, SnapshotKind::DiskAndMemory)
    };
    snapshot_apply_stopped: Stopped, apply::SnapshotApply, |made| apply_order(made, false, false, true);
    snapshot_apply_running: Running, apply::SnapshotApply, |made| apply_order(made, false, false, false);
    snapshot_apply_keeping_memory: Running, apply::SnapshotApply, |made| apply_order(made, false, true, true);
    snapshot_apply_paused_discarding: Paused, apply::SnapshotApply, |made| apply_order(made, true, false, true);
    snapshot_delete_one: WithMemory, snapshot_delete::SnapshotDelete, |made| {
        deletion(made, Doomed::One(made.snapshot))
    };
    snapshot_delete_leaf: Stopped, snapshot_delete::SnapshotDelete, |made| deletion(made, Doomed::One(made.child));
    snapshot_delete_all: WithMemory, snapshot_delete::SnapshotDelete, |made| deletion(made, Doomed::All);
    snapshot_compress: WithMemory, image::SnapshotCompress, image;
    snapshot_verify: WithMemory, image::SnapshotVerify, image;
    clone_of_a_snapshot: Stopped, clone::CloneVm, |made| {
        clones(clone::Origin::Kept(crate::kind::source::Source::Snapshot(made.snapshot)), 2, false, true)
    };
    clone_of_a_template: Stopped, clone::CloneVm, |made| {
        clones(clone::Origin::Kept(crate::kind::source::Source::Template(made.template)), 2, false, false)
    };
    clone_of_a_machine: Running, clone::CloneVm, |made| clones(clone::Origin::Vm(made.vm), 1, false, false);
    fork: Running, clone::CloneVm, |made| clones(clone::Origin::Vm(made.vm), 2, true, false);
    template_create_of_a_machine: Stopped, template::TemplateCreate, |made| {
        template_of(TemplateSource::Vm { vm: made.vm })
    };
    template_create_of_a_snapshot: Running, template::TemplateCreate, |made| {
        template_of(TemplateSource::Snapshot { snapshot: made.snapshot })
    };
    template_delete: Stopped, template::TemplateDelete, |made| template::TemplateDeleteOrder {
        template: made.template, expected: None,
    };
}
