use keyframe_agent_api::{
    Bytes, CutMethod, Generation, GuestAnswer, InstantReport, MemoryInfo, Micros, SnapshotId, Timestamp,
};
use keyframe_catalog::{Change, ErrorKind, EventKind, PageOf, SnapshotFilter, SnapshotPhase};
use keyframe_model::{Finding, SnapshotEvent, SnapshotKind, SnapshotOrigin, SnapshotState, Verification};

use crate::world::{Place, on_both, snapshot, vm};

on_both! { a_snapshot_lives the_tree_moves filters_and_search expiry memories_are_summed_up }

async fn a_snapshot_lives(place: Place) {
    let mut tx = place.catalog.write().await.unwrap();
    let (a, b) = (vm("a"), vm("b"));
    let mut s = snapshot(&a, "s", None);
    assert_eq!(tx.insert_snapshot(&s).await.unwrap_err().kind, ErrorKind::NotFound, "its machine is not there");
    drop(tx);
    let mut tx = place.catalog.write().await.unwrap();
    tx.insert_vm(&a).await.unwrap();
    tx.insert_vm(&b).await.unwrap();
    s.tags = ["x", "y", "x"].map(|tag| tag.parse().unwrap()).to_vec();
    tx.insert_snapshot(&s).await.unwrap();
    assert_eq!(tx.snapshot(s.id).await.unwrap(), s);
    assert_eq!(tx.find_snapshot(a.id, &s.name).await.unwrap(), Some(s.clone()));
    assert_eq!(tx.find_snapshot(b.id, &s.name).await.unwrap(), None);
    tx.insert_snapshot(&snapshot(&b, "s", None)).await.unwrap();
    let mut old = s.clone();
    s.state = s.after(&SnapshotEvent::Broke("lost".into())).unwrap();
    s.tags = vec!["z".parse().unwrap()];
    s.verification =
        Some(Verification { at: Timestamp(7), finding: Finding::Damaged { reason: "a disk is lost".into() } });
    tx.update_snapshot(&mut s).await.unwrap();
    assert_eq!((tx.snapshot(s.id).await.unwrap(), s.generation), (s.clone(), Generation(2)));
    let stale = tx.update_snapshot(&mut old).await.unwrap_err();
    assert_eq!(
        (stale.kind, stale.to_string().as_str()),
        (ErrorKind::Stale, "snapshot s has changed since it was read; read it again")
    );
    assert_eq!(tx.delete_snapshots(a.id, &[s.id, SnapshotId::new()]).await.unwrap(), 1);
    assert_eq!(tx.update_snapshot(&mut s).await.unwrap_err().kind, ErrorKind::NotFound);
    assert_eq!(tx.count_snapshots(b.id).await.unwrap(), 1);
    tx.commit().await.unwrap();
    let mut tx = place.catalog.write().await.unwrap();
    let taken = tx.insert_snapshot(&snapshot(&b, "s", None)).await.unwrap_err();
    assert_eq!(taken.to_string(), "the machine has a snapshot named s already; choose another name");
}

