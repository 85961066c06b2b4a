//! What applies, deletions and copies come to, before anything is touched.

use std::collections::BTreeSet;

use crate::common::{Counted, disk, hardware, job, nic, snapshot, snapshot_id, stopped, vm};
use keyframe_model::agent::{Bytes, MemoryInfo, MemoryState, NicConnection, VolumeRef};
use keyframe_model::apply::{ApplyPlan, ApplyWish, DiskFate, MemoryUse, plan};
use keyframe_model::copy::{NicPolicy, check_count, copy};
use keyframe_model::hardware::{check_cpus, check_disk_size, check_memory, parse_mac};
use keyframe_model::memory::Loader;
use keyframe_model::{Name, Rest, Snapshot, SnapshotKind, SnapshotState, Tree, Trouble, Vm, VmState, delete};
use uuid::Uuid;

/// A question about an apply, with the usual answers filled in.
struct Ask {
    vm: Vm,
    snapshot: Snapshot,
    taken: BTreeSet<Name>,
    held: BTreeSet<VolumeRef>,
    memory: MemoryState,
    discard: bool,
    keep_memory: bool,
    start: bool,
    without_memory: bool,
    keep_name: Option<Name>,
}

impl Ask {
    fn new(vm: Vm, snapshot: Snapshot) -> Ask {
        let (taken, held, memory) = (BTreeSet::new(), BTreeSet::new(), MemoryState::Absent);
        Ask {
            vm,
            snapshot,
            taken,
            held,
            memory,
            discard: false,
            keep_memory: true,
            start: false,
            without_memory: false,
            keep_name: None,
        }
    }

    fn answer(&self) -> (ApplyPlan, Vec<String>) {
        let wish = ApplyWish {
            vm: &self.vm,
            snapshot: &self.snapshot,
            discard: self.discard,
            keep_memory: self.keep_memory,
            keep_name: self.keep_name.as_ref(),
            taken: &self.taken,
            held: &self.held,
            start: self.start,
            without_memory: self.without_memory,
            memory: &self.memory,
            loader: &Loader { hypervisor: "qemu 10.0.2".to_owned(), emulated: false },
            generation_id: Uuid::from_u128(99),
        };
        let plan = plan(&wish);
        let objections = plan.objections(&wish).into_iter().map(|refusal| refusal.message).collect();
        (plan, objections)
    }
}

fn running() -> VmState {
    VmState::At { rest: Rest::Running }
}

fn ready(disks: Vec<keyframe_model::Disk>) -> Snapshot {
    snapshot(1, SnapshotState::Ready, disks)
}

fn with_memory() -> Snapshot {
    Snapshot { kind: SnapshotKind::DiskAndMemory, ..ready(vec![disk(1, 0)]) }
}

fn stored_by(hypervisor: &str) -> MemoryState {
    let (memory, stored) = (Bytes::mib(256), Bytes::mib(20));
    MemoryState::Ready(MemoryInfo {
        memory,
        stored,
        hypervisor: hypervisor.to_owned(),
        emulated: false,
        compressed: false,
    })
}

#[test]
fn a_disk_snapshot_leaves_the_machine_stopped() {
    let (plan, objections) = Ask::new(vm(running(), vec![disk(1, 0)]), ready(vec![disk(1, 0)])).answer();
    assert!(objections.is_empty());
    assert!(plan.stop);
    assert_eq!((plan.ends, plan.memory), (Rest::Stopped, MemoryUse::Absent));
    assert_eq!(plan.keep.unwrap().as_str(), "before-s1-1");
    assert_eq!(plan.hardware.generation_id, Uuid::from_u128(99), "the guest may notice that time went back");
    let mut ask = Ask::new(vm(stopped(), vec![disk(1, 0)]), ready(vec![disk(1, 0)]));
    ask.start = true;
    let (plan, _) = ask.answer();
    assert!(!plan.stop);
    assert_eq!(plan.ends, Rest::Running);
}

#[test]
fn the_memory_given_up_is_kept_unless_nobody_wants_it() {
    let paused = VmState::At { rest: Rest::Paused { reason: keyframe_model::agent::PauseReason::Asked } };
    for (state, keep, discard, kept, lost) in [
        (running(), true, false, true, false),
        (paused, true, false, true, false),
        (running(), false, false, false, true),
        (running(), true, true, false, true),
        (stopped(), true, false, false, false),
        (VmState::Error { trouble: Trouble { reason: "x".into(), spoilt: false } }, true, false, false, false),
    ] {
        let mut ask = Ask::new(vm(state.clone(), vec![disk(1, 0)]), ready(vec![disk(1, 0)]));
        (ask.keep_memory, ask.discard) = (keep, discard);
        let plan = ask.answer().0;
        let expected = if lost { ask.vm.hardware.memory } else { Bytes(0) };
        assert_eq!((plan.keep_memory, plan.lost_memory), (kept, expected), "{state:?} {keep} {discard}");
    }
}

