use std::time::Instant;

use keyframe_catalog::{PageOf, SnapshotFilter};

use crate::world::{Place, hardware, on_both, snapshot, vm};

on_both! { ten_thousand_snapshots }

async fn ten_thousand_snapshots(place: Place) {
    const COUNT: usize = 10_000;
    let m = keyframe_model::Vm { hardware: hardware(&["disk"]), ..vm("m") };
    let mut tx = place.catalog.write().await.unwrap();
    tx.insert_vm(&m).await.unwrap();
    let mut ids = Vec::new();
    for n in 0..COUNT {
        let s = snapshot(&m, &format!("s-{n}"), ids.last().copied());
        tx.insert_snapshot(&s).await.unwrap();
        ids.push(s.id);
    }
    tx.commit().await.unwrap();
    let mut tx = place.catalog.read().await.unwrap();
    let filter = SnapshotFilter { vm: Some(m.id), ..SnapshotFilter::default() };
    for start in [0, COUNT / 2, COUNT - 101] {
        let begun = Instant::now();
        let page = tx.snapshots(&filter, &PageOf { after: Some(ids[start]), limit: 100 }).await.unwrap();
        eprintln!("a page after {start}: {:?}", begun.elapsed());
        assert_eq!(page.items.iter().map(|s| s.id).collect::<Vec<_>>(), ids[start + 1..start + 101]);
        assert_eq!((page.total, page.more), (COUNT as u64, start + 101 < COUNT));
    }
    let begun = Instant::now();
    let tree = tx.tree(m.id).await.unwrap();
    eprintln!("the tree: {:?}", begun.elapsed());
    assert_eq!(tree.nodes().iter().map(|node| node.id).collect::<Vec<_>>(), ids);
    let begun = Instant::now();
    assert_eq!(tx.outline(m.id).await.unwrap().len(), COUNT);
    eprintln!("the outline: {:?}", begun.elapsed());
    let begun = Instant::now();
    let found = SnapshotFilter { search: Some("S-9999".into()), ..SnapshotFilter::default() };
    assert_eq!(tx.snapshots(&found, &PageOf::first(10)).await.unwrap().total, 1);
    eprintln!("a search: {:?}", begun.elapsed());
    drop(tx);
    let mut tx = place.catalog.write().await.unwrap();
    let owners: Vec<_> = ids.iter().map(|&id| keyframe_catalog::Owner::Snapshot(id)).collect();
    assert_eq!(tx.unreferenced_without(&owners).await.unwrap(), []);
    let moved: Vec<_> = ids[2..].iter().map(|&id| (id, Some(ids[0]))).collect();
    tx.move_snapshots(&moved).await.unwrap();
    assert_eq!(tx.children(ids[0]).await.unwrap().len(), COUNT - 1);
    assert_eq!(tx.delete_snapshots(m.id, &ids).await.unwrap(), COUNT as u64);
    tx.commit().await.unwrap();
}