async fn the_tree_moves(place: Place) {
    let mut tx = place.catalog.write().await.unwrap();
    let mut m = vm("m");
    tx.insert_vm(&m).await.unwrap();
    let root = snapshot(&m, "root", None);
    let middle = snapshot(&m, "middle", Some(root.id));
    let leaves: Vec<_> = (0..3).map(|n| snapshot(&m, &format!("leaf-{n}"), Some(middle.id))).collect();
    for s in [&root, &middle].into_iter().chain(&leaves) {
        tx.insert_snapshot(s).await.unwrap();
    }
    tx.set_current(&mut m, Some(middle.id)).await.unwrap();
    let tree = tx.tree(m.id).await.unwrap();
    assert_eq!((tree.current(), tree.nodes().len()), (Some(middle.id), 5));
    assert_eq!(tx.children(middle.id).await.unwrap(), leaves.iter().map(|s| s.id).collect::<Vec<_>>());
    let removal = tree.remove(&[middle.id]).unwrap();
    tx.move_snapshots(&removal.moved).await.unwrap();
    tx.set_current(&mut m, removal.current.unwrap()).await.unwrap();
    tx.delete_snapshots(m.id, &removal.removed).await.unwrap();
    tx.commit().await.unwrap();
    let mut tx = place.catalog.read().await.unwrap();
    let moved = tx.snapshot(leaves[1].id).await.unwrap();
    assert_eq!((moved.parent, moved.generation), (Some(root.id), Generation(2)));
    assert_eq!(tx.tree(m.id).await.unwrap().current(), Some(root.id));
    let lines = tx.outline(m.id).await.unwrap();
    let shown: Vec<_> = lines.iter().map(|line| (line.name.as_str(), line.parent)).collect();
    let up = Some(root.id);
    assert_eq!(shown, [("root", None), ("leaf-0", up), ("leaf-1", up), ("leaf-2", up)]);
    assert_eq!(
        (lines[0].phase, lines[0].kind, lines[0].created),
        (SnapshotPhase::Ready, SnapshotKind::Disk, root.created)
    );
    let events = tx.events_after(0, 100).await.unwrap();
    let moved = events.iter().find(|e| e.id == leaves[1].id.to_string() && e.change == Change::Changed).unwrap();
    assert_eq!((moved.kind, moved.vm, moved.generation), (EventKind::Snapshot, Some(m.id), Generation(2)));
}

async fn filters_and_search(place: Place) {
    let mut tx = place.catalog.write().await.unwrap();
    let (a, b) = (vm("a"), vm("b"));
    tx.insert_vm(&a).await.unwrap();
    tx.insert_vm(&b).await.unwrap();
    for n in 0..10 {
        let mut s = snapshot(if n < 7 { &a } else { &b }, &format!("Daily-{n}"), None);
        s.tags = if n % 2 == 0 { vec!["even".parse().unwrap()] } else { Vec::new() };
        s.description = format!("before update {n}");
        if n == 3 {
            (s.kind, s.locked) = (SnapshotKind::DiskAndMemory, true);
            s.origin = SnapshotOrigin::BeforeApply { applied: SnapshotId::new() };
            s.state = SnapshotState::Error { reason: "x".into() };
        }
        tx.insert_snapshot(&s).await.unwrap();
    }
    let none = SnapshotFilter::default;
    let of_a = || SnapshotFilter { vm: Some(a.id), ..none() };
    for (filter, count) in [
        (none(), 10),
        (of_a(), 7),
        (SnapshotFilter { name: Some("Daily-8".into()), ..none() }, 1),
        (SnapshotFilter { name: Some("Daily-8".into()), ..of_a() }, 0),
        (SnapshotFilter { search: Some("daily-".into()), ..none() }, 10),
        (SnapshotFilter { search: Some("UPDATE 4".into()), ..none() }, 1),
        (SnapshotFilter { search: Some("EVEN".into()), ..of_a() }, 4),
        (SnapshotFilter { tag: Some("even".parse().unwrap()), ..none() }, 5),
        (SnapshotFilter { tag: Some("eve".parse().unwrap()), ..none() }, 0),
        (SnapshotFilter { phase: Some(SnapshotPhase::Error), ..none() }, 1),
        (SnapshotFilter { kind: Some(SnapshotKind::DiskAndMemory), ..none() }, 1),
        (SnapshotFilter { automatic: Some(true), ..of_a() }, 1),
        (SnapshotFilter { automatic: Some(false), ..of_a() }, 6),
    ] {
        let page = tx.snapshots(&filter, &PageOf::first(3)).await.unwrap();
        assert_eq!((page.total, page.more), (count, count > 3), "{filter:?}");
        let rest = PageOf { after: page.items.last().map(|s| s.id), limit: 100 };
        if page.more {
            let rest = tx.snapshots(&filter, &rest).await.unwrap();
            assert_eq!((rest.items.len() as u64, rest.total), (count - 3, count), "{filter:?}");
        }
    }
}