#[test]
fn disks_come_and_go_with_the_node() {
    let mut ask = Ask::new(vm(stopped(), vec![disk(1, 0), disk(3, 2)]), ready(vec![disk(1, 0), disk(2, 1)]));
    let fates = |plan: &ApplyPlan| plan.disks.iter().map(|(_, n, fate)| (n.to_string(), *fate)).collect::<Vec<_>>();
    let (plan, _) = ask.answer();
    let expected = [("disk1", DiskFate::Reverted), ("disk2", DiskFate::ComesBack), ("disk3", DiskFate::TakenOut)];
    assert_eq!(fates(&plan), expected.map(|(name, fate)| (name.to_owned(), fate)));
    assert!(plan.unreferenced.is_empty(), "the automatic snapshot holds it");
    ask.discard = true;
    let (plan, _) = ask.answer();
    assert_eq!(fates(&plan)[2].1, DiskFate::Deleted);
    assert_eq!(plan.unreferenced, vec![disk(3, 2).volume]);
    ask.held.insert(disk(3, 2).volume);
    assert_eq!(ask.answer().0.unreferenced, Vec::new(), "another snapshot holds it");
}

#[test]
fn memory_is_used_where_it_can_be() {
    let mut ask = Ask::new(vm(stopped(), vec![disk(1, 0)]), with_memory());
    ask.memory = stored_by("qemu 10.0.2");
    let (plan, objections) = ask.answer();
    assert_eq!((plan.memory, plan.ends, objections.len()), (MemoryUse::Used, Rest::Running, 0));

    ask.memory = stored_by("qemu 9.2.0");
    assert_eq!(ask.answer().0.memory, MemoryUse::Used, "a newer QEMU goes on with it");

    ask.memory = stored_by("qemu 10.1.0");
    let says = "cannot apply s1 with its memory: its memory was stored by qemu 10.1.0, and the host has qemu 10.0.2, which \
                is older and does not understand it; its disks can be applied without memory (--without-memory)";
    assert_eq!(ask.answer().1, vec![says.to_owned()]);

    ask.memory = MemoryState::Absent;
    let says = "cannot apply s1 with its memory: its memory image is lost; its disks can be applied without memory \
                (--without-memory)";
    assert_eq!(ask.answer().1, vec![says.to_owned()]);

    ask.without_memory = true;
    let (plan, objections) = ask.answer();
    assert_eq!((plan.memory, plan.ends, objections.len()), (MemoryUse::LeftAside, Rest::Stopped, 0));
}

#[test]
fn what_stands_in_the_way_is_said() {
    let mut ask = Ask::new(vm(stopped(), vec![disk(1, 0)]), ready(vec![disk(1, 0)]));
    ask.keep_name = Some("kept".parse().unwrap());
    ask.taken.insert("kept".parse().unwrap());
    let says = "web-1 has a snapshot kept; choose another name for the state given up";
    assert_eq!(ask.answer().1, vec![says.to_owned()]);
    ask.discard = true;
    assert!(ask.answer().1.is_empty(), "no name is needed for what is discarded");
    ask.snapshot.state = SnapshotState::Deleting { job: job() };
    let says = "snapshot s1 is being deleted; wait for job 00000000-0000-0000-0000-00000000010b";
    assert_eq!(ask.answer().1, vec![says.to_owned()]);
    ask.snapshot = Snapshot { vm: Uuid::from_u128(1).into(), ..ready(Vec::new()) };
    assert_eq!(ask.answer().1, vec!["snapshot s1 is not of web-1; clone it instead".to_owned()]);
}

#[test]
fn automatic_names_do_not_collide() {
    let mut ask = Ask::new(vm(stopped(), Vec::new()), ready(Vec::new()));
    ask.taken.extend(["before-s1-1", "before-s1-2"].map(|name| name.parse().unwrap()));
    assert_eq!(ask.answer().0.keep.unwrap().as_str(), "before-s1-3");
    ask.snapshot.name = "x".repeat(63).parse().unwrap();
    let name = ask.answer().0.keep.unwrap();
    assert_eq!((name.as_str().len(), name.as_str().ends_with("-1")), (63, true));
}

#[test]
fn a_deletion_frees_what_nobody_holds() {
    let one = snapshot(1, SnapshotState::Ready, vec![disk(1, 0), disk(2, 1)]);
    let tree = Tree::new([(snapshot_id(1), None), (snapshot_id(2), Some(snapshot_id(1)))], Some(snapshot_id(2)));
    let held = |volume: &VolumeRef| *volume == disk(1, 0).volume;
    let plan = delete::plan(&tree, std::slice::from_ref(&one), held).unwrap();
    assert_eq!(plan.unreferenced, vec![disk(2, 1).volume]);
    assert_eq!(plan.removal.moved, vec![(snapshot_id(2), None)]);
    let parts = delete::parts(std::slice::from_ref(&one), &plan.unreferenced);
    assert_eq!(parts[&snapshot_id(1)], vec![disk(1, 0).volume], "the volume that goes takes its snapshots with it");
    let locked = Snapshot { locked: true, ..one };
    assert_eq!(delete::objections(&[locked])[0].message, "snapshot s1 is locked; unlock it first");
}

