//! What jobs cannot clear away or take back: the machine is what it is all the same, and what is left goes later.

use std::sync::Arc;
use std::time::Duration;

use keyframe_agent::array::fake::When as ArrayWhen;
use keyframe_agent::hypervisor::fake::When;
use keyframe_model::agent::{Bytes, FaultKind, SnapshotId};
use keyframe_model::{JobState, Rest, SnapshotKind, SnapshotState, Vm, VmState};

use super::scenario::clone_of;
use super::site::{DISK, LIMITS, Site, apply, call, called, caller, done, ended, job, make, refused, snap, wish};
use crate::job::Limits;
use crate::request::{
    Apply, CloneMemory, CloneSource, DiskAttach, DiskContent, DiskSpec, SnapshotUpdate, TemplateCreate, TemplateSource,
    VmDelete,
};
use crate::{Config, ErrorKind, Manager, reconcile};

/// A manager that gives up soon, and its machine.
async fn hasty(disks: &[u8], runs: bool) -> (Site, Arc<Manager>, Vm) {
    let site = Site::new(false).await;
    let jobs = Limits { patience: Duration::from_millis(300), ..LIMITS };
    let manager = Manager::start(Config { jobs, ..site.config() }).await.unwrap();
    let vm = make(&manager, wish(&site, "web", disks, runs)).await.vm;
    (site, manager, vm)
}

/// The array refuses these calls from the `nth` on.
fn fail(site: &Site, call: &str, nth: u32) {
    let failing = |nth| {
        site.with_agent(|agent| agent.array("fake").faults().fail(call, nth, ArrayWhen::Before, FaultKind::Internal));
    };
    (nth..nth + 2000).for_each(failing);
}

fn well(site: &Site) {
    site.with_agent(|agent| agent.array("fake").faults().clear());
    site.fake.faults().clear();
}

async fn attach_extra(manager: &Manager, vm: keyframe_model::agent::VmId) {
    let disk = DiskSpec { content: DiskContent::Empty, size: Some(Bytes(DISK.0)), ..DiskSpec::default() };
    let attached = manager.attach_disk(&call(), vm, DiskAttach::at(disk, None)).await.unwrap();
    done(manager, attached.id).await;
}

/// The disks are what they are to be and the guest runs: that what was given up is still there is no error of the machine.
#[tokio::test(flavor = "multi_thread")]
async fn an_apply_that_cannot_clear_up_has_been_applied() {
    let (site, manager, vm) = hasty(&[1], true).await;
    let one = snap(&manager, vm.id, "one", SnapshotKind::DiskAndMemory).await;
    attach_extra(&manager, vm.id).await;
    fail(&site, "delete", 1);
    // Two disks had what might have been left of the instant of now deleted before it.
    fail(&site, "delete-snapshot", 3);
    let view = apply(&manager, one, Apply { discard_current: true, ..Apply::default() }).await;
    assert_eq!(
        view.notes.iter().filter(|note| note.starts_with("left behind: delete a")).count(),
        2,
        "{:?}",
        view.notes
    );
    let now = manager.vm(&caller(), vm.id).await.unwrap().vm;
    assert_eq!((now.state, now.current), (VmState::At { rest: Rest::Running }, Some(one)));
    assert_eq!(now.hardware.disks, vm.hardware.disks);

    reconcile::clear(&manager).await.unwrap();
    assert_eq!(manager.catalog.read().await.unwrap().leftovers().await.unwrap().len(), 2, "it is not given up");
    well(&site);
    reconcile::clear(&manager).await.unwrap();
    let left = site.look().await;
    assert_eq!(left["volumes"].as_array().unwrap().len(), 1, "{left}");
    assert_eq!(left["volumes"][0]["had"].as_array().unwrap().len(), 1, "{left}");
    assert_eq!(left["instants"].as_array().unwrap().len(), 1, "{left}");
    assert!(manager.catalog.read().await.unwrap().leftovers().await.unwrap().is_empty());
    manager.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_detachment_and_a_template_that_cannot_clear_up_have_succeeded() {
    let (site, manager, vm) = hasty(&[1, 2], false).await;
    fail(&site, "delete", 1);
    let gone = manager.detach_disk(&call(), vm.id, vm.hardware.disks[1].id).await.unwrap();
    let view = done(&manager, gone.id).await;
    assert_eq!(view.notes.len(), 1, "{:?}", view.notes);
    let now = manager.vm(&caller(), vm.id).await.unwrap().vm;
    assert_eq!((now.state, now.hardware.disks.len()), (VmState::At { rest: Rest::Stopped }, 1));
    well(&site);
    // The instant of the machine and the template's own have what might have been left of them deleted.
    fail(&site, "delete-snapshot", 3);
    let source = TemplateSource::Vm { vm: vm.id };
    let wish = TemplateCreate { name: "base".parse().unwrap(), description: String::new(), source };
    let made = manager.create_template(&call(), wish).await.unwrap();
    done(&manager, made.id).await;
    well(&site);
    reconcile::clear(&manager).await.unwrap();
    let left = site.look().await;
    let versions: Vec<usize> =
        left["volumes"].as_array().unwrap().iter().map(|volume| volume["had"].as_array().unwrap().len()).collect();
    assert_eq!(versions.iter().sum::<usize>(), 1, "the template's own is all there is to be: {left}");
    manager.stop().await;
}

/// What a broken job has left is in no list, so nobody else can delete it.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_broken_job_leaves_is_deleted_when_it_can_be() {
    let (site, manager, Vm { id: vm, .. }) = hasty(&[1], true).await;
    let before = site.look().await;
    fail(&site, "create", 1);
    fail(&site, "delete-snapshot", 2);
    let clone = clone_of(CloneSource::Vm { vm }, "two", CloneMemory::Yes);
    let made = manager.clone_vm(&call(), clone).await.unwrap();
    assert_eq!(ended(&manager, made.id).await.state, JobState::Failed);
    assert_ne!(site.look().await, before, "nothing is left");
    well(&site);
    reconcile::clear(&manager).await.unwrap();
    assert_eq!(site.look().await, before);
    manager.stop().await;
}