async fn expiry(place: Place) {
    let mut tx = place.catalog.write().await.unwrap();
    let m = vm("m");
    tx.insert_vm(&m).await.unwrap();
    let automatic = SnapshotOrigin::BeforeApply { applied: SnapshotId::new() };
    for (name, origin, expires, locked) in [
        ("late", automatic.clone(), Some(30), false),
        ("early", automatic.clone(), Some(10), false),
        ("future", automatic.clone(), Some(99), false),
        ("locked", automatic.clone(), Some(10), true),
        ("kept", automatic, None, false),
        ("user", SnapshotOrigin::User, Some(10), false),
    ] {
        let s = snapshot(&m, name, None);
        let s = keyframe_model::Snapshot { origin, expires: expires.map(Timestamp), locked, ..s };
        tx.insert_snapshot(&s).await.unwrap();
    }
    let expired = tx.expired_snapshots(Timestamp(30), 10).await.unwrap();
    assert_eq!(expired.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), ["early", "late"]);
    assert_eq!(tx.expired_snapshots(Timestamp(30), 1).await.unwrap().len(), 1);
}

async fn memories_are_summed_up(place: Place) {
    let mut tx = place.catalog.write().await.unwrap();
    let (a, b) = (vm("a"), vm("b"));
    tx.insert_vm(&a).await.unwrap();
    tx.insert_vm(&b).await.unwrap();
    assert_eq!(tx.stored_memory(a.id).await.unwrap(), Bytes(0));
    let mut made = Vec::new();
    for (n, stored) in [Some(100), None, Some(20)].into_iter().enumerate() {
        let mut s = snapshot(&a, &format!("s-{n}"), None);
        s.created = Timestamp(i64::try_from(n).unwrap());
        if let Some(stored) = stored {
            s.kind = SnapshotKind::DiskAndMemory;
            let (hypervisor, memory, stored) = ("none".to_owned(), Bytes(500), Bytes(stored));
            let memory = Some(MemoryInfo { memory, stored, hypervisor, emulated: false, compressed: false });
            s.report = Some(InstantReport { memory, ..report() });
        }
        tx.insert_snapshot(&s).await.unwrap();
        made.push(s);
    }
    assert_eq!(tx.stored_memory(a.id).await.unwrap(), Bytes(120));
    assert_eq!(tx.stored_memory(b.id).await.unwrap(), Bytes(0));
    let ids = |found: Vec<keyframe_model::Snapshot>| found.into_iter().map(|s| s.id).collect::<Vec<_>>();
    assert_eq!(ids(tx.memories(None, Timestamp(9), 9).await.unwrap()), [made[0].id, made[2].id]);
    assert_eq!(ids(tx.memories(None, Timestamp(9), 1).await.unwrap()), [made[0].id]);
    assert_eq!(ids(tx.memories(Some(made[0].id), Timestamp(9), 9).await.unwrap()), [made[2].id]);
    assert_eq!(ids(tx.memories(None, Timestamp(1), 9).await.unwrap()), [made[0].id]);
    let changed = &mut made[0];
    changed.report.as_mut().unwrap().memory.as_mut().unwrap().stored = Bytes(1);
    tx.update_snapshot(changed).await.unwrap();
    assert_eq!(tx.stored_memory(a.id).await.unwrap(), Bytes(21));
    let mut found: Vec<String> = tx.vms_of(&[b.id, a.id]).await.unwrap().iter().map(|vm| vm.name.to_string()).collect();
    found.sort();
    assert_eq!(found, ["a", "b"]);
}

fn report() -> InstantReport {
    let none = Micros(0);
    let (method, guest) = (CutMethod::AtRest, GuestAnswer::NotAsked);
    InstantReport { at: Timestamp(0), method, guest, paused: none, held: none, frozen: none, memory: None }
}