#[test]
fn a_copy_shares_nothing_but_blocks() {
    let mut source = hardware(vec![disk(1, 0), disk(2, 5)]);
    let bridge = NicConnection::Bridge { bridge: "br0".to_owned(), vlan: None };
    source.nics = vec![nic(1, 0, bridge), nic(2, 3, NicConnection::User)];
    let mut fresh = Counted::default();
    let one = copy(&source, snapshot_id(1), &NicPolicy::Keep, "lab", &mut fresh);
    let two = copy(&source, snapshot_id(1), &NicPolicy::Keep, "lab", &mut fresh);
    for (a, b) in [(&one.hardware, &two.hardware), (&one.hardware, &source)] {
        assert_ne!(a.generation_id, b.generation_id);
        assert!(a.disks.iter().zip(&b.disks).all(|(a, b)| a.id != b.id && a.volume != b.volume && a.slot == b.slot));
        assert!(a.nics.iter().zip(&b.nics).all(|(a, b)| a.id != b.id && a.mac != b.mac && a.slot == b.slot));
    }
    assert_eq!(one.sources.iter().map(|of| of.volume.clone()).collect::<Vec<_>>(), source.volumes());
    assert_eq!(one.macs[0].0, "52:54:00:00:00:01");
    assert_eq!(one.macs[0].1, one.hardware.nics[0].mac);
    assert!(one.hardware.nics.iter().all(|nic| nic.mac.starts_with("fe:")), "local, and not of a group");
    one.hardware.check().unwrap();
}

#[test]
fn interfaces_of_copies_go_where_they_are_sent() {
    let mut source = hardware(Vec::new());
    let bridge = |vlan| NicConnection::Bridge { bridge: "br0".to_owned(), vlan };
    source.nics = vec![nic(1, 0, bridge(None)), nic(2, 1, NicConnection::User)];
    let check = |policy: NicPolicy, expected: [(NicConnection, bool); 2]| {
        let made = copy(&source, snapshot_id(1), &policy, "job-1", &mut Counted::default()).hardware.nics;
        let made: Vec<_> = made.into_iter().map(|nic| (nic.connection, nic.link_up)).collect();
        assert_eq!(made, expected, "{policy:?}");
    };
    let isolated = |name: &str| NicConnection::Isolated { network: name.to_owned() };
    check(NicPolicy::Keep, [(bridge(None), true), (NicConnection::User, true)]);
    check(NicPolicy::Disconnect, [(bridge(None), false), (NicConnection::User, false)]);
    check(NicPolicy::Vlan { vlan: 7 }, [(bridge(Some(7)), true), (NicConnection::User, false)]);
    check(NicPolicy::Isolated { network: None }, [(isolated("job-1"), true), (isolated("job-1"), true)]);
    let named = NicPolicy::Isolated { network: Some("lab".to_owned()) };
    check(named, [(isolated("lab"), true), (isolated("lab"), true)]);
    assert_eq!(NicPolicy::default_for(true), NicPolicy::Disconnect);
    assert_eq!(NicPolicy::Vlan { vlan: 4095 }.check().unwrap_err().message, "VLAN 4095: its number must be 1 to 4094");
}

#[test]
fn hardware_has_limits() {
    assert!(check_cpus(0).is_err() && check_cpus(256).is_err() && check_cpus(255).is_ok());
    assert!(check_memory(Bytes((256 << 20) + 1)).is_err() && check_memory(Bytes::mib(15)).is_err());
    assert!(check_disk_size(Bytes(0)).is_err() && check_disk_size(Bytes(4095)).is_err());
    assert!(check_disk_size(Bytes(4096)).is_ok() && check_disk_size(Bytes(128 << 40)).is_ok());
    let refused = check_disk_size(Bytes((128 << 40) + 4096)).unwrap_err();
    assert_eq!(refused.message, "a disk of 140737488359424 bytes is above the limit of 128 TiB");
    assert!(check_count(0).is_err() && check_count(1001).is_err() && check_count(1000).is_ok());

    let full = hardware((0..24).map(|n| disk(u128::from(n), n)).collect());
    full.check().unwrap();
    assert_eq!(full.disk_place(None).unwrap_err().message, "the machine has 24 disks, which is the most");
    let some = hardware(vec![disk(0, 0), disk(2, 2)]);
    assert_eq!(some.disk_place(None).unwrap(), 1);
    assert_eq!(some.disk_place(Some(2)).unwrap_err().message, "place 2 has a disk already; choose another");
    assert!(some.disk_place(Some(24)).is_err());
    assert_eq!(some.disk_name(None, 2).unwrap().as_str(), "disk3");
    let twice = hardware(vec![disk(1, 0), disk(2, 0)]);
    assert_eq!(twice.check().unwrap_err().message, "place 0 has a disk already; choose another");
}

#[test]
fn addresses_are_checked() {
    assert_eq!(parse_mac("52:54:00:AB:cd:0F").unwrap(), "52:54:00:ab:cd:0f");
    for bad in
        ["", "52:54:00:ab:cd", "52:54:00:ab:cd:0g", "01:00:5e:00:00:01", "00:00:00:00:00:00", "5254:00:ab:cd:0:1"]
    {
        assert!(parse_mac(bad).is_err(), "{bad}");
    }
}
