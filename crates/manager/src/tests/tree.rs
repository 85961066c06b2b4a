//! Applying: what comes back, what stays, what is kept.

use keyframe_model::agent::{Bytes, Micros, Timestamp};
use keyframe_model::apply::{DiskFate, MemoryUse};
use keyframe_model::{Rest, SnapshotKind, SnapshotOrigin, Vm, VmState};

use super::site::{DISK, Site, apply, call, caller, done, job, make, refused, snap, wish};
use crate::ErrorKind;
use crate::reconcile::prune;
use crate::request::{
    Apply, DiskAttach, DiskContent, DiskSpec, Outcome, PlanView, SnapshotCreate, SnapshotDelete, SnapshotUpdate,
    VmUpdate,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_detached_disk_comes_back_with_the_node_that_had_it() {
    let (site, manager, vm) = Site::with_web(&[1, 2], false).await;
    let both = snap(&manager, vm.id, "both", SnapshotKind::Disk).await;
    let second = vm.hardware.disks[1].clone();
    done(&manager, manager.detach_disk(&call(), vm.id, second.id).await.unwrap().id).await;
    let disks = manager.disks(&caller(), vm.id).await.unwrap();
    assert_eq!(disks.iter().map(|view| (view.attached, view.snapshots)).collect::<Vec<_>>(), [(true, 1), (false, 1)]);

    let disk = DiskSpec { content: DiskContent::Image { path: site.image(3), format: None }, ..DiskSpec::default() };
    let attach = DiskAttach::at(disk, Some(7));
    done(&manager, manager.attach_disk(&call(), vm.id, attach).await.unwrap().id).await;
    let third = manager.vm(&caller(), vm.id).await.unwrap().vm.hardware.disks[1].clone();
    assert_eq!((third.slot, third.size), (7, DISK));

    let dry = Apply { dry_run: true, ..Apply::default() };
    let Outcome::Done(PlanView::Apply(plan)) = manager.apply_snapshot(&call(), both, dry).await.unwrap() else {
        panic!("a dry run changes nothing");
    };
    let fates: Vec<DiskFate> = plan.disks.iter().map(|change| change.fate).collect();
    assert_eq!(fates, [DiskFate::Reverted, DiskFate::ComesBack, DiskFate::TakenOut]);

    apply(&manager, both, Apply::default()).await;
    let now = manager.vm(&caller(), vm.id).await.unwrap().vm;
    assert_eq!(now.hardware.disks, vm.hardware.disks);
    assert_ne!(now.hardware.generation_id, vm.hardware.generation_id);
    for disk in &now.hardware.disks {
        assert_eq!(site.content(&disk.volume, None), site.content(&disk.volume, Some(both)));
    }
    // What was given up has the third disk, so it can be had again.
    let kept = manager.find_snapshot(&caller(), Some(vm.id), "before-both-1").await.unwrap();
    apply(&manager, kept, Apply { discard_current: true, ..Apply::default() }).await;
    let again = manager.vm(&caller(), vm.id).await.unwrap().vm;
    assert_eq!(again.hardware.disks[1], third);
    assert_eq!(again.hardware.disks.len(), 2);
    manager.stop().await;
}

/// An apply of a running machine can be undone for its guest, and a dry run says whether.
#[tokio::test(flavor = "multi_thread")]
async fn the_guest_given_up_can_be_had_again() {
    let site = Site::new(true).await;
    let manager = site.manager().await;
    let vm = make(&manager, wish(&site, "web", &[1], true)).await.vm;
    let old = snap(&manager, vm.id, "old", SnapshotKind::Disk).await;
    site.fake.step(vm.id, 20).unwrap();
    let given_up = site.fake.machine(vm.id).unwrap().guest;

    let dry = |wish: Apply| {
        let manager = manager.clone();
        async move {
            let wish = Apply { dry_run: true, ..wish };
            match manager.apply_snapshot(&call(), old, wish).await.unwrap() {
                Outcome::Done(PlanView::Apply(plan)) => plan,
                other => panic!("a dry run changes nothing: {other:?}"),
            }
        }
    };
    let ram = vm.hardware.memory;
    let plan = dry(Apply::default()).await;
    assert_eq!((plan.keeps_memory, plan.loses_memory, plan.loses), (true, Bytes(0), Bytes(0)));
    assert!(plan.keeps_until.unwrap() > Timestamp::now());
    let plan = dry(Apply { keep_memory: false, ..Apply::default() }).await;
    assert_eq!((plan.keeps_memory, plan.loses_memory, plan.loses), (false, ram, ram));
    let plan = dry(Apply { discard_current: true, ..Apply::default() }).await;
    assert_eq!((plan.keeps_memory, plan.loses_memory, plan.keeps_until), (false, ram, None));
    assert!(plan.loses >= ram);

    apply(&manager, old, Apply { start: true, ..Apply::default() }).await;
    assert_ne!(site.fake.machine(vm.id).unwrap().guest, given_up);
    let kept = manager.find_snapshot(&caller(), Some(vm.id), "before-old-1").await.unwrap();
    let shown = manager.snapshot(&caller(), kept, false).await.unwrap().snapshot;
    assert_eq!(shown.kind, SnapshotKind::DiskAndMemory);
    apply(&manager, kept, Apply { discard_current: true, ..Apply::default() }).await;
    let back = site.fake.machine(vm.id).unwrap().guest;
    assert!(back.count >= given_up.count, "{back:?} is before {given_up:?}");
    site.fake.check(vm.id).unwrap();
    let never = Apply { keep_for: Some(Micros(0)), ..Apply::default() };
    assert_eq!(refused(manager.apply_snapshot(&call(), old, never).await).kind, ErrorKind::Invalid);
    manager.stop().await;
}

/// A revert goes to what the state descends from: the snapshot that was applied last, not the one that was taken last.
#[tokio::test(flavor = "multi_thread")]
async fn a_revert_goes_to_the_snapshot_that_was_applied() {
    let site = Site::new(true).await;
    let manager = site.manager().await;
    let vm = make(&manager, wish(&site, "web", &[1], true)).await.vm;
    let error = refused(manager.revert_vm(&call(), vm.id, Apply::default()).await);
    assert_eq!((error.kind, error.message.as_str()), (ErrorKind::State, "web has no snapshot to go back to"));

    site.fake.step(vm.id, 10).unwrap();
    let first = snap(&manager, vm.id, "first", SnapshotKind::DiskAndMemory).await;
    site.fake.step(vm.id, 20).unwrap();
    snap(&manager, vm.id, "second", SnapshotKind::DiskAndMemory).await;
    apply(&manager, first, Apply::default()).await;
    let then = site.fake.machine(vm.id).unwrap().guest;
    site.fake.step(vm.id, 30).unwrap();
    assert_ne!(site.fake.machine(vm.id).unwrap().guest, then);

    let dry = Apply { dry_run: true, ..Apply::default() };
    let Outcome::Done(PlanView::Apply(plan)) = manager.revert_vm(&call(), vm.id, dry).await.unwrap() else {
        panic!("a dry run changes nothing");
    };
    assert_eq!((plan.snapshot.id, plan.memory, plan.obstacles), (first, MemoryUse::Used, Vec::new()));
    done(&manager, job(manager.revert_vm(&call(), vm.id, Apply::default()).await.unwrap())).await;
    assert_eq!(site.fake.machine(vm.id).unwrap().guest, then, "the memory of then");
    site.fake.check(vm.id).unwrap();
    let tree = manager.tree(&caller(), vm.id, false).await.unwrap();
    assert_eq!(tree.current, Some(first));
    let names: Vec<&str> = tree.nodes.iter().map(|node| node.name.as_str()).collect();
    assert_eq!(names, ["first", "second", "before-first-1", "before-first-2"]);
    manager.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_nobody_holds_goes_with_the_state_that_is_discarded() {
    let (site, manager, vm) = Site::with_web(&[1], false).await;
    let one = snap(&manager, vm.id, "one", SnapshotKind::Disk).await;
    let disk = DiskSpec { size: Some(Bytes(8192)), ..DiskSpec::default() };
    let attach = DiskAttach::at(disk, None);
    done(&manager, manager.attach_disk(&call(), vm.id, attach).await.unwrap().id).await;
    assert_eq!(site.look().await["volumes"].as_array().unwrap().len(), 2);
    apply(&manager, one, Apply { discard_current: true, ..Apply::default() }).await;
    let look = site.look().await;
    let volumes = look["volumes"].as_array().unwrap();
    assert_eq!(volumes.len(), 1);
    assert_eq!(volumes[0]["had"].as_array().unwrap().len(), 1, "of the instant for the way back nothing is left");
    manager.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hardware_goes_back_with_the_node() {
    let (_site, manager, vm) = Site::with_web(&[1], false).await;
    let old = snap(&manager, vm.id, "old", SnapshotKind::Disk).await;
    let bigger = VmUpdate { cpus: Some(4), memory: Some(Bytes::mib(1024)), ..VmUpdate::default() };
    let Outcome::Job(changed) = manager.update_vm(&call(), vm.id, bigger).await.unwrap() else {
        panic!("hardware is changed by a job");
    };
    done(&manager, changed.id).await;
    assert_eq!(manager.vm(&caller(), vm.id).await.unwrap().vm.hardware.cpus, 4);
    apply(&manager, old, Apply { start: true, ..Apply::default() }).await;
    let now = manager.vm(&caller(), vm.id).await.unwrap();
    assert_eq!((now.vm.hardware.cpus, now.vm.hardware.memory), (1, Bytes::mib(512)));
    assert_eq!(now.vm.state, VmState::At { rest: Rest::Running });
    assert_eq!(now.status.unwrap().machine.unwrap().cpus, 1);
    manager.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_given_up_expires() {
    let (_site, manager, vm) = Site::with_web(&[1], false).await;
    let one = snap(&manager, vm.id, "one", SnapshotKind::Disk).await;
    let short = Apply { keep_for: Some(Micros(1)), ..Apply::default() };
    apply(&manager, one, short.clone()).await;
    apply(&manager, one, Apply { keep_name: Some("forever".parse().unwrap()), ..short }).await;
    let keep = manager.find_snapshot(&caller(), Some(vm.id), "forever").await.unwrap();
    let update = SnapshotUpdate { keep: true, ..SnapshotUpdate::default() };
    let kept = manager.update_snapshot(&call(), keep, update).await.unwrap().snapshot;
    assert_eq!(kept.origin, SnapshotOrigin::BeforeApply { applied: one });
    let automatic = manager.find_snapshot(&caller(), Some(vm.id), "before-one-1").await.unwrap();
    assert!(manager.snapshot(&caller(), automatic, false).await.unwrap().snapshot.expires.unwrap() < Timestamp::now());

    prune(&manager, std::time::Duration::from_secs(3600)).await.unwrap();
    let jobs = manager.list_jobs(&caller(), &Default::default(), &Default::default()).await.unwrap().items;
    done(&manager, jobs[0].job.id).await;
    let names: Vec<String> =
        manager.tree(&caller(), vm.id, false).await.unwrap().nodes.iter().map(|node| node.name.to_string()).collect();
    assert_eq!(names, ["one", "forever"]);
    manager.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn space_counts_memory() {
    let (_site, manager, vm) = Site::with_web(&[1], true).await;
    let one = snap(&manager, vm.id, "one", SnapshotKind::DiskAndMemory).await;
    let view = manager.snapshot(&caller(), one, true).await.unwrap();
    let space = view.space.unwrap();
    let stored = view.snapshot.report.unwrap().memory.unwrap().stored;
    assert!(stored.0 > 0);
    assert_eq!((space.memory, space.would_free), (stored, space.unique + stored));
    assert_eq!(space.referenced, space.unique + space.shared);
    let dry = SnapshotDelete { dry_run: true, subtree: false };
    let Outcome::Done(PlanView::Delete(plan)) = manager.delete_snapshot(&call(), one, dry).await.unwrap() else {
        panic!("a dry run changes nothing");
    };
    assert_eq!((plan.memory, plan.would_free), (stored, space.would_free));
    assert_eq!(plan.removed[0].name.as_str(), "one");
    manager.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_node_stays() {
    let (_site, manager, Vm { id: vm, .. }) = Site::with_web(&[1], false).await;
    let root = snap(&manager, vm, "root", SnapshotKind::Disk).await;
    let leaf = snap(&manager, vm, "leaf", SnapshotKind::Disk).await;
    let lock = |locked| SnapshotUpdate { locked: Some(locked), ..SnapshotUpdate::default() };
    manager.update_snapshot(&call(), leaf, lock(true)).await.unwrap();
    let subtree = SnapshotDelete { subtree: true, dry_run: false };
    let says = "cannot delete snapshot root of web with all below it: snapshot leaf is locked; unlock it first";
    assert_eq!(refused(manager.delete_snapshot(&call(), root, subtree).await).message, says);
    let says = "cannot delete snapshot leaf of web: snapshot leaf is locked; unlock it first";
    assert_eq!(refused(manager.delete_snapshot(&call(), leaf, SnapshotDelete::default()).await).message, says);
    let says = "cannot delete web: snapshot leaf is locked; unlock it first";
    assert_eq!(refused(manager.delete_vm(&call(), vm, Default::default()).await).message, says);
    let says = "cannot delete all snapshots of web: snapshot leaf is locked; unlock it first";
    assert_eq!(refused(manager.delete_snapshots(&call(), vm, false).await).message, says);
    manager.update_snapshot(&call(), leaf, lock(false)).await.unwrap();
    done(&manager, job(manager.delete_vm(&call(), vm, Default::default()).await.unwrap())).await;
    manager.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_is_given_twice_is_stored_once() {
    let (_site, manager, Vm { id: vm, .. }) = Site::with_web(&[1], false).await;
    let tags = |words: &[&str]| words.iter().map(|word| word.parse().unwrap()).collect::<Vec<keyframe_model::Tag>>();
    let wish = SnapshotCreate { tags: tags(&["b", "a", "b"]), ..SnapshotCreate::default() };
    let made = manager.create_snapshot(&call(), vm, wish).await.unwrap();
    done(&manager, made.id).await;
    let id = made.snapshot.unwrap();
    assert_eq!(manager.snapshot(&caller(), id, false).await.unwrap().snapshot.tags, tags(&["b", "a"]));
    let wish = SnapshotUpdate { tags: Some(tags(&["c", "c", "a"])), ..SnapshotUpdate::default() };
    assert_eq!(manager.update_snapshot(&call(), id, wish).await.unwrap().snapshot.tags, tags(&["c", "a"]));
    manager.stop().await;
}
