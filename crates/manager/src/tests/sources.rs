//! What a machine is that is being copied: free as soon as its copies have their disks, and told what that took of it.

use std::time::Duration;

use keyframe_agent::array::fake::When as ArrayWhen;
use keyframe_agent::hypervisor::fake::When;
use keyframe_model::agent::{CutMethod, FaultKind, VmId};
use keyframe_model::{JobState, Rest, SnapshotKind, Vm, VmState};

use super::scenario::clone_of;
use super::site::{Site, call, called, caller, done, ended, job, refused, snap};
use crate::request::{CloneMemory, CloneSource, JobRef, StopRequest, VmDelete};
use crate::{ErrorKind, Manager};

const HARD: StopRequest = StopRequest { hard: true, never_hard: false, deadline: None };

async fn state(manager: &Manager, vm: VmId) -> VmState {
    manager.vm(&caller(), vm).await.unwrap().vm.state
}

/// A fork whose guest agent does not come back.
async fn hangs(site: &Site, manager: &Manager, vm: VmId) -> JobRef {
    site.fake.faults().hang("fix_identity", 1, When::Before);
    let fork = clone_of(CloneSource::Vm { vm }, "fork", CloneMemory::Yes);
    let made = manager.clone_vm(&call(), fork).await.unwrap();
    called(site, "fix_identity", 1).await;
    made
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_is_free_while_its_fork_is_told_who_it_is() {
    let (site, manager, Vm { id: vm, .. }) = Site::with_web(&[1], true).await;
    let made = hangs(&site, &manager, vm).await;
    assert_eq!(state(&manager, vm).await, VmState::At { rest: Rest::Running });
    snap(&manager, vm, "meanwhile", SnapshotKind::DiskAndMemory).await;
    // And it may go altogether: the fork has what it needs.
    let gone = manager.delete_vm(&call(), vm, VmDelete { force: true, ..VmDelete::default() }).await.unwrap();
    done(&manager, job(gone)).await;
    assert!(!manager.job(&caller(), made.id).await.unwrap().state.ended(), "this is no test");
    assert!(matches!(state(&manager, made.vms[0]).await, VmState::Busy { .. }), "the fork is not made yet");
    site.fake.faults().clear();
    done(&manager, made.id).await;
    assert_eq!(state(&manager, made.vms[0]).await, VmState::At { rest: Rest::Running });
    let look = site.look().await;
    assert_eq!((&look["memory"], &look["instants"]), (&serde_json::json!([]), &serde_json::json!([])));
    assert_eq!(look["volumes"].as_array().unwrap().len(), 1, "only the fork's is left");
    manager.stop().await;
}

/// Who had it in hand before is not asked at the end: what was made of the source since stays.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_made_of_a_source_since_it_was_let_go_of_stays() {
    let (site, manager, Vm { id: vm, .. }) = Site::with_web(&[1], true).await;
    let made = hangs(&site, &manager, vm).await;
    done(&manager, manager.stop_vm(&call(), vm, HARD).await.unwrap().id).await;
    assert!(!manager.job(&caller(), made.id).await.unwrap().state.ended(), "a stop of the source ends the fork");
    manager.stop().await;
    drop(manager);
    site.fake.faults().clear();
    let manager = site.manager().await;
    done(&manager, made.id).await;
    assert_eq!(state(&manager, vm).await, VmState::At { rest: Rest::Stopped });
    manager.stop().await;
}

/// The copies' disks are clones of the source's: until they are made nobody takes those away.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_is_busy_until_its_copies_have_their_disks() {
    let (site, manager, Vm { id: vm, .. }) = Site::with_web(&[1], true).await;
    let array = site.with_agent(|agent| agent.array("fake").clone());
    let creations = || array.faults().calls().iter().filter(|made| *made == "create").count();
    let before = creations();
    for nth in 1..1000 {
        array.faults().fail("create", nth, ArrayWhen::Before, FaultKind::Busy);
    }
    let copy = clone_of(CloneSource::Vm { vm }, "copy", CloneMemory::No);
    let made = manager.clone_vm(&call(), copy).await.unwrap();
    while creations() == before {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(matches!(state(&manager, vm).await, VmState::Busy { .. }));
    assert_eq!(refused(manager.pause_vm(&call(), vm).await).kind, ErrorKind::Busy);
    array.faults().clear();
    done(&manager, made.id).await;
    assert_eq!(state(&manager, vm).await, VmState::At { rest: Rest::Running });
    manager.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_job_of_a_copy_says_what_it_took_of_the_source() {
    let (site, manager, Vm { id: vm, .. }) = Site::with_web(&[1], true).await;
    let copy = async |name: &str, memory| {
        let made = manager.clone_vm(&call(), clone_of(CloneSource::Vm { vm }, name, memory)).await.unwrap();
        ended(&manager, made.id).await
    };
    let report = copy("fork", CloneMemory::Yes).await.instant.expect("nobody knows how the instant was taken");
    assert_eq!(report.method, CutMethod::AtResume);
    assert!(report.paused.0 > 0 && report.memory.is_some(), "{report:?}");
    assert_eq!(copy("thin", CloneMemory::No).await.instant.unwrap().method, CutMethod::WritesHeld);
    // It is worth knowing as well where the copy came to nothing.
    site.fake.faults().fail("start", 1, When::Before, FaultKind::Internal);
    let failed = copy("none", CloneMemory::Yes).await;
    assert_eq!(
        (failed.state, failed.instant.map(|report| report.method)),
        (JobState::Failed, Some(CutMethod::AtResume))
    );
    let one = snap(&manager, vm, "one", SnapshotKind::Disk).await;
    let made =
        manager.clone_vm(&call(), clone_of(CloneSource::Snapshot { snapshot: one }, "kept", CloneMemory::No)).await;
    assert_eq!(ended(&manager, made.unwrap().id).await.instant, None, "nothing was taken of anything");
    manager.stop().await;
}
