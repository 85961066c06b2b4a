//! Every kind of job under everything that can be done to a job: run twice, failing, undone twice, killed at every record,
//! left without the host at every call.

use std::collections::BTreeSet;

use async_trait::async_trait;
use keyframe_agent::testing::Lost;
use keyframe_catalog::Catalog;
use keyframe_model::agent::{Bytes, CreateVolume, DiskId, Micros, Quiesce, SnapshotId, VmId, VolumeSource};
use keyframe_model::copy::{NicPolicy, copy};
use keyframe_model::delete::Doomed;
use keyframe_model::{Hardware, JobKind, Nic, SnapshotKind};
use serde_json::Value;

use super::made::{Before, Made, Mold};
use super::site::Site;
use crate::agent::Agent;
use crate::job::Kind;
use crate::job::kit::{Loss, World, check};
use crate::kind::fresh::Random;
use crate::kind::source::Source;
use crate::kind::{
    apply, clone, configure, disk, image, power, registry, snapshot_create, snapshot_delete, template, vm_create,
    vm_delete,
};
use crate::request::TemplateSource;

/// A world for a kind: how it is made of an agent's client, and what is ordered.
struct Tested<K: Kind> {
    made: Made,
    kind: fn(Agent) -> K,
    order: fn(&Made) -> K::Order,
    promised: fn(Value) -> Value,
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

    fn promised(&self, world: Value) -> Value {
        (self.promised)(world)
    }

    fn calls(&self) -> Vec<String> {
        self.made.site.with_agent(|agent| agent.line().calls())
    }

    fn lose(&self, loss: &Loss) {
        let lost = if loss.answer { Lost::Answer } else { Lost::Call };
        self.made.site.with_agent(|agent| agent.line().lose(&loss.call, loss.nth, lost, 1));
    }
}

/// The kind keeps its promise, and its plan has that many steps: a shape that is not the one meant would test nothing new.
async fn holds<K: Kind>(
    before: Before,
    kind: fn(Agent) -> K,
    steps: usize,
    order: fn(&Made) -> K::Order,
    promised: fn(Value) -> Value,
) {
    let mold = &Mold::of(before).await;
    let world = || async move { Tested { made: mold.cast().await, kind, order, promised } };
    let report = check(world).await.unwrap_or_else(|violation| panic!("{violation}"));
    assert_eq!(report.steps, steps, "{report:?}");
    assert!(report.runs > report.steps && (report.steps == 0 || report.calls > 0), "{report:?}");
}

macro_rules! kinds {
    ($($name:ident: $before:ident, $module:ident::$kind:ident, $steps:literal, $order:expr $(, $promised:expr)?;)*) => {
        $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                let promised = [$($promised,)? |all| all][0];
                holds(Before::$before, |agent| $module::$kind { agent }, $steps, $order, promised).await;
            }
        )*

        /// Those that are tested here.
        fn tested() -> BTreeSet<JobKind> {
            BTreeSet::from([$(<$module::$kind as Kind>::KIND,)*])
        }
    };
}

#[tokio::test(flavor = "multi_thread")]
async fn no_kind_is_left_out() {
    let site = Site::new(false).await;
    assert_eq!(registry(&site.client()).kinds(), tested());
}

fn power<A>(vm: VmId, act: A) -> power::PowerOrder<A> {
    power::PowerOrder { vm, expected: None, act }
}

fn stopping(hard: bool) -> power::Stopping {
    power::Stopping { hard, deadline: Micros(1_000_000), then_hard: true, even_if_off: false }
}

/// Applies the oldest snapshot, without its memory; what is given up is kept without memory, too.
fn applied(made: &Made, start: bool) -> apply::ApplyOrder {
    apply::ApplyOrder {
        vm: made.found.vm,
        expected: None,
        expected_snapshot: None,
        snapshot: made.found.snapshot,
        discard: false,
        keep_name: None,
        keep_memory: false,
        keep_for: Micros(1_000_000_000),
        start,
        without_memory: true,
        memory: made.found.memory.clone(),
        loader: made.found.loader.clone(),
        most: 100,
    }
}

