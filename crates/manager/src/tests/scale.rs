//! What calls cost does not grow with the number of snapshots.

use std::sync::Arc;

use keyframe_model::agent::{Bytes, DiskId, SnapshotId, VolumeRef};
use keyframe_model::{Disk, Snapshot, SnapshotKind, Vm};

use super::site::{DISK, Site, caller, make, snap, wish};
use crate::request::{PageRequest, SnapshotFilter, VmFilter};
use crate::{Manager, space};

/// Makes a machine with so many snapshots, each a child of the one before, and ends the manager: nothing else is to be counted.
async fn machine(site: &Site, count: usize) -> (Arc<Manager>, Vm) {
    let manager = site.manager().await;
    let vm = make(&manager, wish(site, "web", &[1], false)).await.vm;
    let first = snap(&manager, vm.id, "first", SnapshotKind::Disk).await;
    manager.stop().await;
    let mut tx = site.catalog.write().await.unwrap();
    let mut snapshot = tx.snapshot(first).await.unwrap();
    for n in 1..count {
        (snapshot.parent, snapshot.id) = (Some(snapshot.id), SnapshotId::new());
        snapshot.name = format!("s-{n}").parse().unwrap();
        tx.insert_snapshot(&snapshot).await.unwrap();
    }
    tx.commit().await.unwrap();
    (manager, vm)
}

/// Statements and rows of each call on a machine with so many snapshots.
async fn costs(count: usize) -> Vec<(&'static str, (u64, u64))> {
    let site = Site::new(false).await;
    let (manager, vm) = machine(&site, count).await;
    let mut costs = Vec::new();
    let mut before = site.catalog.work();
    let mut note = |what| {
        let now = site.catalog.work();
        costs.push((what, (now.0 - before.0, now.1 - before.1)));
        before = now;
    };
    let filter = SnapshotFilter { vm: Some(vm.id), ..SnapshotFilter::default() };
    let page = PageRequest { limit: Some(20), after: None };
    let found = manager.list_snapshots(&caller(), &filter, &page).await.unwrap();
    note("a page of its snapshots");
    let page = PageRequest { after: found.next, ..page };
    assert_eq!(manager.list_snapshots(&caller(), &filter, &page).await.unwrap().items.len(), 20);
    note("the next page");
    manager.list_snapshots(&caller(), &SnapshotFilter::default(), &page).await.unwrap();
    note("a page of all snapshots");
    manager.find_snapshot(&caller(), Some(vm.id), "s-7").await.unwrap();
    note("one by its name");
    manager.list_vms(&caller(), &VmFilter::default(), &PageRequest::default()).await.unwrap();
    note("a page of machines");
    assert_eq!(manager.vm(&caller(), vm.id).await.unwrap().snapshots, u32::try_from(count).ok());
    note("one machine");
    assert_eq!(manager.disks(&caller(), vm.id).await.unwrap()[0].snapshots as usize, count);
    note("its disks");
    costs
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_on_one_thing_do_not_read_all() {
    let (few, many) = (costs(60).await, costs(1500).await);
    assert_eq!(few, many);
    let most = many.iter().map(|(_, (statements, _))| *statements).max();
    assert!(most <= Some(6), "{many:?}");
}

/// As many as there can be of a machine.
#[tokio::test(flavor = "multi_thread")]
async fn the_space_of_very_many_snapshots_is_one_question() {
    let site = Site::new(false).await;
    let (_, vm) = machine(&site, 1).await;
    let one = site.catalog.read().await.unwrap().outline(vm.id).await.unwrap()[0].id;
    let mut snapshot = site.catalog.read().await.unwrap().snapshot(one).await.unwrap();
    let disk = snapshot.hardware.disks[0].clone();
    for slot in 1..4 {
        let id = DiskId::new();
        let volume = VolumeRef { volume: id.to_string(), ..disk.volume.clone() };
        snapshot.hardware.disks.push(Disk { id, slot, volume, ..disk.clone() });
    }
    let many: Vec<Snapshot> = (1..10_000).map(|_| Snapshot { id: SnapshotId::new(), ..snapshot.clone() }).collect();
    let all: Vec<Snapshot> = many.into_iter().chain([snapshot]).collect();
    let client = site.client();
    let each = space::of_snapshots(&client, &all).await.unwrap();
    assert_eq!(each.len(), all.len());
    let real = each.last().unwrap();
    assert_eq!((real.referenced, real.shared), (DISK, DISK));
    assert_eq!(each[0].referenced, Bytes(0), "it is not there");
    assert_eq!(space::would_free(&client, &all, &[disk.volume]).await.unwrap(), DISK);
}

/// A manager that starts looks at what is unfinished, not at everything.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_does_not_read_all_snapshots() {
    let site = Site::new(false).await;
    machine(&site, 1000).await;
    let before = site.catalog.work().1;
    let manager = site.manager().await;
    let rows = site.catalog.work().1 - before;
    assert!(rows < 200, "{rows} rows");
    manager.stop().await;
}
