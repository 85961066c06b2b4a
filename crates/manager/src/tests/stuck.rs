//! Machines and calls that do not come to an end by themselves: a job always does, and the plug can always be pulled.

use std::time::Duration;

use keyframe_agent::array::fake::When as ArrayWhen;
use keyframe_agent::hypervisor::fake::{Mood, When};
use keyframe_agent::testing::TestAgent;
use keyframe_model::agent::{FaultKind, JobId, Micros, VmId};
use keyframe_model::{Activity, JobState, Progress, Rest, SnapshotKind, Vm, VmState};

use super::scenario::clone_of;
use super::site::{LIMITS, Site, call, caller, done, ended, job, make, refused, snap, wish};
use crate::job::Limits;
use crate::request::{
    Apply, CloneMemory, CloneSource, PageRequest, SnapshotCreate, SnapshotDelete, StartRequest, StopRequest, VmFilter,
};
use crate::{Config, ErrorKind, Manager, reconcile};

const HARD: StopRequest = StopRequest { hard: true, never_hard: false, deadline: None };

async fn state(manager: &Manager, vm: VmId) -> VmState {
    manager.vm(&caller(), vm).await.unwrap().vm.state
}

/// Waits until the host is at that call.
async fn reached(site: &Site, call: &str) {
    reached_again(site, call, 1).await;
}

/// Waits until it has been asked so often.
async fn reached_again(site: &Site, call: &str, times: usize) {
    let there = async {
        while site.fake.faults().calls().iter().filter(|made| *made == call).count() < times {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), there).await.expect("the host is never asked");
}

/// The process is there and says nothing: that is no host that is away, for which a job would wait for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_does_not_answer_ends_its_job_and_can_be_stopped() {
    let site = Site::new(false).await;
    let jobs = Limits { patience: Duration::from_millis(300), ..LIMITS };
    let manager = Manager::start(Config { jobs, ..site.config() }).await.unwrap();
    let vm = make(&manager, wish(&site, "web", &[1], true)).await.vm.id;
    done(&manager, manager.pause_vm(&call(), vm).await.unwrap().id).await;
    for nth in 1..1000 {
        site.fake.faults().fail("status", nth, When::Before, FaultKind::Deadline);
        site.fake.faults().fail("resume", nth, When::Before, FaultKind::Deadline);
    }
    let resumed = manager.resume_vm(&call(), vm).await.unwrap();
    assert_eq!(ended(&manager, resumed.id).await.state, JobState::Failed);
    assert!(matches!(state(&manager, vm).await, VmState::Error { .. }));
    site.fake.faults().clear();
    done(&manager, manager.stop_vm(&call(), vm, HARD).await.unwrap().id).await;
    assert_eq!(state(&manager, vm).await, VmState::At { rest: Rest::Stopped });
    manager.stop().await;
}

