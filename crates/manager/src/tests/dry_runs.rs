//! Dry runs: what they say stands in the way is what the call is refused for, and nothing when it would begin.

use keyframe_agent::array::fake::When as ArrayWhen;
use keyframe_agent::hypervisor::fake::When;
use keyframe_agent::testing::TestAgent;
use keyframe_model::agent::{Bytes, FaultKind, Generation, SnapshotId, VmId};
use keyframe_model::{SnapshotKind, Vm};

use super::site::{DISK, Site, call, caller, done, ended, job, refused, snap};
use crate::request::{
    Apply, ApplyPlanView, Call, DeletePlanView, DiskResize, Outcome, PlanView, SnapshotDelete, StartRequest, VmDelete,
};
use crate::{Manager, Result};

/// The four calls that have dry runs.
#[derive(Clone, Copy, Debug)]
enum Wish {
    Apply(SnapshotId),
    Delete(SnapshotId),
    DeleteAll(VmId),
    DeleteVm(VmId),
}

async fn ask(manager: &Manager, call: &Call, wish: Wish, dry_run: bool) -> Result<Outcome<PlanView>> {
    match wish {
        Wish::Apply(id) => manager.apply_snapshot(call, id, Apply { dry_run, ..Apply::default() }).await,
        Wish::Delete(id) => manager.delete_snapshot(call, id, SnapshotDelete { dry_run, subtree: false }).await,
        Wish::DeleteAll(vm) => manager.delete_snapshots(call, vm, dry_run).await,
        Wish::DeleteVm(vm) => manager.delete_vm(call, vm, VmDelete { dry_run, force: true }).await,
    }
}

async fn obstacles(manager: &Manager, call: &Call, wish: Wish) -> Vec<String> {
    match ask(manager, call, wish, true).await.unwrap() {
        Outcome::Done(PlanView::Apply(plan)) => plan.obstacles,
        Outcome::Done(PlanView::Delete(plan)) => plan.obstacles,
        Outcome::Job(job) => panic!("a dry run orders a job: {job:?}"),
    }
}

/// The call is refused in the words that its dry run says first.
async fn both_refuse(manager: &Manager, call: &Call, wishes: &[Wish]) {
    for &wish in wishes {
        let dry = obstacles(manager, call, wish).await;
        let says = refused(ask(manager, call, wish, false).await).message;
        assert_eq!(dry.first(), Some(&says), "{wish:?}: {dry:?}");
    }
}

async fn deletion(manager: &Manager, snapshot: SnapshotId, subtree: bool) -> DeletePlanView {
    match manager.delete_snapshot(&call(), snapshot, SnapshotDelete { subtree, dry_run: true }).await.unwrap() {
        Outcome::Done(PlanView::Delete(plan)) => plan,
        other => panic!("this is no plan of a deletion: {other:?}"),
    }
}

