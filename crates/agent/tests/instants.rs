//! Instants of a machine with one disk on each of two arrays: they are of one moment, whole or not there at all, whatever
//! fails and whenever the agent dies.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use common::export::Export;
use common::stub::Stub;
use common::{BLOCK, pair, start, start_with_pair, volume, wish};
use keyframe_agent::array::Array;
use keyframe_agent::array::fake::When;
use keyframe_agent::testing::TestAgent;
use keyframe_agent_api::{
    CutMethod, FaultKind, GuestAnswer, InstantReport, MemoryState, Micros, PauseReason, Power, Quiesce, SnapshotId,
    TakeInstant, VmId, WorkProgress,
};

fn take(agent: &TestAgent, snapshot: SnapshotId, wish: &TakeInstant) -> keyframe_agent::Result<InstantReport> {
    agent.agent().machines.take_instant(snapshot, wish)
}

fn kind<T>(result: keyframe_agent::Result<T>) -> Option<FaultKind> {
    result.err().map(|fault| fault.kind)
}

/// Nothing of an instant is left, neither on the arrays nor here.
fn assert_nothing(agent: &TestAgent, dir: &Path, snapshot: SnapshotId, when: &str) {
    let probe = agent.agent().instants.probe(snapshot, &pair()).unwrap();
    assert_eq!((probe.volumes, probe.memory, probe.report), (vec![], MemoryState::Absent, None), "{when}");
    for folder in ["instants", "memory"] {
        let left: Vec<_> = std::fs::read_dir(dir.join(folder)).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(left.is_empty(), "{when}: {left:?}");
    }
}

/// Writes a number to `a` and, when that is answered, to `b`: nobody may ever see `b` ahead of `a`.
struct Writer<'a> {
    round: &'a AtomicU64,
    stop: &'a AtomicBool,
}

impl Writer<'_> {
    fn run(&self, socket: &Path) {
        let mut a = Export::connect(socket, "fake/a").unwrap();
        let mut b = Export::connect(socket, "fake2/b").unwrap();
        while !self.stop.load(Ordering::SeqCst) {
            let round = self.round.fetch_add(1, Ordering::SeqCst) + 1;
            a.number(round).unwrap();
            b.number(round).unwrap();
        }
    }

    fn wait_for(&self, more: u64) {
        let now = self.round.load(Ordering::SeqCst);
        while self.round.load(Ordering::SeqCst) < now + more {
            std::thread::yield_now();
        }
    }
}

/// The number in a snapshot.
fn number(agent: &TestAgent, array: &str, name: &str, snapshot: SnapshotId) -> u64 {
    let content = agent.array(array).content(name, Some(snapshot)).unwrap();
    let (number, rest) = content[..BLOCK].split_at(8);
    assert!(rest.chunks(8).all(|other| other == number), "a torn block");
    u64::from_be_bytes(number.try_into().unwrap())
}

/// Runs `body` beside a writer.
fn beside_writer(agent: &TestAgent, body: impl FnOnce(&Writer<'_>)) {
    let (round, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let writer = Writer { round: &round, stop: &stop };
    let socket = agent.nbd_socket();
    std::thread::scope(|scope| {
        scope.spawn(|| writer.run(&socket));
        writer.wait_for(2);
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| body(&writer)));
        stop.store(true, Ordering::SeqCst);
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    });
}

#[test]
fn disks_on_two_arrays_are_of_one_instant() {
    let dir = tempfile::tempdir().unwrap();
    let stub = Arc::new(Stub::default());
    let agent = start_with_pair(dir.path(), &stub);
    let vm = stub.running();
    // One array is much slower than the other, which shows any write that gets in between.
    agent.array("fake2").faults().slow(Duration::from_millis(2));
    beside_writer(&agent, |writer| {
        // One that stands still may be let go on at any time.
        for (memory, power) in
            [(false, Power::Running), (true, Power::Running), (false, Power::Paused { reason: PauseReason::NoSpace })]
        {
            stub.set(vm, power);
            for _ in 0..15 {
                let id = SnapshotId::new();
                let report = take(&agent, id, &wish(vm, memory)).unwrap();
                let method = if memory { CutMethod::AtResume } else { CutMethod::WritesHeld };
                assert_eq!(report.method, method);
                assert_eq!(report.memory.is_some(), memory);
                assert!(report.held > Micros(0) || memory, "{report:?}");
                let (a, b) = (number(&agent, "fake", "a", id), number(&agent, "fake2", "b", id));
                assert!(a == b || a == b + 1, "a {a}, b {b}");
                writer.wait_for(1);
            }
        }
    });
    agent.stop().unwrap();
}

