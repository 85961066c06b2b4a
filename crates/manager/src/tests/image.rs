//! Compressing, verifying and comparing snapshots; how many there may be.

use std::time::Duration;

use keyframe_agent::array::fake::When as ArrayWhen;
use keyframe_agent::hypervisor::fake::When;
use keyframe_model::agent::{Bytes, FaultKind, SnapshotId, WorkProgress};
use keyframe_model::{Finding, JobKind, JobState, SnapshotKind, Vm};

use super::site::{Site, call, caller, done, ended, make, refused, snap, wish};
use crate::request::{
    Apply, CloneMemory, CloneSource, DiskAttach, DiskPresence, DiskSpec, JobFilter, PageRequest, SnapshotCreate,
    SnapshotFilter,
};
use crate::{Config, ErrorKind, Manager};

async fn compressed(manager: &Manager, snapshot: SnapshotId) -> bool {
    let view = manager.snapshot(&caller(), snapshot, false).await.unwrap();
    view.snapshot.report.unwrap().memory.is_some_and(|memory| memory.compressed)
}

/// What is kept of the last verification.
async fn found(manager: &Manager, snapshot: SnapshotId) -> Option<Finding> {
    let verification = manager.snapshot(&caller(), snapshot, false).await.unwrap().snapshot.verification;
    verification.map(|verification| verification.finding)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_memory_is_compressed_once_and_verified_often() {
    let site = Site::new(true).await;
    let manager = site.manager().await;
    let vm = make(&manager, wish(&site, "web", &[1], true)).await.vm.id;
    let disk = snap(&manager, vm, "disk", SnapshotKind::Disk).await;
    let memory = snap(&manager, vm, "memory", SnapshotKind::DiskAndMemory).await;
    assert!(!compressed(&manager, memory).await, "not before its time");
    for snapshot in [disk, memory] {
        assert_eq!(found(&manager, snapshot).await, None);
        done(&manager, manager.verify_snapshot(&call(), snapshot).await.unwrap().id).await;
        assert_eq!(found(&manager, snapshot).await, Some(Finding::Whole));
    }
    done(&manager, manager.compress_snapshot(&call(), memory).await.unwrap().id).await;
    assert!(compressed(&manager, memory).await);
    assert_eq!(found(&manager, memory).await, None, "nobody has read the new image");
    assert_eq!(found(&manager, disk).await, Some(Finding::Whole));
    let error = refused(manager.compress_snapshot(&call(), memory).await);
    assert_eq!(error.message, "the memory of snapshot memory is compressed already");
    let error = refused(manager.compress_snapshot(&call(), disk).await);
    assert_eq!(error.message, "snapshot disk has no memory to be compressed");
    done(&manager, manager.verify_snapshot(&call(), memory).await.unwrap().id).await;
    super::site::apply(&manager, memory, Apply::default()).await;
    site.fake.check(vm).unwrap();

    for entry in std::fs::read_dir(site.path("memory")).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("fake 1.0", "fake 1.1")).unwrap();
    }
    let failed = ended(&manager, manager.verify_snapshot(&call(), memory).await.unwrap().id).await;
    let says = "the memory image of snapshot memory is whole, but not loadable here: its memory was stored by fake 1.1, and \
                the host has fake 1.0, which is older and does not understand it; its disks can be used without memory";
    assert_eq!(failed.error.unwrap().message, says);
    assert_eq!(found(&manager, memory).await, Some(Finding::Whole));

    for entry in std::fs::read_dir(site.path("memory")).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    let failed = ended(&manager, manager.verify_snapshot(&call(), memory).await.unwrap().id).await;
    let says = "the memory image of snapshot memory is lost; its disks can be used without memory";
    assert_eq!((failed.state, failed.error.unwrap().message.as_str()), (JobState::Failed, says));
    let damaged = Some(Finding::Damaged { reason: says.to_owned() });
    assert_eq!(found(&manager, memory).await, damaged);
    // What says nothing of the snapshot changes nothing of what is known of it.
    site.with_agent(|agent| {
        agent.array("fake").faults().fail("has-snapshot", 1, ArrayWhen::Before, FaultKind::Internal)
    });
    let failed = ended(&manager, manager.verify_snapshot(&call(), memory).await.unwrap().id).await;
    assert_eq!(failed.error.unwrap().kind, ErrorKind::Internal);
    assert_eq!(found(&manager, memory).await, damaged);
    let tree = manager.tree(&caller(), vm, false).await.unwrap();
    let shown = tree.nodes.into_iter().find(|node| node.id == memory).unwrap().verification;
    assert_eq!(shown.map(|verification| verification.finding), damaged, "the tree does not say so");
    manager.stop().await;
    let manager = site.manager().await;
    assert_eq!(found(&manager, memory).await, damaged);
    manager.stop().await;
}