async fn application(manager: &Manager, snapshot: SnapshotId) -> ApplyPlanView {
    match manager.apply_snapshot(&call(), snapshot, Apply { dry_run: true, ..Apply::default() }).await.unwrap() {
        Outcome::Done(PlanView::Apply(plan)) => plan,
        other => panic!("this is no plan of an apply: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_holds_what_is_wanted_is_an_obstacle() {
    let (site, manager, Vm { id: vm, .. }) = Site::with_web(&[1], true).await;
    let one = snap(&manager, vm, "one", SnapshotKind::DiskAndMemory).await;
    let two = snap(&manager, vm, "two", SnapshotKind::Disk).await;
    let all = [Wish::Apply(two), Wish::Delete(one), Wish::Delete(two), Wish::DeleteAll(vm), Wish::DeleteVm(vm)];

    // One is being verified: it is not deleted meanwhile, and applied it can be.
    site.fake.faults().hang("verify", 1, When::Before);
    let verification = manager.verify_snapshot(&call(), one).await.unwrap();
    both_refuse(&manager, &call(), &[Wish::Delete(one), Wish::DeleteAll(vm), Wish::DeleteVm(vm)]).await;
    for free in [Wish::Apply(one), Wish::Delete(two)] {
        assert_eq!(obstacles(&manager, &call(), free).await, [""; 0], "{free:?}");
    }
    manager.cancel_job(&call(), verification.id).await.unwrap();
    ended(&manager, verification.id).await;
    site.fake.faults().clear();

    // One is being deleted.
    for nth in 1..1000 {
        let fail = |agent: &TestAgent| {
            agent.array("fake").faults().fail("delete-snapshot", nth, ArrayWhen::Before, FaultKind::Busy);
        };
        site.with_agent(fail);
    }
    let doomed = job(ask(&manager, &call(), Wish::Delete(one), false).await.unwrap());
    both_refuse(&manager, &call(), &all).await;
    let dry = obstacles(&manager, &call(), Wish::Apply(two)).await;
    assert_eq!(dry, [format!("the snapshot tree of web is being used by job {doomed}; wait for it")], "said once");
    assert!(!manager.job(&caller(), doomed).await.unwrap().state.ended(), "this is no test");
    site.with_agent(|agent| agent.array("fake").faults().clear());
    done(&manager, doomed).await;

    // They have changed since the caller looked.
    let stale = Call { expected: Some(Generation(9999)), ..call() };
    both_refuse(&manager, &stale, &[Wish::Apply(two), Wish::Delete(two), Wish::DeleteVm(vm)]).await;
    manager.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_is_being_started_is_no_obstacle_to_a_deletion() {
    let (site, manager, Vm { id: vm, .. }) = Site::with_web(&[1], false).await;
    let one = snap(&manager, vm, "one", SnapshotKind::Disk).await;
    site.fake.faults().hang("start", 1, When::Before);
    let started = manager.start_vm(&call(), vm, StartRequest::default()).await.unwrap();
    both_refuse(&manager, &call(), &[Wish::Apply(one), Wish::DeleteVm(vm)]).await;
    assert_eq!(obstacles(&manager, &call(), Wish::Delete(one)).await, [""; 0]);
    assert_eq!(obstacles(&manager, &call(), Wish::DeleteAll(vm)).await, [""; 0]);
    let deleted = job(ask(&manager, &call(), Wish::Delete(one), false).await.unwrap());
    let still = !manager.job(&caller(), started.id).await.unwrap().state.ended();
    site.fake.faults().clear();
    assert!(still, "this is no test");
    done(&manager, deleted).await;
    ended(&manager, started.id).await;
    manager.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_state_descends_from_afterwards_and_sizes_of_disks_are_said() {
    let (_site, manager, vm) = Site::with_web(&[1], false).await;
    let root = snap(&manager, vm.id, "root", SnapshotKind::Disk).await;
    let leaf = snap(&manager, vm.id, "leaf", SnapshotKind::Disk).await;
    let current = |plan: DeletePlanView| (plan.current_changes, plan.current.map(|to| to.name.to_string()));
    assert_eq!(current(deletion(&manager, leaf, false).await), (true, Some("root".to_owned())));
    assert_eq!(current(deletion(&manager, root, false).await), (false, None));
    assert_eq!(current(deletion(&manager, root, true).await), (true, None));

    assert_eq!(application(&manager, leaf).await.hardware, [""; 0]);
    let larger = DiskResize { size: Bytes(2 * DISK.0), shrink: false };
    let resized = manager.resize_disk(&call(), vm.id, vm.hardware.disks[0].id, larger).await.unwrap();
    done(&manager, resized.id).await;
    assert_eq!(application(&manager, leaf).await.hardware, ["65536 bytes of disk disk0 instead of 131072"]);
    done(&manager, job(ask(&manager, &call(), Wish::Apply(leaf), false).await.unwrap())).await;
    assert_eq!(manager.vm(&caller(), vm.id).await.unwrap().vm.hardware.disks[0].size, DISK);
    manager.stop().await;
}
