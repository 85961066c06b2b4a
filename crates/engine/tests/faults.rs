//! Every write and sync of every operation fails once, without a power failure: afterwards the pool refuses changes, and opened
//! again it has the old state or the new one.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::time::Duration;

use keyframe_engine::{ErrorKind, PlantedBug};
use support::Rng;
use support::driver::{Driver, Op, check_clean, contents, expected, new_disk, open};

fn script() -> Vec<Op> {
    let write = |volume: &str, sector, stamp| Op::Write { volume: volume.into(), sector, stamps: vec![stamp; 16] };
    vec![
        Op::Create("a".into()),
        Op::Create("b".into()),
        write("a", 0, 1),
        write("a", 83, 2),
        write("b", 8, 3),
        Op::Flush("a".into()),
        Op::Snapshot(vec![("a".into(), "s1".into()), ("b".into(), "s1".into())]),
        write("a", 8, 4),
        Op::Checkpoint,
        Op::Clone { source: "a".into(), snapshot: "s1".into(), name: "c".into() },
        write("c", 0, 5),
        Op::Punch { volume: "a".into(), block: 1, count: 9, zero: false },
        Op::CloneLive { source: "a".into(), via: "l1".into(), name: "d".into() },
        Op::Revert { volume: "b".into(), snapshot: "s1".into(), keep: Some("k1".into()) },
        Op::Rename { volume: "d".into(), name: "e".into() },
        Op::Resize { volume: "e".into(), blocks: 100 },
        Op::DeleteSnapshot { volume: "a".into(), snapshot: "s1".into() },
        Op::Background(40),
        Op::DeleteVolume("c".into()),
        Op::Background(40),
        Op::Checkpoint,
    ]
}

/// Runs the script up to operation `n`, whose `k`-th device operation fails; false when it needs fewer.
fn fail(n: usize, k: u64) -> bool {
    let disk = new_disk(7);
    let mut driver = Driver::new(open(&disk, PlantedBug::None).unwrap(), Rng::new(7));
    let script = script();
    for op in &script[..n] {
        driver.run(op).unwrap();
        Driver::model(&mut driver.oracle, op);
    }
    if n > 0 {
        driver.run(&Op::Flush("a".into())).unwrap();
    }
    let before = disk.operations();
    disk.fail_after(k);
    let result = driver.run(&script[n]);
    if disk.operations() < before + k {
        result.unwrap();
        return false;
    }
    let mut states = vec![expected(&driver.oracle)];
    Driver::model(&mut driver.oracle, &script[n]);
    states.push(expected(&driver.oracle));
    assert!(result.is_err(), "{:?} hid the failure of device operation {k}", script[n]);
    let again = driver.pool.create_volume("later", keyframe_engine::units::Bytes(4096)).expect_err("the pool goes on");
    assert_eq!(again.kind(), ErrorKind::Poisoned);
    drop(driver);
    // What reached the disk is all there: the operation itself failed, not the power.
    let disk = disk.copy();
    let pool = open(&disk, PlantedBug::None).unwrap();
    let found = contents(&pool).unwrap();
    if let Op::Resize { .. } = &script[n] {
        // A smaller size first empties what lies beyond it; both reads as zeroes there.
        let cut = |c: &[(String, Vec<u64>)]| {
            c.iter().map(|(n, s)| (n.clone(), s[..s.len().min(800)].to_vec())).collect::<Vec<_>>()
        };
        assert!(states.iter().any(|s| cut(s) == cut(&found)), "{:?}, operation {k}: neither old nor new", script[n]);
    } else {
        assert!(states.contains(&found), "{:?}, operation {k}: neither old nor new", script[n]);
    }
    pool.reclaim().unwrap();
    assert!(pool.wait_reclaimed(Duration::ZERO));
    pool.checkpoint().unwrap();
    check_clean(&disk);
    true
}

#[test]
fn every_failed_write_or_sync_leaves_the_old_state_or_the_new() {
    let mut failures = 0;
    for n in 0..script().len() {
        let mut k = 1;
        while fail(n, k) {
            k += 1;
            failures += 1;
        }
    }
    assert!(failures > 35, "only {failures} device operations were made to fail");
}