/// Without the gates the same check fails, so it can.
#[test]
fn without_gates_the_disks_are_torn() {
    let dir = tempfile::tempdir().unwrap();
    let stub = Arc::new(Stub::default());
    let agent = start_with_pair(dir.path(), &stub);
    beside_writer(&agent, |writer| {
        let id = SnapshotId::new();
        agent.array("fake").snapshot(&["a"], id).unwrap();
        writer.wait_for(3);
        agent.array("fake2").snapshot(&["b"], id).unwrap();
        let (a, b) = (number(&agent, "fake", "a", id), number(&agent, "fake2", "b", id));
        assert!(b > a, "the control saw nothing: a {a}, b {b}");
    });
}

#[test]
fn machines_that_are_off_need_no_gate() {
    let dir = tempfile::tempdir().unwrap();
    let stub = Arc::new(Stub::default());
    let agent = start_with_pair(dir.path(), &stub);
    let paused = VmId::new();
    stub.set(paused, Power::Paused { reason: PauseReason::Asked });
    for (vm, method) in [(VmId::new(), CutMethod::AtRest), (paused, CutMethod::WritesHeld)] {
        let report = take(&agent, SnapshotId::new(), &wish(vm, false)).unwrap();
        assert_eq!((report.method, report.guest), (method, GuestAnswer::NotAsked));
    }
    assert_eq!(kind(take(&agent, SnapshotId::new(), &wish(VmId::new(), true))), Some(FaultKind::Conflict));
    let required = TakeInstant { quiesce: Quiesce::Required, ..wish(paused, false) };
    assert_eq!(kind(take(&agent, SnapshotId::new(), &required)), Some(FaultKind::Guest));
}

#[test]
fn a_repeated_call_gives_the_stored_report() {
    let dir = tempfile::tempdir().unwrap();
    let stub = Arc::new(Stub::default());
    let agent = start_with_pair(dir.path(), &stub);
    let (vm, id) = (stub.running(), SnapshotId::new());
    let first = take(&agent, id, &wish(vm, true)).unwrap();
    assert_eq!(take(&agent, id, &wish(vm, true)).unwrap(), first);
    agent.crash();
    let agent = start(dir.path(), &stub);
    assert_eq!(take(&agent, id, &wish(vm, true)).unwrap(), first);
    assert_eq!(stub.captures.load(Ordering::SeqCst), 1);
    let probe = agent.agent().instants.probe(id, &pair()).unwrap();
    assert_eq!((probe.volumes, probe.report), (pair(), Some(first)));
    assert!(matches!(probe.memory, MemoryState::Ready(_)));
    assert_eq!(kind(take(&agent, id, &wish(vm, false))), Some(FaultKind::Exists));
    assert_eq!(kind(take(&agent, id, &wish(VmId::new(), true))), Some(FaultKind::Exists));
    for _ in 0..2 {
        agent.agent().instants.delete(id, &pair()).unwrap();
        assert_nothing(&agent, dir.path(), id, "deleted");
    }
}

/// The calls to the two arrays that a good instant makes.
fn calls_of_one(memory: bool) -> [usize; 2] {
    let dir = tempfile::tempdir().unwrap();
    let stub = Arc::new(Stub::default());
    let agent = start_with_pair(dir.path(), &stub);
    let count = |agent: &TestAgent| ["fake", "fake2"].map(|array| agent.array(array).faults().calls().len());
    let before = count(&agent);
    take(&agent, SnapshotId::new(), &wish(stub.running(), memory)).unwrap();
    let after = count(&agent);
    [after[0] - before[0], after[1] - before[1]]
}

/// Calls `body` for each point at which one of the arrays can go wrong.
fn at_each_fault(memory: bool, mut body: impl FnMut(&str, u32, When)) {
    let calls = calls_of_one(memory);
    assert!(calls.iter().all(|calls| *calls >= 2), "{calls:?}");
    for (array, calls) in ["fake", "fake2"].into_iter().zip(calls) {
        for nth in 1..=calls as u32 {
            for when in [When::Before, When::After] {
                body(array, nth, when);
            }
        }
    }
}