/// Its process ends after the job has begun: it cannot be reset, and that is all.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_cannot_be_reset_is_not_in_error() {
    let (site, manager, Vm { id: vm, .. }) = Site::with_web(&[1], true).await;
    for nth in 1..1000 {
        site.fake.faults().fail("reset", nth, When::Before, FaultKind::Conflict);
    }
    let reset = manager.reset_vm(&call(), vm).await.unwrap();
    assert_eq!(ended(&manager, reset.id).await.state, JobState::Failed);
    assert_eq!(state(&manager, vm).await, VmState::At { rest: Rest::Running });
    manager.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_is_not_given_up_for_one_that_cannot_be_started() {
    let (site, manager, Vm { id: vm, .. }) = Site::with_web(&[1], true).await;
    let one = snap(&manager, vm, "one", SnapshotKind::DiskAndMemory).await;
    let before = site.fake.faults().calls().len();
    site.fake.faults().fail("check", 1, When::Before, FaultKind::NotFound);
    let applied = ended(&manager, job(manager.apply_snapshot(&call(), one, Apply::default()).await.unwrap())).await;
    assert_eq!(applied.state, JobState::Failed);
    assert_eq!(state(&manager, vm).await, VmState::At { rest: Rest::Running });
    let calls = site.fake.faults().calls().split_off(before);
    assert!(!calls.iter().any(|call| ["pause", "capture", "stop", "start"].contains(&call.as_str())), "{calls:?}");
    manager.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_plug_can_be_pulled_during_a_snapshot() {
    let (site, manager, Vm { id: vm, .. }) = Site::with_web(&[1], true).await;
    site.fake.faults().hang("capture", 1, When::Before);
    let kind = Some(SnapshotKind::DiskAndMemory);
    let busy = manager.create_snapshot(&call(), vm, SnapshotCreate { kind, ..Default::default() }).await.unwrap().id;
    reached(&site, "capture").await;
    let stopped = manager.stop_vm(&call(), vm, HARD).await.unwrap();
    done(&manager, stopped.id).await;
    assert_eq!(ended(&manager, busy).await.state, JobState::Cancelled);
    assert_eq!(state(&manager, vm).await, VmState::At { rest: Rest::Stopped });
    assert!(site.fake.machine(vm).is_none(), "it runs");
    assert!(manager.tree(&caller(), vm, false).await.unwrap().nodes.is_empty());
    manager.stop().await;
}

/// Whatever comes instead of a guest that is given up is free before the memory of that one is stored.
#[tokio::test(flavor = "multi_thread")]
async fn the_machine_is_free_while_the_memory_of_what_was_given_up_is_stored() {
    let (site, manager, Vm { id: vm, .. }) = Site::with_web(&[1], true).await;
    let one = snap(&manager, vm, "one", SnapshotKind::DiskAndMemory).await;
    site.fake.faults().hang("store_aside", 1, When::Before);
    let applied = job(manager.apply_snapshot(&call(), one, Apply::default()).await.unwrap());
    reached(&site, "store_aside").await;
    let view = manager.vm(&caller(), vm).await.unwrap();
    assert_eq!(view.vm.state, VmState::At { rest: Rest::Running });
    assert_eq!(view.vm.current, Some(one));
    assert_eq!(view.allowed, [Activity::Stopping, Activity::Pausing, Activity::Resetting]);
    let error = refused(manager.create_snapshot(&call(), vm, SnapshotCreate::default()).await);
    let says = format!("the snapshot tree of web is being used by job {applied}; wait for it");
    assert_eq!((error.kind, error.message), (ErrorKind::Busy, says));
    done(&manager, manager.stop_vm(&call(), vm, HARD).await.unwrap().id).await;
    assert!(site.fake.machine(vm).is_none(), "it runs");
    assert!(!manager.job(&caller(), applied).await.unwrap().state.ended(), "this is no test");
    site.fake.faults().clear();
    done(&manager, applied).await;
    let tree = manager.tree(&caller(), vm, false).await.unwrap();
    let kept = tree.nodes.iter().find(|node| node.id != one).unwrap().id;
    let kept = manager.snapshot(&caller(), kept, false).await.unwrap().snapshot;
    assert_eq!(kept.kind, SnapshotKind::DiskAndMemory);
    assert!(kept.report.unwrap().memory.is_some(), "its memory is not there");
    assert_eq!(state(&manager, vm).await, VmState::At { rest: Rest::Stopped });
    manager.stop().await;
}

/// The process that has the memory of what was given up is killed before that is stored: the disks are there, and people are told.
#[tokio::test(flavor = "multi_thread")]
async fn a_memory_that_is_lost_on_the_way_is_told_of() {
    let (site, manager, Vm { id: vm, .. }) = Site::with_web(&[1], true).await;
    let one = snap(&manager, vm, "one", SnapshotKind::DiskAndMemory).await;
    site.fake.faults().hang("store_aside", 1, When::Before);
    let applied = job(manager.apply_snapshot(&call(), one, Apply::default()).await.unwrap());
    reached(&site, "store_aside").await;
    let tree = manager.tree(&caller(), vm, false).await.unwrap();
    let kept = tree.nodes.iter().find(|node| node.id != one).unwrap().id;
    site.fake.kill_aside(kept).unwrap();
    site.fake.faults().clear();
    done(&manager, applied).await;
    let kept = manager.snapshot(&caller(), kept, false).await.unwrap().snapshot;
    assert_eq!((kept.kind, kept.usable().is_ok()), (SnapshotKind::Disk, true));
    let view = manager.vm(&caller(), vm).await.unwrap();
    assert_eq!(view.vm.state, VmState::At { rest: Rest::Running });
    let says = view.vm.notice.unwrap().text;
    let expected = format!("{} has the disks that were given up, but not the memory: ", kept.name);
    assert!(says.starts_with(&expected) && says.ends_with("the process that had it has ended"), "{says}");
    assert!(!says.contains(&kept.id.to_string()), "people know no identifiers: {says}");
    manager.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_plug_can_be_pulled_while_a_guest_is_asked_to_power_off() {
    let (site, manager, Vm { id: vm, .. }) = Site::with_web(&[1], true).await;
    site.fake.mood(vm, Mood::Silent);
    let asked = manager.stop_vm(&call(), vm, StopRequest { never_hard: true, ..Default::default() }).await.unwrap();
    reached(&site, "stop").await;
    done(&manager, manager.stop_vm(&call(), vm, HARD).await.unwrap().id).await;
    assert_eq!(ended(&manager, asked.id).await.state, JobState::Succeeded, "it is off, as was asked");
    assert_eq!(state(&manager, vm).await, VmState::At { rest: Rest::Stopped });
    manager.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_does_not_power_off_loses_its_plug_and_that_is_said() {
    let (site, manager, Vm { id: vm, .. }) = Site::with_web(&[1], true).await;
    let stop = |never_hard| StopRequest { deadline: Some(Micros(10_000)), never_hard, ..Default::default() };
    let obeyed = done(&manager, manager.stop_vm(&call(), vm, stop(false)).await.unwrap().id).await;
    assert_eq!(obeyed.notes, [""; 0], "a guest that obeys needs no note");
    done(&manager, manager.start_vm(&call(), vm, StartRequest::default()).await.unwrap().id).await;
    site.fake.mood(vm, Mood::Silent);
    let failed = ended(&manager, manager.stop_vm(&call(), vm, stop(true)).await.unwrap().id).await;
    assert_eq!((failed.state, failed.error.unwrap().kind), (JobState::Failed, ErrorKind::Deadline));
    assert!(site.fake.machine(vm).is_some(), "its plug was pulled all the same");
    let pulled = done(&manager, manager.stop_vm(&call(), vm, stop(false)).await.unwrap().id).await;
    assert_eq!(pulled.notes, ["the guest of web did not power off within 10ms, so its plug was pulled"]);
    assert!(site.fake.machine(vm).is_none(), "it runs");
    assert_eq!(state(&manager, vm).await, VmState::At { rest: Rest::Stopped });
    manager.stop().await;
}

/// Who deletes snapshots needs the tree, not the process; and what may be done says the same.
#[tokio::test(flavor = "multi_thread")]
async fn the_power_of_a_machine_is_free_while_its_snapshots_are_deleted() {
    let (site, manager, Vm { id: vm, .. }) = Site::with_web(&[1], true).await;
    let one = snap(&manager, vm, "one", SnapshotKind::Disk).await;
    snap(&manager, vm, "two", SnapshotKind::Disk).await;
    for nth in 1..1000 {
        let fail = |agent: &TestAgent| {
            agent.array("fake").faults().fail("delete-snapshot", nth, ArrayWhen::Before, FaultKind::Busy);
        };
        site.with_agent(fail);
    }
    let doomed = job(manager.delete_snapshot(&call(), one, SnapshotDelete::default()).await.unwrap());
    let listed = manager.list_vms(&caller(), &VmFilter::default(), &PageRequest::default()).await.unwrap();
    for view in [manager.vm(&caller(), vm).await.unwrap(), listed.items[0].clone()] {
        assert_eq!(view.allowed, [Activity::Stopping, Activity::Pausing, Activity::Resetting]);
    }
    let error = refused(manager.create_snapshot(&call(), vm, SnapshotCreate::default()).await);
    let says = format!("the snapshot tree of web is being used by job {doomed}; wait for it");
    assert_eq!((error.kind, error.message), (ErrorKind::Busy, says));
    done(&manager, manager.stop_vm(&call(), vm, HARD).await.unwrap().id).await;
    assert!(site.fake.machine(vm).is_none(), "it runs");
    let started = manager.start_vm(&call(), vm, StartRequest::default()).await.unwrap();
    done(&manager, started.id).await;
    assert!(!manager.job(&caller(), doomed).await.unwrap().state.ended(), "this is no test");
    site.with_agent(|agent| agent.array("fake").faults().clear());
    done(&manager, doomed).await;
    assert_eq!(manager.tree(&caller(), vm, false).await.unwrap().nodes.len(), 1);
    let allowed = manager.vm(&caller(), vm).await.unwrap().allowed;
    assert!(allowed.contains(&Activity::Snapshotting), "{allowed:?}");
    manager.stop().await;
}

/// What the host said before a job's end says nothing of what the job has left.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_seen_before_a_jobs_end_is_not_believed_after_it() {
    let (_site, manager, Vm { id: vm, .. }) = Site::with_web(&[1], false).await;
    let seen = reconcile::generations(&manager).await.unwrap();
    let (info, statuses) = (manager.agent.host().await.unwrap(), manager.agent.vms().await.unwrap());
    done(&manager, manager.start_vm(&call(), vm, StartRequest::default()).await.unwrap().id).await;
    let unsure = reconcile::compare(&manager, &seen, info, &statuses).await.unwrap();
    assert_eq!(state(&manager, vm).await, VmState::At { rest: Rest::Running });
    assert!(unsure.contains(&vm), "it is not looked at again");
    manager.stop().await;
}

/// The host is still at the call of a manager that was killed: the next one waits for its end.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_outlives_its_manager_is_waited_for() {
    let site = Site::new(false).await;
    let config = || Config { patience: Duration::from_millis(100), ..site.config() };
    let manager = Manager::start(config()).await.unwrap();
    let vm = make(&manager, wish(&site, "web", &[1], false)).await.vm.id;
    site.fake.faults().slow(Duration::from_secs(1));
    let started = manager.start_vm(&call(), vm, StartRequest::default()).await.unwrap();
    reached(&site, "start").await;
    manager.stop().await;
    drop(manager);
    let manager = Manager::start(config()).await.unwrap();
    done(&manager, started.id).await;
    site.fake.faults().slow(Duration::ZERO);
    assert!(site.fake.machine(vm).is_some());
    assert_eq!(site.fake.faults().calls().iter().filter(|made| *made == "start").count(), 1);
    manager.stop().await;
}

/// An image is read for longer than anybody's patience.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_being_made_is_waited_for() {
    let site = Site::new(false).await;
    let manager = Manager::start(Config { patience: Duration::from_millis(50), ..site.config() }).await.unwrap();
    for nth in 1..20 {
        site.with_agent(|agent| agent.array("fake").faults().fail("create", nth, ArrayWhen::Before, FaultKind::Busy));
    }
    make(&manager, wish(&site, "web", &[1], false)).await;
    manager.stop().await;
}