/// The same, and nothing is kept.
fn discarding(made: &Made, start: bool) -> apply::ApplyOrder {
    apply::ApplyOrder { discard: true, ..applied(made, start) }
}

/// Applies it with its memory.
fn resumed(made: &Made, discard: bool) -> apply::ApplyOrder {
    apply::ApplyOrder { discard, keep_memory: !discard, without_memory: false, ..applied(made, false) }
}

/// Of a machine in error whose state nobody wants, no instant is taken: its disks may stay as the snapshot has them.
fn without_contents(mut world: Value) -> Value {
    for volume in world["outside"]["volumes"].as_array_mut().into_iter().flatten() {
        volume["content"] = Value::Null;
    }
    world
}

fn clones(made: &Made, origin: clone::Origin, count: u32, start: bool) -> clone::CloneOrder {
    clone::CloneOrder {
        origin,
        expected: None,
        names: (0..count).map(|n| format!("copy-{n}").parse().unwrap()).collect(),
        description: String::new(),
        memory: false,
        nics: NicPolicy::Keep,
        start,
        keep_identity: false,
        found: made.found.memory.clone(),
        loader: made.found.loader.clone(),
    }
}

fn of_snapshot(made: &Made) -> clone::Origin {
    clone::Origin::Kept(Source::Snapshot(made.found.snapshot))
}

fn of_template(made: &Made) -> clone::Origin {
    clone::Origin::Kept(Source::Template(made.found.template))
}

fn of_machine(made: &Made) -> clone::Origin {
    clone::Origin::Vm(made.found.vm)
}

fn forks(made: &Made, origin: clone::Origin, count: u32) -> clone::CloneOrder {
    clone::CloneOrder { memory: true, ..clones(made, origin, count, false) }
}