#[test]
fn a_fault_at_any_call_leaves_nothing() {
    for memory in [false, true] {
        at_each_fault(memory, |array, nth, when| {
            let dir = tempfile::tempdir().unwrap();
            let stub = Arc::new(Stub::default());
            let agent = start_with_pair(dir.path(), &stub);
            let (vm, id) = (stub.running(), SnapshotId::new());
            let text = format!("memory {memory}, {array} call {nth} {when:?}");
            agent.array(array).faults().fail("*", nth, when, FaultKind::Internal);
            assert_eq!(kind(take(&agent, id, &wish(vm, memory))), Some(FaultKind::Internal), "{text}");
            assert_nothing(&agent, dir.path(), id, &text);
            take(&agent, id, &wish(vm, memory)).unwrap();
        });
    }
}

#[test]
fn an_agent_that_dies_at_any_call_leaves_no_mixture() {
    for memory in [false, true] {
        at_each_fault(memory, |array, nth, when| {
            let dir = tempfile::tempdir().unwrap();
            let stub = Arc::new(Stub::default());
            let agent = start_with_pair(dir.path(), &stub);
            let (vm, id) = (stub.running(), SnapshotId::new());
            let text = format!("memory {memory}, {array} call {nth} {when:?}");
            let fill = |agent: &TestAgent, value: u8| {
                Export::connect(&agent.nbd_socket(), "fake/a").unwrap().fill(0, value).unwrap();
                Export::connect(&agent.nbd_socket(), "fake2/b").unwrap().fill(0, value).unwrap();
            };
            fill(&agent, 1);
            agent.array(array).faults().die("*", nth, when);
            assert_eq!(kind(take(&agent, id, &wish(vm, memory))), Some(FaultKind::Unreachable), "{text}");
            agent.crash();
            let agent = start(dir.path(), &stub);
            fill(&agent, 2);
            take(&agent, id, &wish(vm, memory)).unwrap();
            let found = pair().map_content(&agent, id);
            assert_eq!(found, [2, 2], "{text}");
            agent.agent().instants.delete(id, &pair()).unwrap();
            assert_nothing(&agent, dir.path(), id, &text);
        });
    }
}

trait Contents {
    /// The first byte of each volume at a snapshot.
    fn map_content(&self, agent: &TestAgent, id: SnapshotId) -> Vec<u8>;
}

impl Contents for Vec<keyframe_agent_api::VolumeRef> {
    fn map_content(&self, agent: &TestAgent, id: SnapshotId) -> Vec<u8> {
        let first =
            |of: &keyframe_agent_api::VolumeRef| agent.array(&of.array).content(&of.volume, Some(id)).unwrap()[0];
        self.iter().map(first).collect()
    }
}

#[test]
fn a_full_array_takes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let stub = Arc::new(Stub::default());
    let agent = start_with_pair(dir.path(), &stub);
    let (vm, id) = (stub.running(), SnapshotId::new());
    for memory in [false, true] {
        agent.array("fake2").faults().full(true);
        assert_eq!(kind(take(&agent, id, &wish(vm, memory))), Some(FaultKind::NoSpace));
        assert_nothing(&agent, dir.path(), id, "full");
        agent.array("fake2").faults().full(false);
    }
    take(&agent, id, &wish(vm, true)).unwrap();
}

#[test]
fn writes_wait_for_no_longer_than_the_deadline() {
    let dir = tempfile::tempdir().unwrap();
    let stub = Arc::new(Stub::default());
    let agent = start_with_pair(dir.path(), &stub);
    let (vm, id) = (stub.running(), SnapshotId::new());
    let short = TakeInstant { deadline: Micros(50_000), ..wish(vm, false) };
    beside_writer(&agent, |writer| {
        agent.array("fake2").faults().slow(Duration::from_millis(400));
        assert_eq!(kind(take(&agent, id, &short)), Some(FaultKind::Deadline));
        agent.array("fake2").faults().slow(Duration::ZERO);
        writer.wait_for(1);
        assert_nothing(&agent, dir.path(), id, "late");
        take(&agent, id, &short).unwrap();
    });
}