/// However long the host would read: nobody waits for what they have called off.
#[tokio::test(flavor = "multi_thread")]
async fn who_calls_off_the_reading_of_an_image_does_not_wait_for_its_end() {
    let (site, manager, Vm { id: vm, .. }) = Site::with_web(&[1], true).await;
    let snapshot = snap(&manager, vm, "m", SnapshotKind::DiskAndMemory).await;
    let before = site.look().await;
    let array = site.with_agent(|agent| agent.array("fake").clone());
    array.faults().endless_images(true);
    let import = manager.create_vm(&call(), wish(&site, "new", &[2], false)).await.unwrap();
    let creations = || array.faults().calls().iter().filter(|made| *made == "create").count();
    while creations() < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    site.fake.faults().hang("verify", 1, When::Before);
    let verification = manager.verify_snapshot(&call(), snapshot).await.unwrap();
    reached(&site, "verify").await;
    for job in [import.id, verification.id] {
        half(&manager, job).await;
        manager.cancel_job(&call(), job).await.unwrap();
        assert_eq!(ended(&manager, job).await.state, JobState::Cancelled);
    }
    site.fake.faults().hang("compress", 1, When::Before);
    let compression = manager.compress_snapshot(&call(), snapshot).await.unwrap();
    reached(&site, "compress").await;
    half(&manager, compression.id).await;
    assert!(manager.cancel_job(&call(), compression.id).await.is_ok());
    assert_eq!(ended(&manager, compression.id).await.state, JobState::Cancelled);
    assert_eq!(site.look().await, before);
    site.fake.faults().clear();
    done(&manager, manager.compress_snapshot(&call(), snapshot).await.unwrap().id).await;
    manager.stop().await;
}