fn create(made: &Made, start: bool) -> vm_create::VmCreateOrder {
    let mut hardware = made.found.hardware.clone();
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

fn create_of(
    made: &Made,
    source: Source,
    hardware: &Hardware,
    snapshot: SnapshotId,
    start: bool,
) -> vm_create::VmCreateOrder {
    let copy = copy(hardware, snapshot, &NicPolicy::Keep, "", &mut Random);
    let contents = copy.sources.into_iter().map(|of| CreateVolume { source: VolumeSource::Snapshot(of), size: None });
    let (hardware, contents, source) = (copy.hardware, contents.collect(), Some(source));
    vm_create::VmCreateOrder { hardware, contents, source, ..create(made, start) }
}

fn attach(made: &Made) -> disk::AttachOrder {
    disk::AttachOrder {
        vm: made.found.vm,
        expected: None,
        name: None,
        slot: None,
        array: "fake2".to_owned(),
        content: CreateVolume { source: VolumeSource::Empty, size: Some(Bytes(8192)) },
        read_only: false,
    }
}

fn detach(made: &Made, disk: DiskId) -> disk::DetachOrder {
    disk::DetachOrder { vm: made.found.vm, expected: None, disk }
}

fn resize(made: &Made, size: Bytes) -> disk::ResizeOrder {
    disk::ResizeOrder { vm: made.found.vm, expected: None, disk: made.found.data, size, shrink: true }
}

fn snapshot(made: &Made, kind: SnapshotKind) -> snapshot_create::SnapshotOrder {
    snapshot_create::SnapshotOrder {
        vm: made.found.vm,
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
    image::ImageOrder { snapshot: made.found.snapshot, expected: None }
}

fn deletion(made: &Made, doomed: Doomed) -> snapshot_delete::SnapshotDeleteOrder {
    snapshot_delete::SnapshotDeleteOrder { vm: made.found.vm, doomed, expected: None }
}

fn template_of(source: TemplateSource) -> template::TemplateOrder {
    template::TemplateOrder { name: "other".parse().unwrap(), description: String::new(), source, expected: None }
}

fn unplugged(made: &Made) -> configure::ConfigureOrder {
    let nics = made.found.hardware.nics.iter().map(|nic| Nic { link_up: false, ..nic.clone() });
    let (vm, nics) = (made.found.vm, Some(nics.collect()));
    configure::ConfigureOrder { vm, expected: None, cpus: None, memory: None, nics }
}

kinds! {
    vm_create: Stopped, vm_create::VmCreate, 1, |made| create(made, false);
    vm_create_and_start: Stopped, vm_create::VmCreate, 2, |made| create(made, true);
    vm_create_without_disks: Stopped, vm_create::VmCreate, 1, |made| {
        let mut order = create(made, true);
        order.hardware.disks.clear();
        vm_create::VmCreateOrder { contents: Vec::new(), ..order }
    };
    vm_create_of_a_snapshot: Running, vm_create::VmCreate, 1, |made| {
        create_of(made, Source::Snapshot(made.found.snapshot), &made.found.of_snapshot, made.found.snapshot, false)
    };
    vm_create_of_a_template: Stopped, vm_create::VmCreate, 2, |made| {
        let (hardware, snapshot) = &made.found.of_template;
        create_of(made, Source::Template(made.found.template), hardware, *snapshot, true)
    };
    vm_start: Stopped, power::VmStart, 1, |made| power(made.found.vm, power::Starting { paused: false });
    vm_start_paused: Stopped, power::VmStart, 1, |made| power(made.found.vm, power::Starting { paused: true });
    vm_stop: Running, power::VmStop, 1, |made| power(made.found.vm, stopping(false));
    vm_stop_hard: Running, power::VmStop, 1, |made| power(made.found.vm, stopping(true));
    vm_stop_paused: Paused, power::VmStop, 1, |made| power(made.found.vm, stopping(true));
    vm_pause: Running, power::VmPause, 1, |made| power(made.found.vm, power::Plain);
    vm_resume: Paused, power::VmResume, 1, |made| power(made.found.vm, power::Plain);
    vm_reset: Running, power::VmReset, 1, |made| power(made.found.vm, power::Plain);
    vm_configure: Running, configure::VmConfigure, 1, unplugged;
    vm_configure_stopped: Stopped, configure::VmConfigure, 0, |made| {
        configure::ConfigureOrder { cpus: Some(3), ..unplugged(made) }
    };
    vm_delete: WithMemory, vm_delete::VmDelete, 4, |made| vm_delete::VmDeleteOrder {
        vm: made.found.vm, expected: None, force: true,
    };
    disk_attach: Stopped, disk::DiskAttach, 1, attach;
    disk_attach_hot: Running, disk::DiskAttach, 2, attach;
    disk_detach: Stopped, disk::DiskDetach, 1, |made| detach(made, made.found.fresh);
    disk_detach_hot: Running, disk::DiskDetach, 2, |made| detach(made, made.found.fresh);
    disk_detach_held: Stopped, disk::DiskDetach, 0, |made| detach(made, made.found.data);
    disk_detach_held_hot: Running, disk::DiskDetach, 1, |made| detach(made, made.found.data);
    disk_grow: Stopped, disk::DiskResize, 1, |made| resize(made, Bytes(1 << 17));
    disk_grow_hot: Running, disk::DiskResize, 1, |made| resize(made, Bytes(1 << 17));
    disk_shrink: Stopped, disk::DiskResize, 1, |made| resize(made, Bytes(1 << 13));
    snapshot_create: Running, snapshot_create::SnapshotCreate, 1, |made| snapshot(made, SnapshotKind::Disk);
    snapshot_create_stopped: Stopped, snapshot_create::SnapshotCreate, 1, |made| snapshot(made, SnapshotKind::Disk);
    snapshot_create_quiesced: Running, snapshot_create::SnapshotCreate, 1, |made| {
        snapshot_create::SnapshotOrder { quiesce: Quiesce::Required, ..snapshot(made, SnapshotKind::Disk) }
    };
    snapshot_create_with_memory: Running, snapshot_create::SnapshotCreate, 1, |made| {
        snapshot(made, SnapshotKind::DiskAndMemory)
    };
    snapshot_create_with_memory_at_rest: Paused, snapshot_create::SnapshotCreate, 1, |made| {
        snapshot(made, SnapshotKind::DiskAndMemory)
    };
    snapshot_apply_stopped: Stopped, apply::SnapshotApply, 3, |made| applied(made, true);
    snapshot_apply_stopped_discarding: Stopped, apply::SnapshotApply, 4, |made| discarding(made, false);
    snapshot_apply_running: Running, apply::SnapshotApply, 4, |made| applied(made, false);
    snapshot_apply_running_discarding: Running, apply::SnapshotApply, 8, |made| discarding(made, true);
    snapshot_apply_keeping_memory: Running, apply::SnapshotApply, 7, |made| apply::ApplyOrder {
        keep_memory: true, ..applied(made, true)
    };
    snapshot_apply_paused_discarding: Paused, apply::SnapshotApply, 7, |made| discarding(made, true);
    snapshot_apply_with_memory: WithMemory, apply::SnapshotApply, 8, |made| resumed(made, false);
    snapshot_apply_with_memory_discarding: WithMemory, apply::SnapshotApply, 9, |made| resumed(made, true);
    snapshot_apply_with_memory_stopped: StoppedWithMemory, apply::SnapshotApply, 4, |made| resumed(made, false);
    snapshot_apply_in_error: Broken, apply::SnapshotApply, 4, |made| applied(made, true);
    snapshot_apply_in_error_discarding: Broken, apply::SnapshotApply, 4, |made| discarding(made, true), without_contents;
    snapshot_delete_one: WithMemory, snapshot_delete::SnapshotDelete, 2, |made| {
        deletion(made, Doomed::One(made.found.child))
    };
    snapshot_delete_leaf: Stopped, snapshot_delete::SnapshotDelete, 1, |made| {
        deletion(made, Doomed::One(made.found.grandchild))
    };
    snapshot_delete_subtree: WithMemory, snapshot_delete::SnapshotDelete, 2, |made| {
        deletion(made, Doomed::Subtree(made.found.child))
    };
    snapshot_delete_all: WithMemory, snapshot_delete::SnapshotDelete, 2, |made| deletion(made, Doomed::All);
    snapshot_compress: WithMemory, image::SnapshotCompress, 1, image;
    snapshot_verify: WithMemory, image::SnapshotVerify, 1, image;
    clone_of_a_snapshot: Stopped, clone::CloneVm, 4, |made| clones(made, of_snapshot(made), 2, true);
    clone_of_a_template: Stopped, clone::CloneVm, 2, |made| clones(made, of_template(made), 2, false);
    clone_of_a_machine: Running, clone::CloneVm, 3, |made| clones(made, of_machine(made), 1, false);
    clone_of_a_stopped_machine: Stopped, clone::CloneVm, 4, |made| clones(made, of_machine(made), 1, true);
    fork: Running, clone::CloneVm, 7, |made| forks(made, of_machine(made), 2);
    fork_keeping_its_identity: Running, clone::CloneVm, 4, |made| clone::CloneOrder {
        keep_identity: true, ..forks(made, of_machine(made), 1)
    };
    fork_of_a_snapshot: StoppedWithMemory, clone::CloneVm, 5, |made| forks(made, of_snapshot(made), 2);
    template_create_of_a_machine: Stopped, template::TemplateCreate, 4, |made| {
        template_of(TemplateSource::Vm { vm: made.found.vm })
    };
    template_create_of_a_snapshot: Running, template::TemplateCreate, 2, |made| {
        template_of(TemplateSource::Snapshot { snapshot: made.found.snapshot })
    };
    template_delete: Stopped, template::TemplateDelete, 3, |made| template::TemplateDeleteOrder {
        template: made.found.template, expected: None,
    };
}