#[test]
fn what_the_guest_answered_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let stub = Arc::new(Stub::default());
    let agent = start_with_pair(dir.path(), &stub);
    let vm = stub.running();
    let quiesced = |quiesce| {
        let id = SnapshotId::new();
        let taken = take(&agent, id, &TakeInstant { quiesce, ..wish(vm, false) });
        assert!(!stub.frozen.load(Ordering::SeqCst), "the guest is left frozen");
        if taken.is_err() {
            assert_eq!(agent.agent().instants.probe(id, &pair()).unwrap().volumes, []);
        }
        taken
    };
    let answer = |result: keyframe_agent::Result<InstantReport>| result.unwrap().guest;
    let frozen = GuestAnswer::Frozen { file_systems: 2 };
    assert_eq!(answer(quiesced(Quiesce::Required)), frozen);
    assert_eq!(answer(quiesced(Quiesce::Preferred)), frozen);
    assert_eq!(answer(quiesced(Quiesce::No)), GuestAnswer::NotAsked);
    *stub.freezes.lock().unwrap() = Some(FaultKind::Deadline);
    let silent = GuestAnswer::Failed { reason: "the guest agent is silent".into() };
    assert_eq!(answer(quiesced(Quiesce::Preferred)), silent);
    assert_eq!(kind(quiesced(Quiesce::Required)), Some(FaultKind::Guest));
    *stub.freezes.lock().unwrap() = None;
    *stub.thaws.lock().unwrap() = Some(FaultKind::Guest);
    let lied = GuestAnswer::Failed { reason: "the guest had thawed itself".into() };
    assert_eq!(answer(quiesced(Quiesce::Preferred)), lied);
    assert_eq!(kind(quiesced(Quiesce::Required)), Some(FaultKind::Guest));
    *stub.thaws.lock().unwrap() = None;
    agent.array("fake").faults().fail("snapshot", 1, When::Before, FaultKind::Internal);
    assert_eq!(kind(quiesced(Quiesce::Required)), Some(FaultKind::Internal), "thawed all the same");
    let with_memory = TakeInstant { quiesce: Quiesce::Required, ..wish(vm, true) };
    assert_eq!(kind(take(&agent, SnapshotId::new(), &with_memory)), Some(FaultKind::Unsupported));
}

#[test]
fn a_guest_that_writes_on_is_not_believed_when_it_says_that_it_is_frozen() {
    let dir = tempfile::tempdir().unwrap();
    let stub = Arc::new(Stub::default());
    let agent = start_with_pair(dir.path(), &stub);
    let vm = stub.running();
    let wish = |quiesce| TakeInstant { quiesce, deadline: Micros(500_000), ..wish(vm, false) };
    let quiesced = |quiesce| take(&agent, SnapshotId::new(), &wish(quiesce));
    beside_writer(&agent, |writer| {
        assert_eq!(kind(quiesced(Quiesce::Required)), Some(FaultKind::Guest));
        assert!(!stub.frozen.load(Ordering::SeqCst), "the guest is left frozen");
        writer.wait_for(1);
        let GuestAnswer::Failed { reason } = quiesced(Quiesce::Preferred).unwrap().guest else { panic!("believed") };
        assert!(reason.contains("its disks are written to"), "{reason}");
        assert!(!stub.frozen.load(Ordering::SeqCst), "the guest is left frozen");
        writer.wait_for(1);
    });
    assert_eq!(quiesced(Quiesce::Required).unwrap().guest, GuestAnswer::Frozen { file_systems: 2 });
}

#[test]
fn a_long_instant_can_be_cancelled_and_excludes_others() {
    let dir = tempfile::tempdir().unwrap();
    let stub = Arc::new(Stub::default());
    let agent = start_with_pair(dir.path(), &stub);
    let (vm, id) = (stub.running(), SnapshotId::new());
    stub.endless.store(true, Ordering::SeqCst);
    std::thread::scope(|scope| {
        let long = scope.spawn(|| take(&agent, id, &wish(vm, true)));
        let state = || agent.agent().instants.memory_state(id);
        while !matches!(state(), MemoryState::Writing { .. }) {
            std::thread::yield_now();
        }
        assert_eq!(kind(take(&agent, SnapshotId::new(), &wish(vm, false))), Some(FaultKind::Busy));
        assert_eq!(kind(agent.agent().instants.delete(id, &pair())), Some(FaultKind::Busy));
        assert!(agent.agent().machines.status(vm).is_ok());
        agent.agent().instants.cancel(id);
        let fault = long.join().unwrap().unwrap_err();
        assert_eq!(fault.kind, FaultKind::Conflict, "{fault}");
        assert!(fault.message.contains("cancelled"), "{fault}");
    });
    assert_nothing(&agent, dir.path(), id, "cancelled");
    agent.agent().instants.cancel(id);
    stub.endless.store(false, Ordering::SeqCst);
    take(&agent, id, &wish(vm, true)).unwrap();
}