/// The way back is stuck after the kept instant has been deleted on it.
#[tokio::test(flavor = "multi_thread")]
async fn a_kept_snapshot_whose_instant_was_deleted_is_not_ready() {
    let (site, manager, vm) = hasty(&[1], true).await;
    let one = snap(&manager, vm.id, "one", SnapshotKind::Disk).await;
    site.with_agent(|agent| agent.array("fake").faults().fail("revert", 1, ArrayWhen::Before, FaultKind::Internal));
    for nth in 1..1000 {
        site.fake.faults().fail("resume", nth, When::Before, FaultKind::Internal);
    }
    let applied = job(manager.apply_snapshot(&call(), one, Apply::default()).await.unwrap());
    assert_eq!(ended(&manager, applied).await.state, JobState::Failed);
    let kept = manager.find_snapshot(&caller(), Some(vm.id), "before-one-1").await.unwrap();
    let kept = manager.snapshot(&caller(), kept, false).await.unwrap().snapshot;
    assert!(matches!(kept.state, SnapshotState::Error { .. }), "{:?}", kept.state);
    manager.stop().await;
}

/// Nobody wished to keep it, but it is all there is of the state before.
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_brought_back_is_kept_as_a_snapshot() {
    let (site, manager, vm) = hasty(&[1, 2], false).await;
    let before: Vec<u64> = vm.hardware.disks.iter().map(|disk| site.content(&disk.volume, None)).collect();
    let one = snap(&manager, vm.id, "one", SnapshotKind::Disk).await;
    fail(&site, "revert", 1);
    let discard = Apply { discard_current: true, ..Apply::default() };
    let applied = job(manager.apply_snapshot(&call(), one, discard.clone()).await.unwrap());
    assert_eq!(ended(&manager, applied).await.state, JobState::Failed);
    well(&site);
    let kept = manager.find_snapshot(&caller(), Some(vm.id), "before-one-1").await.unwrap();
    apply(&manager, kept, discard).await;
    let now = manager.vm(&caller(), vm.id).await.unwrap().vm;
    assert_eq!(now.state, VmState::At { rest: Rest::Stopped });
    let after: Vec<u64> = now.hardware.disks.iter().map(|disk| site.content(&disk.volume, None)).collect();
    assert_eq!(after, before);
    manager.stop().await;
}

async fn snapshot_state(manager: &Manager, snapshot: SnapshotId) -> SnapshotState {
    manager.snapshot(&caller(), snapshot, false).await.unwrap().snapshot.state
}

/// A lock that is confirmed protects, and what is said to be there is.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_of_a_machine_that_goes_cannot_be_locked_and_is_not_ready() {
    let (site, manager, Vm { id: vm, .. }) = hasty(&[1], false).await;
    let one = snap(&manager, vm, "one", SnapshotKind::Disk).await;
    // Nothing is deleted of a machine that cannot be stopped.
    for nth in 1..1000 {
        site.fake.faults().fail("stop", nth, When::Before, FaultKind::Internal);
    }
    let gone = job(manager.delete_vm(&call(), vm, VmDelete::default()).await.unwrap());
    let lock = SnapshotUpdate { locked: Some(true), ..SnapshotUpdate::default() };
    assert_eq!(refused(manager.update_snapshot(&call(), one, lock).await).kind, ErrorKind::Busy);
    assert_eq!(ended(&manager, gone).await.state, JobState::Failed);
    assert_eq!(snapshot_state(&manager, one).await, SnapshotState::Ready);
    well(&site);
    fail(&site, "delete", 1);
    let gone = job(manager.delete_vm(&call(), vm, VmDelete::default()).await.unwrap());
    assert_eq!(ended(&manager, gone).await.state, JobState::Failed);
    assert!(matches!(snapshot_state(&manager, one).await, SnapshotState::Error { .. }));
    well(&site);
    let gone = job(manager.delete_vm(&call(), vm, VmDelete::default()).await.unwrap());
    done(&manager, gone).await;
    assert_eq!(site.look().await["volumes"].as_array().unwrap().len(), 0);
    manager.stop().await;
}

/// Guests that run stay, whatever their process says afterwards.
#[tokio::test(flavor = "multi_thread")]
async fn forks_that_run_are_not_taken_back() {
    let (site, manager, Vm { id: vm, .. }) = hasty(&[1], true).await;
    site.fake.faults().hang("fix_identity", 1, When::Before);
    let made = manager.clone_vm(&call(), clone_of(CloneSource::Vm { vm }, "two", CloneMemory::Yes)).await.unwrap();
    called(&site, "fix_identity", 1).await;
    site.fake.faults().clear();
    for nth in 1..1000 {
        site.fake.faults().fail("status", nth, When::Before, FaultKind::Deadline);
    }
    done(&manager, made.id).await;
    assert!(site.fake.machine(made.vms[0]).is_some());
    manager.stop().await;
}
