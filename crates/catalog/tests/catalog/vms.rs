use keyframe_agent_api::{Generation, JobId, SnapshotId, VmId};
use keyframe_catalog::{Change, ErrorKind, EventKind, PageOf, VmFilter, VmPhase};
use keyframe_model::{Activity, Rest, Trouble, VmState};

use crate::world::{Place, on_both, snapshot, vm};

on_both! { a_machine_lives updates_need_the_newest_generation pages_and_filters read_transactions_do_not_write }

async fn a_machine_lives(place: Place) {
    let mut web = vm("web");
    let mut tx = place.catalog.write().await.unwrap();
    tx.insert_vm(&web).await.unwrap();
    tx.commit().await.unwrap();
    let mut tx = place.catalog.write().await.unwrap();
    assert_eq!(tx.vm(web.id).await.unwrap(), web);
    assert_eq!(tx.find_vm(&web.name).await.unwrap(), Some(web.clone()));
    assert_eq!(tx.find_vm(&"other".parse().unwrap()).await.unwrap(), None);
    (web.name, web.description) = ("db".parse().unwrap(), "another".into());
    tx.update_vm(&mut web).await.unwrap();
    assert_eq!((web.generation, tx.vm(web.id).await.unwrap()), (Generation(2), web.clone()));
    let held = snapshot(&web, "s", None);
    tx.insert_snapshot(&held).await.unwrap();
    tx.set_current(&mut web, Some(SnapshotId::new())).await.unwrap();
    assert_eq!(tx.vm(web.id).await.unwrap(), web);
    tx.commit().await.unwrap();
    let mut tx = place.catalog.write().await.unwrap();
    assert_eq!(tx.delete_vm(web.id, Generation(1)).await.unwrap_err().kind, ErrorKind::Stale);
    drop(tx);
    let mut tx = place.catalog.write().await.unwrap();
    let seen = tx.last_event().await.unwrap();
    tx.delete_vm(web.id, web.generation).await.unwrap();
    assert_eq!(tx.vm(web.id).await.unwrap_err().kind, ErrorKind::NotFound);
    assert_eq!(tx.count_snapshots(web.id).await.unwrap(), 0);
    assert_eq!(tx.delete_vm(web.id, web.generation).await.unwrap_err().kind, ErrorKind::NotFound);
    drop(tx);
    let mut tx = place.catalog.write().await.unwrap();
    tx.delete_vm(web.id, web.generation).await.unwrap();
    tx.commit().await.unwrap();
    // Whoever follows snapshots only hears that it is gone, too.
    let told = place.catalog.read().await.unwrap().events_after(seen, 10).await.unwrap();
    let told: Vec<_> = told.into_iter().map(|e| (e.kind, e.id, e.vm, e.change)).collect();
    let gone = |kind, id: String| (kind, id, Some(web.id), Change::Gone);
    assert_eq!(told, [gone(EventKind::Snapshot, held.id.to_string()), gone(EventKind::Vm, web.id.to_string())]);
}

async fn updates_need_the_newest_generation(place: Place) {
    let mut tx = place.catalog.write().await.unwrap();
    let (mut a, b) = (vm("a"), vm("b"));
    tx.insert_vm(&a).await.unwrap();
    tx.insert_vm(&b).await.unwrap();
    tx.commit().await.unwrap();
    let mut old = a.clone();
    let mut tx = place.catalog.write().await.unwrap();
    tx.update_vm(&mut a).await.unwrap();
    tx.commit().await.unwrap();
    let before = old.clone();
    let mut tx = place.catalog.write().await.unwrap();
    let stale = tx.update_vm(&mut old).await.unwrap_err();
    assert_eq!((stale.kind, old), (ErrorKind::Stale, before));
    assert_eq!(stale.to_string(), "machine a has changed since it was read; read it again");
    let mut gone = vm("gone");
    assert_eq!(tx.update_vm(&mut gone).await.unwrap_err().kind, ErrorKind::NotFound);
    drop(tx);
    let mut tx = place.catalog.write().await.unwrap();
    a.name = "b".parse().unwrap();
    let taken = tx.update_vm(&mut a).await.unwrap_err();
    assert_eq!(taken.kind, ErrorKind::Taken);
    assert_eq!(taken.to_string(), "there is a machine named b already; choose another name");
    drop(tx);
    let mut tx = place.catalog.write().await.unwrap();
    assert_eq!(tx.insert_vm(&vm("b")).await.unwrap_err().kind, ErrorKind::Taken);
}

async fn pages_and_filters(place: Place) {
    let mut tx = place.catalog.write().await.unwrap();
    let mut all = Vec::new();
    for n in 0..25 {
        let mut vm = vm(&format!("vm-{n}"));
        vm.state = match n {
            0..10 => VmState::At { rest: Rest::Running },
            10..15 => VmState::Busy { from: None, error: None, activity: Activity::Creating, job: JobId::new() },
            15..18 => VmState::Error { trouble: Trouble { reason: "x".into(), spoilt: false } },
            _ => vm.state,
        };
        tx.insert_vm(&vm).await.unwrap();
        all.push(vm.id);
    }
    tx.commit().await.unwrap();
    let mut tx = place.catalog.read().await.unwrap();
    let mut seen: Vec<VmId> = Vec::new();
    loop {
        let page = PageOf { after: seen.last().copied(), limit: 10 };
        let page = tx.vms(&VmFilter::default(), &page).await.unwrap();
        seen.extend(page.items.iter().map(|vm| vm.id));
        assert_eq!((page.total, page.more), (25, seen.len() < 25));
        if !page.more {
            break;
        }
    }
    assert_eq!(seen, all);
    for (phase, count) in [("running", 10), ("busy", 5), ("error", 3), ("stopped", 7), ("paused", 0)] {
        let phase = Some(phase.parse::<VmPhase>().unwrap());
        let page = tx.vms(&VmFilter { phase, ..VmFilter::default() }, &PageOf::first(2)).await.unwrap();
        assert_eq!((page.total, page.items.len() as u64), (count, count.min(2)), "{phase:?}");
    }
    assert_eq!("off".parse::<VmPhase>().unwrap_err().kind, ErrorKind::Invalid);
    for (search, count) in
        [("VM-1", 11), ("100% real_ly", 25), ("100_ real", 0), ("%", 25), ("!", 0), ("machine vm-24", 1)]
    {
        let filter = VmFilter { search: Some(search.into()), ..VmFilter::default() };
        assert_eq!(tx.vms(&filter, &PageOf::all()).await.unwrap().total, count, "{search}");
    }
    let named = VmFilter { name: Some("vm-1".into()), ..VmFilter::default() };
    assert_eq!(tx.vms(&named, &PageOf::all()).await.unwrap().items[0].id, all[1]);
    assert_eq!(tx.all_vms().await.unwrap().len(), 25);
    assert_eq!(tx.busy_vms().await.unwrap().len(), 5);
}

async fn read_transactions_do_not_write(place: Place) {
    let mut tx = place.catalog.read().await.unwrap();
    assert_eq!(tx.insert_vm(&vm("a")).await.unwrap_err().kind, ErrorKind::Invalid);
    assert_eq!(tx.move_snapshots(&[(SnapshotId::new(), None)]).await.unwrap_err().kind, ErrorKind::Invalid);
}