#[test]
fn nothing_else_happens_to_an_instant_that_is_compressed() {
    let dir = tempfile::tempdir().unwrap();
    let stub = Arc::new(Stub::default());
    let agent = start_with_pair(dir.path(), &stub);
    let (vm, id) = (stub.running(), SnapshotId::new());
    take(&agent, id, &wish(vm, true)).unwrap();
    let instants = &agent.agent().instants;
    stub.endless.store(true, Ordering::SeqCst);
    std::thread::scope(|scope| {
        let compressing = scope.spawn(|| instants.compress(id));
        while stub.compresses.load(Ordering::SeqCst) == 0 {
            std::thread::yield_now();
        }
        assert_eq!(kind(instants.delete(id, &pair())), Some(FaultKind::Busy));
        assert_eq!(kind(instants.compress(id)), Some(FaultKind::Busy));
        assert!(matches!(instants.memory_state(id), MemoryState::Ready(_)));
        assert_eq!(instants.progress(id), WorkProgress { done: 1, total: 4 });
        stub.endless.store(false, Ordering::SeqCst);
        assert!(compressing.join().unwrap().unwrap().compressed);
    });
    assert_eq!(instants.progress(id), WorkProgress::default(), "nothing is under way");
    stub.endless.store(true, Ordering::SeqCst);
    std::thread::scope(|scope| {
        let compressing = scope.spawn(|| instants.compress(id));
        while !compressing.is_finished() {
            instants.cancel(id);
        }
        assert_eq!(kind(compressing.join().unwrap()), Some(FaultKind::Conflict));
    });
    assert!(matches!(instants.memory_state(id), MemoryState::Ready(_)), "it is called off, and the image with it");
    instants.delete(id, &pair()).unwrap();
    assert_nothing(&agent, dir.path(), id, "deleted");
}

#[test]
fn images_without_a_report_go_when_the_agent_starts() {
    let dir = tempfile::tempdir().unwrap();
    let stub = Arc::new(Stub::default());
    let agent = start_with_pair(dir.path(), &stub);
    let (vm, id) = (stub.running(), SnapshotId::new());
    take(&agent, id, &wish(vm, true)).unwrap();
    agent.crash();
    let memory = dir.path().join("memory");
    let (orphan, kept) = (SnapshotId::new(), memory.join("notes.txt"));
    std::fs::write(memory.join(format!("{orphan}.kfm")), "whole").unwrap();
    for draft in ["kfm.partial", "kfm.17-4.partial"] {
        std::fs::write(memory.join(format!("{orphan}.{draft}")), "half").unwrap();
        std::fs::write(memory.join(format!("{id}.{draft}")), "half").unwrap();
    }
    std::fs::write(&kept, "mine").unwrap();
    let agent = start(dir.path(), &stub);
    assert_eq!(agent.agent().instants.memory_state(orphan), MemoryState::Absent);
    assert!(matches!(agent.agent().instants.memory_state(id), MemoryState::Ready(_)));
    let mut left: Vec<_> = std::fs::read_dir(&memory).unwrap().map(|entry| entry.unwrap().path()).collect();
    left.sort();
    assert_eq!(left, [memory.join(format!("{id}.kfm")), kept]);
}

#[test]
fn volumes_are_named_once_and_exist() {
    let dir = tempfile::tempdir().unwrap();
    let stub = Arc::new(Stub::default());
    let agent = start_with_pair(dir.path(), &stub);
    let vm = stub.running();
    let check = |volumes, expected| {
        let wish = TakeInstant { volumes, ..wish(vm, false) };
        assert_eq!(kind(take(&agent, SnapshotId::new(), &wish)), Some(expected));
    };
    check(vec![volume("fake", "a"), volume("fake", "a")], FaultKind::Invalid);
    check(vec![volume("tape", "a")], FaultKind::NotFound);
    check(vec![volume("fake", "../a")], FaultKind::Invalid);
    check(vec![volume("fake", "a"), volume("fake2", "nobody")], FaultKind::NotFound);
}
