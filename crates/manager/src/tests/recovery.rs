//! Deaths: of the manager, of the agent at every call, of machines; and full arrays.

use std::time::Duration;

use keyframe_agent::array::fake::When;
use keyframe_agent::hypervisor::fake::When as MachineWhen;
use keyframe_model::agent::{Fault, FaultKind, PauseReason, Power, VmId};
use keyframe_model::{JobState, Rest, SnapshotKind, Vm, VmState};

use super::site::{LIMITS, Site, call, caller, done, ended, job, make, refused, snap, wish};
use crate::job::Limits;
use crate::request::{Apply, HostStatus, SnapshotCreate, StartRequest, StopRequest, VmDelete};
use crate::{Config, ErrorKind, Manager};

/// Waits until the machine is seen to do that.
async fn seen(manager: &Manager, vm: VmId, rest: Rest) {
    let mut events = manager.events(&caller(), Some(0)).await.unwrap();
    let wait = async {
        while manager.vm(&caller(), vm).await.unwrap().vm.state != (VmState::At { rest }) {
            events.next().await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(30), wait).await.expect("the machine is never seen to do that");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manager_that_dies_is_followed_by_one_that_goes_on() {
    let (site, manager, Vm { id: vm, .. }) = Site::with_web(&[1], true).await;
    site.with_agent(|agent| agent.array("fake").faults().slow(Duration::from_millis(200)));
    let snapshot = manager.create_snapshot(&call(), vm, SnapshotCreate::default()).await.unwrap();
    manager.stop().await;
    drop(manager);
    let manager = site.manager().await;
    done(&manager, snapshot.id).await;
    let taken = manager.snapshot(&caller(), snapshot.snapshot.unwrap(), false).await.unwrap();
    assert!(taken.current && taken.snapshot.report.is_some());
    manager.stop().await;
}

/// The agent dies at a call of its array, and is started again: the job goes on to its end.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_dies_is_waited_for() {
    for (call_name, when) in
        [("snapshot", When::Before), ("snapshot", When::After), ("revert", When::Before), ("revert", When::After)]
    {
        let site = Site::new(false).await;
        let manager = site.manager().await;
        let vm = make(&manager, wish(&site, "web", &[1, 2], true)).await.vm;
        let one = snap(&manager, vm.id, "one", SnapshotKind::Disk).await;
        site.with_agent(|agent| agent.array("fake").faults().die(call_name, 1, when));
        let applied = job(manager.apply_snapshot(&call(), one, Apply::default()).await.unwrap());
        let dead = async {
            while !site.with_agent(|agent| agent.life().ended()) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), dead).await.expect("the agent does not die");
        site.restart_agent();
        let view = ended(&manager, applied).await;
        assert_eq!(view.state, JobState::Succeeded, "{call_name} {when:?}: {:?}", view.error);
        let now = manager.vm(&caller(), vm.id).await.unwrap().vm;
        assert_eq!((now.state, now.current), (VmState::At { rest: Rest::Stopped }, Some(one)));
        for disk in &now.hardware.disks {
            assert_eq!(site.content(&disk.volume, None), site.content(&disk.volume, Some(one)));
        }
        manager.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_machines_do_by_themselves_is_seen() {
    let (site, manager, Vm { id: vm, .. }) = Site::with_web(&[1], true).await;
    site.fake.stumble(vm, PauseReason::NoSpace).unwrap();
    seen(&manager, vm, Rest::Paused { reason: PauseReason::NoSpace }).await;
    done(&manager, manager.resume_vm(&call(), vm).await.unwrap().id).await;
    site.fake.kill(vm).unwrap();
    seen(&manager, vm, Rest::Stopped).await;
    let notices = manager.vm(&caller(), vm).await.unwrap().notices;
    assert!(
        notices.iter().any(|notice| notice.starts_with("its process ended although nobody stopped it")),
        "{notices:?}"
    );
    manager.stop().await;

    // And what they did while nobody looked.
    let manager = site.manager().await;
    done(&manager, manager.start_vm(&call(), vm, Default::default()).await.unwrap().id).await;
    assert_eq!(manager.vm(&caller(), vm).await.unwrap().vm.notice, None, "that was before");
    manager.stop().await;
    site.fake.kill(vm).unwrap();
    let manager = site.manager().await;
    seen(&manager, vm, Rest::Stopped).await;
    manager.stop().await;
}

/// Whatever the host answers: what counts is what the guest does a moment later.
#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_a_disk_stops_again_at_once_is_not_resumed() {
    let full = "stands still again, paused: no space; delete snapshots or machines, or grow the pool with";
    let broken = "stands still again, paused: disk error; a disk fails";
    for (reason, kind, says) in
        [(PauseReason::NoSpace, ErrorKind::NoSpace, full), (PauseReason::IoError, ErrorKind::State, broken)]
    {
        let (site, manager, Vm { id: vm, .. }) = Site::with_web(&[1], true).await;
        site.fake.stumble(vm, reason).unwrap();
        seen(&manager, vm, Rest::Paused { reason }).await;
        let resumed = manager.resume_vm(&call(), vm).await.unwrap();
        while site.fake.machine(vm).unwrap().power != Power::Running {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        site.fake.stumble(vm, reason).unwrap();
        let error = ended(&manager, resumed.id).await.error.expect("it is said to go on");
        assert_eq!(error.kind, kind, "{}", error.message);
        assert!(error.message.contains(says), "{}", error.message);
        assert_eq!(manager.vm(&caller(), vm).await.unwrap().vm.state, VmState::At { rest: Rest::Paused { reason } });
        assert!(!site.fake.faults().calls().iter().any(|call| call == "pause"), "its host is to try no more");
        done(&manager, manager.resume_vm(&call(), vm).await.unwrap().id).await;
        assert_eq!(manager.vm(&caller(), vm).await.unwrap().vm.state, VmState::At { rest: Rest::Running });
        manager.stop().await;
    }
}

/// In the events and on the machine, in the host's words, with names for what has one.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_host_complains_of_is_told() {
    let (site, manager, vm) = Site::with_web(&[1], true).await;
    let mut events = manager.events(&caller(), None).await.unwrap();
    let disk = &vm.hardware.disks[0];
    let said =
        format!("machine {}: a page is not as it was stored, nor is volume {}; see /x/{}", vm.id, disk.volume, vm.id);
    let words =
        format!("machine web: a page is not as it was stored, nor is volume {} of web; see /x/{}", disk.name, vm.id);
    // Nobody hears it who does not listen yet.
    let told = async {
        loop {
            site.fake.complain(vm.id, Fault::new(FaultKind::Corrupt, said.clone()));
            let heard = tokio::time::timeout(Duration::from_millis(200), events.next()).await;
            let Ok(heard) = heard else { continue };
            let heard = heard.unwrap();
            if let Some(event) = heard.into_iter().find(|event| event.text.is_some()) {
                return event;
            }
        }
    };
    let event = tokio::time::timeout(Duration::from_secs(30), told).await.expect("nobody hears of it");
    assert_eq!((event.text, event.id), (Some(words.clone()), vm.id.to_string()));
    let notices = manager.vm(&caller(), vm.id).await.unwrap().notices;
    assert!(notices.contains(&words), "{notices:?}");
    assert_eq!(manager.vm(&caller(), vm.id).await.unwrap().vm.state, vm.state);
    manager.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_array_leaves_everything_as_it_was() {
    let (site, manager, Vm { id: vm, .. }) = Site::with_web(&[1], false).await;
    let before = site.look().await;
    site.with_agent(|agent| agent.array("fake").faults().full(true));
    let snapshot = manager.create_snapshot(&call(), vm, SnapshotCreate::default()).await.unwrap();
    let view = ended(&manager, snapshot.id).await;
    assert_eq!(view.error.unwrap().kind, ErrorKind::NoSpace);
    let clone =
        super::scenario::clone_of(crate::request::CloneSource::Vm { vm }, "two", crate::request::CloneMemory::No);
    let clone = manager.clone_vm(&call(), clone).await.unwrap();
    assert_eq!(ended(&manager, clone.id).await.error.unwrap().kind, ErrorKind::NoSpace);
    assert_eq!(site.look().await, before);
    assert_eq!(manager.vm(&caller(), vm).await.unwrap().vm.state, VmState::At { rest: Rest::Stopped });
    assert!(manager.tree(&caller(), vm, false).await.unwrap().nodes.is_empty());
    manager.stop().await;
}

/// With the memory kept the guest goes on where it was; without it the guest starts anew, and that is said.
#[tokio::test(flavor = "multi_thread")]
async fn an_apply_that_fails_goes_back_to_the_guest() {
    for keep_memory in [true, false] {
        let site = Site::new(true).await;
        let manager = site.manager().await;
        let vm = make(&manager, wish(&site, "web", &[1, 2], true)).await.vm;
        let one = snap(&manager, vm.id, "one", SnapshotKind::Disk).await;
        site.fake.step(vm.id, 20).unwrap();
        let before = site.fake.machine(vm.id).unwrap().guest;
        site.with_agent(|agent| agent.array("fake").faults().fail("revert", 1, When::Before, FaultKind::Internal));
        let wish = Apply { keep_memory, ..Apply::default() };
        let view = ended(&manager, job(manager.apply_snapshot(&call(), one, wish).await.unwrap())).await;
        assert_eq!(view.state, JobState::Failed);
        let now = manager.vm(&caller(), vm.id).await.unwrap();
        assert_eq!(now.vm.state, VmState::At { rest: Rest::Running });
        let guest = site.fake.machine(vm.id).unwrap().guest;
        assert_eq!(guest.count >= before.count, keep_memory, "{guest:?} after {before:?}");
        let says = "the guest was started anew: one could not be applied after the guest had been stopped, and its memory \
                    had not been kept";
        assert_eq!(view.notes.contains(&says.to_owned()), !keep_memory, "{:?}", view.notes);
        assert_eq!(now.notices.contains(&says.to_owned()), !keep_memory, "{:?}", now.notices);
        let nodes = manager.tree(&caller(), vm.id, false).await.unwrap().nodes;
        assert_eq!(nodes.len(), 1, "of the instant for the way back nothing is left");
        manager.stop().await;
    }
}

/// Of two disks one is taken back, and neither way leads on: the machine is in error and stays so, the state before is kept,
/// and applying it heals.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_in_error_is_healed_by_an_apply() {
    let site = Site::new(false).await;
    let jobs = Limits { jobs: 1, patience: Duration::from_secs(1), ..LIMITS };
    let manager = Manager::start(Config { jobs, ..site.config() }).await.unwrap();
    let vm = make(&manager, wish(&site, "web", &[1, 2], false)).await.vm;
    let before: Vec<u64> = vm.hardware.disks.iter().map(|disk| site.content(&disk.volume, None)).collect();
    let one = snap(&manager, vm.id, "one", SnapshotKind::Disk).await;
    site.with_agent(|agent| {
        for nth in 2..10_000 {
            agent.array("fake").faults().fail("revert", nth, When::Before, FaultKind::Internal);
        }
    });
    let applied = job(manager.apply_snapshot(&call(), one, Apply::default()).await.unwrap());
    let view = ended(&manager, applied).await;
    assert_eq!(view.state, JobState::Failed);
    assert!(!view.notes.is_empty(), "it says what it left behind");
    let broken = manager.vm(&caller(), vm.id).await.unwrap();
    let VmState::Error { trouble } = &broken.vm.state else { panic!("{:?}", broken.vm.state) };
    // A stop ends what runs and makes it no machine that can be started; nor does a stop or a deletion that is called off.
    done(&manager, manager.stop_vm(&call(), vm.id, StopRequest::default()).await.unwrap().id).await;
    let other = make(&manager, wish(&site, "other", &[1], false)).await.vm.id;
    site.fake.faults().hang("start", 1, MachineWhen::Before);
    let hangs = manager.start_vm(&call(), other, StartRequest::default()).await.unwrap();
    for delete in [false, true] {
        let queued = if delete {
            job(manager.delete_vm(&call(), vm.id, VmDelete::default()).await.unwrap())
        } else {
            manager.stop_vm(&call(), vm.id, StopRequest::default()).await.unwrap().id
        };
        manager.cancel_job(&call(), queued).await.unwrap();
        assert_eq!(ended(&manager, queued).await.state, JobState::Cancelled);
        assert_eq!(manager.vm(&caller(), vm.id).await.unwrap().vm.state, broken.vm.state);
    }
    manager.cancel_job(&call(), hangs.id).await.unwrap();
    site.fake.faults().clear();
    ended(&manager, hangs.id).await;
    let says = format!("cannot start web: it is in error ({}); apply a snapshot to it, or delete it", trouble.reason);
    assert_eq!(refused(manager.start_vm(&call(), vm.id, StartRequest::default()).await).message, says);
    let kept = manager.find_snapshot(&caller(), Some(vm.id), "before-one-1").await.unwrap();
    site.with_agent(|agent| agent.array("fake").faults().clear());
    super::site::apply(&manager, kept, Apply { discard_current: true, ..Apply::default() }).await;
    let now = manager.vm(&caller(), vm.id).await.unwrap().vm;
    assert_eq!(now.state, VmState::At { rest: Rest::Stopped });
    let after: Vec<u64> = now.hardware.disks.iter().map(|disk| site.content(&disk.volume, None)).collect();
    assert_eq!(after, before);
    manager.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_away_is_said_to_be() {
    let site = Site::new(false).await;
    let manager = site.manager().await;
    assert_eq!(manager.list_hosts(&caller()).await.unwrap()[0].status, HostStatus::Up);
    manager.stop().await;
}
