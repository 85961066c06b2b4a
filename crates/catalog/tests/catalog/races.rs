use std::time::Duration;

use keyframe_catalog::{Catalog, ErrorKind, PageOf, VmFilter};

use crate::world::{Place, on_both, vm};

on_both! {
    no_update_is_lost one_of_many_gets_a_name what_is_dropped_never_was a_reader_sees_one_state opening_again_changes_nothing
    one_manager_writes
}

/// Tasks in a race.
const RACERS: usize = 8;

async fn no_update_is_lost(place: Place) {
    const ROUNDS: usize = 15;
    let m = vm("m");
    let mut tx = place.catalog.write().await.unwrap();
    tx.insert_vm(&m).await.unwrap();
    tx.commit().await.unwrap();
    let racer = |catalog: Catalog| async move {
        for _ in 0..ROUNDS {
            loop {
                let mut seen = catalog.read().await.unwrap().vm(m.id).await.unwrap();
                seen.hardware.cpus += 1;
                let mut tx = catalog.write().await.unwrap();
                match tx.update_vm(&mut seen).await {
                    Ok(()) => break tx.commit().await.unwrap(),
                    Err(e) => assert_eq!(e.kind, ErrorKind::Stale),
                }
            }
        }
    };
    let tasks: Vec<_> = (0..RACERS).map(|_| tokio::spawn(racer(place.catalog.clone()))).collect();
    for task in tasks {
        task.await.unwrap();
    }
    let now = place.catalog.read().await.unwrap().vm(m.id).await.unwrap();
    let updates = RACERS * ROUNDS;
    assert_eq!((now.generation.0, now.hardware.cpus), (updates as i64 + 1, updates as u32 + 2));
}

async fn one_of_many_gets_a_name(place: Place) {
    // Also from several processes: each has connections and a queue of its own.
    let mut tasks = Vec::new();
    for _ in 0..RACERS {
        let catalog = Catalog::open(&place.url).await.unwrap();
        tasks.push(tokio::spawn(async move {
            let mut tx = catalog.write().await.unwrap();
            let done = match tx.insert_vm(&vm("wanted")).await {
                Ok(()) => tx.commit().await,
                Err(e) => Err(e),
            };
            done.map_err(|e| e.kind)
        }));
    }
    let mut won = 0;
    for task in tasks {
        match task.await.unwrap() {
            Ok(()) => won += 1,
            Err(kind) => assert_eq!(kind, ErrorKind::Taken),
        }
    }
    assert_eq!(won, 1);
    let all = place.catalog.read().await.unwrap().vms(&VmFilter::default(), &PageOf::all()).await.unwrap();
    assert_eq!((all.total, *place.catalog.changes().borrow()), (1, 0), "this process has committed nothing");
}

async fn what_is_dropped_never_was(place: Place) {
    for _ in 0..20 {
        let mut tx = place.catalog.write().await.unwrap();
        tx.insert_vm(&vm("m")).await.unwrap();
        drop(tx);
    }
    assert_eq!(place.catalog.read().await.unwrap().all_vms().await.unwrap().len(), 0);
}

async fn a_reader_sees_one_state(place: Place) {
    let mut reader = place.catalog.read().await.unwrap();
    assert_eq!(reader.all_vms().await.unwrap().len(), 0);
    let mut tx = place.catalog.write().await.unwrap();
    tx.insert_vm(&vm("m")).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(reader.all_vms().await.unwrap().len(), 0, "it began before");
    assert_eq!(place.catalog.read().await.unwrap().all_vms().await.unwrap().len(), 1);
}

async fn opening_again_changes_nothing(place: Place) {
    let mut tx = place.catalog.write().await.unwrap();
    tx.insert_vm(&vm("m")).await.unwrap();
    tx.commit().await.unwrap();
    let before = place.catalog.read().await.unwrap().dump().await.unwrap();
    let opens: Vec<_> = (0..4)
        .map(|_| {
            let url = place.url.clone();
            tokio::spawn(async move { Catalog::open(&url).await })
        })
        .collect();
    for open in opens {
        let again = open.await.unwrap().unwrap();
        assert_eq!(again.read().await.unwrap().dump().await.unwrap(), before);
        again.close().await;
    }
}

async fn one_manager_writes(place: Place) {
    let write = async |catalog: &Catalog, value: u32| {
        let mut tx = catalog.write().await?;
        tx.put_setting("value", &value).await?;
        tx.commit().await
    };
    let first = &place.catalog;
    first.claim("manager one", Duration::ZERO).await.unwrap();
    first.claim("manager one", Duration::ZERO).await.unwrap();
    write(first, 1).await.unwrap();
    let second = Catalog::open(&place.url).await.unwrap();
    let refused = second.claim("manager two", Duration::from_millis(150)).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::InUse);
    assert!(refused.to_string().contains("in use by manager one since"), "{refused}");
    // The first loses its lock without knowing: the second gets it while it waits.
    let waiting = {
        let second = second.clone();
        tokio::spawn(async move { second.claim("manager two", Duration::from_secs(30)).await })
    };
    first.release().await;
    waiting.await.unwrap().unwrap();
    assert_eq!(second.read().await.unwrap().keeper().await.unwrap().0, "manager two");
    let fenced = write(first, 2).await.unwrap_err();
    assert_eq!(fenced.kind, ErrorKind::Fenced);
    assert_eq!(fenced.to_string(), "manager two has taken over the catalog; this manager must stop");
    write(&second, 3).await.unwrap();
    assert_eq!(first.read().await.unwrap().setting::<u32>("value").await.unwrap(), Some(3));
}