/// Whatever is old enough is compressed without anybody asking, one after the other, and nothing twice.
#[tokio::test(flavor = "multi_thread")]
async fn old_memories_are_compressed_by_themselves() {
    let (site, manager, Vm { id: vm, .. }) = Site::with_web(&[1], true).await;
    let mut memories = Vec::new();
    for n in 0..3 {
        memories.push(snap(&manager, vm, &format!("m{n}"), SnapshotKind::DiskAndMemory).await);
        snap(&manager, vm, &format!("d{n}"), SnapshotKind::Disk).await;
    }
    manager.stop().await;
    let config = site.config();
    let manager = Manager::start(Config { compress_after: Some(Duration::ZERO), ..config }).await.unwrap();
    let mut events = manager.events(&caller(), Some(0)).await.unwrap();
    let all = async {
        loop {
            let mut left = 0;
            for &memory in &memories {
                left += u32::from(!compressed(&manager, memory).await);
            }
            if left == 0 {
                break;
            }
            events.next().await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(30), all).await.expect("they are not compressed");
    let later = snap(&manager, vm, "later", SnapshotKind::DiskAndMemory).await;
    let one = async {
        while !compressed(&manager, later).await {
            events.next().await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(30), one).await.expect("what came later is not compressed");
    let jobs = manager.list_jobs(&caller(), &JobFilter::default(), &PageRequest::default()).await.unwrap().items;
    let mut spans: Vec<_> = jobs
        .iter()
        .filter(|job| job.job.kind == JobKind::SnapshotCompress)
        .map(|job| (job.created, job.ended))
        .collect();
    spans.sort();
    assert_eq!(spans.len(), 4, "each once");
    assert!(spans.windows(2).all(|pair| pair[0].1.is_some_and(|end| end <= pair[1].0)), "{spans:?}");
    manager.stop().await;
}

/// An image that is being used is left alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_memory_in_use_is_not_compressed() {
    let (site, manager, Vm { id: vm, .. }) = Site::with_web(&[1], true).await;
    let memory = snap(&manager, vm, "m", SnapshotKind::DiskAndMemory).await;
    site.with_agent(|agent| agent.array("fake").faults().slow(Duration::from_millis(300)));
    let fork = super::scenario::clone_of(CloneSource::Snapshot { snapshot: memory }, "fork", CloneMemory::Yes);
    let fork = manager.clone_vm(&call(), fork).await.unwrap();
    let error = refused(manager.compress_snapshot(&call(), memory).await);
    assert_eq!(error.message, format!("snapshot m is being used by job {}; wait for it", fork.id));
    done(&manager, fork.id).await;
    manager.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_are_compared_disk_by_disk() {
    let site = Site::new(true).await;
    let manager = site.manager().await;
    let vm = make(&manager, wish(&site, "web", &[1, 2], true)).await.vm;
    let one = snap(&manager, vm.id, "one", SnapshotKind::DiskAndMemory).await;
    site.fake.step(vm.id, 3).unwrap();
    done(&manager, manager.detach_disk(&call(), vm.id, vm.hardware.disks[1].id).await.unwrap().id).await;
    let disk = DiskSpec { size: Some(Bytes(1 << 16)), ..DiskSpec::default() };
    let attach = DiskAttach::at(disk, None);
    done(&manager, manager.attach_disk(&call(), vm.id, attach).await.unwrap().id).await;
    let two = snap(&manager, vm.id, "two", SnapshotKind::Disk).await;

    let diff = manager.diff_snapshots(&caller(), one, two).await.unwrap();
    let presences: Vec<DiskPresence> = diff.disks.iter().map(|disk| disk.presence).collect();
    assert_eq!(presences, [DiskPresence::Both, DiskPresence::OnlyAfter, DiskPresence::OnlyBefore]);
    assert!(diff.disks[0].changed.0 > 0 && diff.disks[0].extents > 0, "{diff:?}");
    assert!(diff.memory_left_out);
    let same = manager.diff_snapshots(&caller(), two, two).await.unwrap();
    assert!(same.disks.iter().all(|disk| disk.extents == 0), "{same:?}");

    let other = make(&manager, wish(&site, "other", &[1], false)).await.vm.id;
    let foreign = snap(&manager, other, "s", SnapshotKind::Disk).await;
    assert_eq!(refused(manager.diff_snapshots(&caller(), one, foreign).await).kind, ErrorKind::Invalid);
    manager.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_has_only_so_many_snapshots() {
    let site = Site::new(false).await;
    let manager = Manager::start(Config { max_snapshots: 2, ..site.config() }).await.unwrap();
    let vm = make(&manager, wish(&site, "web", &[1], false)).await.vm.id;
    let one = snap(&manager, vm, "one", SnapshotKind::Disk).await;
    snap(&manager, vm, "two", SnapshotKind::Disk).await;
    let says = "web has 2 snapshots, which is the most; delete some first";
    let error = refused(manager.create_snapshot(&call(), vm, SnapshotCreate::default()).await);
    assert_eq!((error.kind, error.message.as_str()), (ErrorKind::Limit, says));
    assert_eq!(refused(manager.apply_snapshot(&call(), one, Apply::default()).await).message, says);
    super::site::apply(&manager, one, Apply { discard_current: true, ..Apply::default() }).await;
    let other = make(&manager, wish(&site, "other", &[1], false)).await.vm.id;
    snap(&manager, other, "one", SnapshotKind::Disk).await;
    let all = manager.list_snapshots(&caller(), &SnapshotFilter::default(), &PageRequest::default()).await.unwrap();
    assert_eq!(all.items.len(), 3);
    manager.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_verification_that_is_called_off_is_not_read_on() {
    let (site, manager, Vm { id: vm, .. }) = Site::with_web(&[1], true).await;
    let memory = snap(&manager, vm, "memory", SnapshotKind::DiskAndMemory).await;
    site.fake.faults().hang("verify", 1, When::Before);
    let job = manager.verify_snapshot(&call(), memory).await.unwrap().id;
    let reads = || site.with_agent(|agent| agent.agent().instants.progress(memory)) != WorkProgress::default();
    let until = async |is: bool| {
        let there = async {
            while reads() != is {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), there).await.expect(if is { "not read" } else { "read on" });
    };
    until(true).await;
    manager.cancel_job(&call(), job).await.unwrap();
    assert_eq!(ended(&manager, job).await.state, JobState::Cancelled);
    until(false).await;
    assert_eq!(found(&manager, memory).await, None, "nobody has read all of it");
    done(&manager, manager.verify_snapshot(&call(), memory).await.unwrap().id).await;
    assert_eq!(found(&manager, memory).await, Some(Finding::Whole));
    manager.stop().await;
}
