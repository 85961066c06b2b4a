//! A machine that is given up keeps its memory, whether or not the host has room for another one beside it, and whenever the
//! agent dies.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use common::{BLOCK, volume};
use keyframe_agent::array::Array;
use keyframe_agent::hypervisor::fake::{Fake, FakeOptions, Memory, When};
use keyframe_agent::testing::{TestAgent, TestOptions};
use keyframe_agent_api::{
    Bytes, CreateVolume, DiskId, DiskSlot, Fault, FaultKind, Firmware, Generation, GiveUp, Machine, MemoryState,
    Micros, Power, Quiesce, SnapshotId, StartFrom, StartVm, StopHow, StopVm, TakeInstant, VmCall, VmId, VolumeSource,
};
use keyframe_lab::mounted::Mounted;
use tempfile::TempDir;

/// What each machine has in MiB, and what the host keeps for itself.
const MEMORY: u64 = 512;
const RESERVE: u64 = 256;

/// A host, and an agent on it.
struct Host {
    dir: TempDir,
    fake: Arc<Fake>,
    agent: Option<TestAgent>,
}

/// A machine that stands still, and an instant of its disks.
struct Paused {
    vm: VmId,
    snapshot: SnapshotId,
    machine: Machine,
    guest: Memory,
}

impl Host {
    /// With that much memory that nobody has, in MiB.
    fn new(free: u64) -> Host {
        let dir = tempfile::tempdir().unwrap();
        let fake = Arc::new(Fake::new(dir.path().join("machines"), FakeOptions::default()));
        let process = dir.path().join("proc").join(std::process::id().to_string());
        fs::create_dir_all(&process).unwrap();
        fs::write(process.join("status"), format!("Name:\tqemu\nVmRSS:\t{} kB\n", 16 << 10)).unwrap();
        let mut host = Host { dir, fake, agent: None };
        host.has(free);
        host.start();
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn has(&self, free: u64) {
        let meminfo = format!("MemTotal: 99999999 kB\nMemAvailable:   {} kB\n", free << 10);
        fs::write(self.path("proc/meminfo"), meminfo).unwrap();
    }

    fn start(&mut self) {
        let options = TestOptions { proc: self.path("proc"), ..TestOptions::default() };
        self.agent = Some(TestAgent::start(self.dir.path(), self.fake.clone(), &options).unwrap());
    }

    fn restart(&mut self) {
        self.agent.take().unwrap().crash();
        self.start();
    }

    fn agent(&self) -> &TestAgent {
        self.agent.as_ref().unwrap()
    }

    /// A machine whose guest has worked for a while.
    fn paused(&self, name: &str) -> Paused {
        let (vm, snapshot, of) = (VmId::new(), SnapshotId::new(), volume("fake", name));
        let size = Some(Bytes(16 * BLOCK as u64));
        self.agent().array("fake").create(name, &CreateVolume { source: VolumeSource::Empty, size }).unwrap();
        let disk =
            DiskSlot { id: DiskId::new(), slot: 0, volume: of.clone(), read_only: false, firmware_variables: false };
        let machine = Machine {
            name: name.to_owned(),
            uuid: vm.to_string().parse().unwrap(),
            generation_id: vm.to_string().parse().unwrap(),
            machine_type: "fake-1.0".to_owned(),
            cpus: 1,
            memory: Bytes::mib(MEMORY),
            firmware: Firmware::Bios,
            direct_boot: None,
            disks: vec![disk],
            nics: Vec::new(),
            cloud_init: None,
        };
        let machines = &self.agent().agent().machines;
        machines.run(vm, &start(1, &machine, StartFrom::Cold)).unwrap();
        let guest = self.fake.step(vm, 33).unwrap();
        machines.act(vm, &VmCall { generation: Generation(1) }, keyframe_agent::machines::Act::Pause).unwrap();
        let deadline = Micros(5_000_000);
        let volumes = vec![of];
        let wish =
            TakeInstant { vm, generation: Generation(1), volumes, memory: false, quiesce: Quiesce::No, deadline };
        machines.take_instant(snapshot, &wish).unwrap();
        Paused { vm, snapshot, machine, guest }
    }

    fn give_up(&self, of: &Paused) -> Result<(), Fault> {
        let wish = GiveUp { generation: Generation(1), snapshot: of.snapshot };
        self.agent().agent().machines.give_up(of.vm, &wish).map(|status| assert_eq!(status.power, Power::Off))
    }

    fn calls(&self, since: usize) -> Vec<String> {
        let calls = self.fake.faults().calls().split_off(since);
        calls.into_iter().filter(|call| ["capture", "stop", "set_aside", "store_aside"].contains(&&**call)).collect()
    }

    /// It is off, another guest runs on what it had, and it goes on where it was.
    fn check(&self, of: &Paused, when: &str) {
        assert!(self.fake.machine(of.vm).is_none(), "{when}: it is on");
        let machines = &self.agent().agent().machines;
        machines.run(of.vm, &start(2, &of.machine, StartFrom::Cold)).unwrap();
        assert_eq!(self.fake.machine(of.vm).unwrap().guest, Memory::default(), "{when}: it is not another guest");
        let report = self.agent().agent().instants.store_memory(of.snapshot).unwrap();
        assert!(report.memory.is_some_and(|info| info.memory == Bytes::mib(MEMORY)), "{when}");
        let state = self.agent().agent().instants.memory_state(of.snapshot);
        assert!(matches!(state, MemoryState::Ready(_)), "{when}: {state:?}");
        machines.stop(of.vm, &StopVm { generation: Generation(2), how: StopHow::Hard }).unwrap();
        let from = StartFrom::Memory { snapshot: of.snapshot, new_identity: false };
        machines.run(of.vm, &start(3, &of.machine, from)).unwrap();
        assert_eq!(self.fake.machine(of.vm).unwrap().guest, of.guest, "{when}: it is not where it was");
        self.fake.check(of.vm).unwrap();
        machines.stop(of.vm, &StopVm { generation: Generation(3), how: StopHow::Hard }).unwrap();
    }
}

fn start(generation: i64, machine: &Machine, from: StartFrom) -> StartVm {
    StartVm { generation: Generation(generation), machine: machine.clone(), from, paused: false }
}

#[test]
fn where_there_is_room_the_memory_is_stored_later() {
    let host = Host::new(MEMORY + RESERVE);
    let one = host.paused("one");
    let before = host.fake.faults().calls().len();
    host.give_up(&one).unwrap();
    assert_eq!(host.calls(before), ["set_aside"]);
    assert_eq!(host.agent().agent().instants.memory_state(one.snapshot), MemoryState::Absent);
    host.check(&one, "with room");
}

#[test]
fn without_room_the_memory_is_stored_before_the_machine_is_off() {
    let host = Host::new(MEMORY + RESERVE - 1);
    let one = host.paused("one");
    let before = host.fake.faults().calls().len();
    host.give_up(&one).unwrap();
    assert_eq!(host.calls(before), ["capture", "stop"]);
    host.give_up(&one).unwrap();
    host.check(&one, "without room");
    assert_eq!(host.calls(before), ["capture", "stop", "stop", "stop"], "its memory was stored more than once");
}

#[test]
fn a_small_disk_is_no_room_either() {
    let mut host = Host::new(99 * MEMORY);
    let images = host.path("memory");
    let small = format!("{}m", RESERVE + 16 - 1);
    let Some(_small) = Mounted::over(&images, &small).unwrap() else { return };
    host.restart();
    let one = host.paused("one");
    let before = host.fake.faults().calls().len();
    host.give_up(&one).unwrap();
    assert_eq!(host.calls(before), ["capture", "stop"]);
    host.check(&one, "with a small disk");
}

#[test]
fn the_guest_is_not_lost_when_there_is_no_space_for_its_memory() {
    let host = Host::new(0);
    let one = host.paused("one");
    host.fake.faults().full(true);
    assert_eq!(host.give_up(&one).unwrap_err().kind, FaultKind::NoSpace);
    assert_eq!(host.fake.machine(one.vm).unwrap().guest, one.guest);
    host.fake.faults().full(false);
    host.give_up(&one).unwrap();
    host.check(&one, "with space again");
}

#[test]
fn an_agent_that_dies_while_there_is_no_room_goes_on() {
    for (call, captures) in [("capture", 2), ("stop", 1)] {
        for when in [When::Before, When::After] {
            let mut host = Host::new(0);
            let one = host.paused("one");
            let before = host.fake.faults().calls().len();
            host.fake.faults().fail(call, 1, when, FaultKind::Unreachable);
            host.give_up(&one).unwrap_err();
            host.restart();
            host.give_up(&one).unwrap();
            let text = format!("{call} {when:?}");
            let calls = host.calls(before);
            assert_eq!(calls.iter().filter(|call| *call == "capture").count(), captures, "{text}: {calls:?}");
            assert!(!calls.contains(&"set_aside".to_owned()), "{text}: {calls:?}");
            host.check(&one, &text);
        }
    }
}

/// What comes instead of a guest takes its memory little by little, so the host seems to have more than it has.
#[test]
fn room_is_given_to_one_until_its_memory_is_stored() {
    let host = Host::new(2 * MEMORY + RESERVE - 1);
    let [one, two, three] = ["one", "two", "three"].map(|name| host.paused(name));
    let given_up = |of: &Paused| {
        let before = host.fake.faults().calls().len();
        host.give_up(of).unwrap();
        host.calls(before)
    };
    // What went wrong took no room.
    host.fake.faults().fail("set_aside", 1, When::Before, FaultKind::Deadline);
    host.give_up(&three).unwrap_err();
    assert_eq!(given_up(&one), ["set_aside"]);
    assert_eq!(given_up(&two), ["capture", "stop"]);
    host.check(&one, "the first");
    assert_eq!(given_up(&three), ["set_aside"]);
    host.check(&two, "the second");
    host.check(&three, "the third");
}
