use keyframe_agent_api::SnapshotId;
use keyframe_catalog::{Leftover, Owner};

use crate::world::{Place, hardware, on_both, snapshot, template, vm, volume};

on_both! { a_volume_is_kept_while_anybody_refers_to_it what_is_left_is_remembered_until_it_is_gone }

async fn what_is_left_is_remembered_until_it_is_gone(place: Place) {
    let mut tx = place.catalog.write().await.unwrap();
    let m = keyframe_model::Vm { hardware: hardware(&["one"]), ..vm("m") };
    tx.insert_vm(&m).await.unwrap();
    let s = snapshot(&m, "s", None);
    tx.insert_snapshot(&s).await.unwrap();
    let instant = |snapshot| Leftover::Instant { snapshot, volumes: vec![volume("one")] };
    let all = [
        (instant(s.id), true),
        (instant(SnapshotId::new()), false),
        (Leftover::Volume(volume("one")), true),
        (Leftover::Volume(volume("two")), false),
    ];
    for (left, wanted) in &all {
        tx.put_leftover(left).await.unwrap();
        tx.put_leftover(left).await.unwrap();
        assert_eq!(tx.is_wanted(left).await.unwrap(), *wanted, "{left:?}");
    }
    assert_eq!(tx.leftovers().await.unwrap().len(), 4);
    tx.delete_snapshots(m.id, &[s.id]).await.unwrap();
    tx.delete_vm(m.id, m.generation).await.unwrap();
    for (left, _) in &all {
        assert!(!tx.is_wanted(left).await.unwrap(), "{left:?}");
        tx.delete_leftover(left).await.unwrap();
        tx.delete_leftover(left).await.unwrap();
    }
    assert_eq!(tx.leftovers().await.unwrap(), []);
}

async fn a_volume_is_kept_while_anybody_refers_to_it(place: Place) {
    let mut tx = place.catalog.write().await.unwrap();
    let mut m = keyframe_model::Vm { hardware: hardware(&["one", "two"]), ..vm("m") };
    tx.insert_vm(&m).await.unwrap();
    let s = snapshot(&m, "s", None);
    tx.insert_snapshot(&s).await.unwrap();
    let mut t = template("t", &["three"]);
    tx.insert_template(&t).await.unwrap();
    // A disk is taken out: only the snapshot has it now.
    m.hardware.disks.retain(|disk| disk.volume == volume("two"));
    tx.update_vm(&mut m).await.unwrap();
    let later = snapshot(&m, "later", Some(s.id));
    tx.insert_snapshot(&later).await.unwrap();
    let (of_vm, of_s, of_later) = (Owner::Vm(m.id), Owner::Snapshot(s.id), Owner::Snapshot(later.id));
    for (going, free) in [
        (vec![of_vm], vec![]),
        (vec![of_s], vec!["one"]),
        (vec![of_s, of_s], vec!["one"]),
        (vec![of_later], vec![]),
        (vec![of_vm, of_later], vec![]),
        (vec![of_vm, of_s], vec!["one"]),
        (vec![of_vm, of_s, of_later], vec!["one", "two"]),
        (vec![Owner::Template(t.id)], vec!["three"]),
        (vec![], vec![]),
    ] {
        let found = tx.unreferenced_without(&going).await.unwrap();
        assert_eq!(found, free.into_iter().map(volume).collect::<Vec<_>>(), "{going:?}");
    }
    let held = tx.snapshotted_volumes(m.id).await.unwrap();
    assert_eq!(held, [(volume("one"), 1, s.id), (volume("two"), 2, later.id)]);
    assert_eq!(tx.owners_of(&volume("one")).await.unwrap(), [of_s]);
    let mut owners = tx.owners_of(&volume("two")).await.unwrap();
    owners.sort();
    assert_eq!(owners, [of_vm, of_s, of_later]);
    assert_eq!(tx.volumes().await.unwrap(), ["one", "three", "two"].map(volume));
    tx.delete_snapshots(m.id, &[s.id]).await.unwrap();
    assert_eq!(tx.volumes().await.unwrap(), ["three", "two"].map(volume));
    t.hardware = hardware(&["four"]);
    tx.update_template(&mut t).await.unwrap();
    tx.delete_vm(m.id, m.generation).await.unwrap();
    assert_eq!(tx.volumes().await.unwrap(), ["four"].map(volume));
    tx.delete_template(t.id, t.generation).await.unwrap();
    assert_eq!(tx.volumes().await.unwrap(), []);
}