/// Waits until a job of one step is seen to be in the middle of it, where the fakes say that they are.
async fn half(manager: &Manager, job: JobId) {
    let there = async {
        loop {
            let Progress { done, total } = manager.job(&caller(), job).await.unwrap().progress;
            if total > 0 && done * 2 == total {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), there).await.expect("nobody is told how far it is");
}

/// Not before the last of its copies has opened its memory, and from then on whatever their guests do.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_may_go_while_its_forks_are_told_who_they_are() {
    let (site, manager, Vm { id: vm, .. }) = Site::with_web(&[1], true).await;
    let base = snap(&manager, vm, "base", SnapshotKind::DiskAndMemory).await;
    let mut forks = clone_of(CloneSource::Snapshot { snapshot: base }, "fork-{n}", CloneMemory::Yes);
    forks.count = Some(2);
    site.fake.faults().hang("start", 2, When::Before);
    let made = manager.clone_vm(&call(), forks.clone()).await.unwrap();
    // After that of the machine itself.
    reached_again(&site, "start", 3).await;
    let error = refused(manager.delete_snapshot(&call(), base, SnapshotDelete::default()).await);
    assert_eq!(error.kind, ErrorKind::Busy, "{error}");
    assert!(error.message.contains(&made.id.to_string()), "{error}");
    site.fake.faults().clear();
    assert_eq!(ended(&manager, made.id).await.state, JobState::Failed);

    site.fake.faults().hang("fix_identity", 1, When::Before);
    let made = manager.clone_vm(&call(), forks).await.unwrap();
    reached(&site, "fix_identity").await;
    done(&manager, job(manager.delete_snapshot(&call(), base, SnapshotDelete::default()).await.unwrap())).await;
    assert!(!manager.job(&caller(), made.id).await.unwrap().state.ended(), "this is no test");
    assert_eq!(site.look().await["memory"], serde_json::json!([]), "its memory is still there");
    site.fake.faults().clear();
    done(&manager, made.id).await;
    for fork in made.vms {
        assert_eq!(state(&manager, fork).await, VmState::At { rest: Rest::Running });
        site.fake.check(fork).unwrap();
    }
    manager.stop().await;
}
