//! One life of a pool: random operations, a power failure somewhere, recovery (which may lose power too), comparison.

use std::path::Path;
use std::sync::Arc;

use keyframe_engine::units::{BLOCK, Bytes};
use keyframe_engine::{Access, OpenOptions, PlantedBug, Pool};

use super::Rng;
use super::driver::{Driver, Op, check_clean, compare, contents, expected, new_disk, open, options};
use super::oracle::Oracle;
use super::sim::SimDisk;

/// Power failures in one life.
const FAILURES: u64 = 3;

/// Runs a life; panics where the pool and the oracle part.
pub fn life(seed: u64, planted: PlantedBug) {
    let mut rng = Rng::new(seed);
    let mut disk = new_disk(seed);
    let mut driver = Driver::new(open(&disk, planted).unwrap(), Rng::new(seed ^ 0xabcd));
    for _ in 0..FAILURES {
        for _ in 0..rng.below(30) {
            let op = driver.choose();
            driver.run(&op).unwrap_or_else(|e| panic!("{op:?}: {e}"));
            Driver::model(&mut driver.oracle, &op);
        }
        driver.pool.checkpoint().unwrap();
        let candidates = run_until_dark(&mut driver, &disk, &mut rng);
        // The old pool goes without a word.
        let (oracle, rest) = (std::mem::take(&mut driver.oracle), driver.rng.clone());
        drop(driver);
        let (pool, after) = recover(&disk, &mut rng, planted);
        disk = after;
        let found = contents(&pool).unwrap_or_else(|e| panic!("reading after recovery: {e}"));
        let state = candidates.iter().rev().find(|c| expected(c) == found);
        let Some(state) = state else {
            let differences: Vec<String> = candidates.iter().map(|c| difference(&expected(c), &found)).collect();
            panic!("the recovered state is none of the possible ones: {differences:#?}");
        };
        driver = Driver::new(pool, rest);
        driver.oracle = state.clone();
        driver.oracle.next_id = oracle.next_id;
        driver.skip_names(seed.wrapping_mul(3).wrapping_add(rng.next() % 1_000_000));
        compare(&driver, &disk);
    }
}

/// Runs operations until the power fails; the states that recovery may find, oldest first.
fn run_until_dark(driver: &mut Driver, disk: &Arc<SimDisk>, rng: &mut Rng) -> Vec<Oracle> {
    disk.crash_after(1 + rng.below(60));
    let mut candidates = vec![driver.oracle.clone()];
    loop {
        let op = driver.choose();
        let result = driver.run(&op);
        let mut next = driver.oracle.clone();
        if let Op::Resize { volume, blocks } = &op {
            // A smaller size first empties what lies beyond it.
            let old = next.volumes[volume].head.len() as u64;
            next.resize(volume, *blocks);
            next.resize(volume, old);
            candidates.push(next.clone());
        }
        Driver::model(&mut next, &op);
        match result {
            Ok(()) => {
                driver.oracle = next.clone();
                if Driver::makes_durable(&op) {
                    candidates.clear();
                }
                candidates.push(next);
            }
            Err(e) => {
                assert!(disk.is_dead(), "{op:?} failed under power: {e}");
                candidates.push(next);
                return candidates;
            }
        }
    }
}

/// Opens what the power failure left; every third time the power fails again meanwhile.
fn recover(disk: &Arc<SimDisk>, rng: &mut Rng, planted: PlantedBug) -> (keyframe_engine::Pool, Arc<SimDisk>) {
    let mut disk = disk.after_power_loss();
    loop {
        if rng.one_in(3) {
            disk.crash_after(1 + rng.below(3));
        }
        match open(&disk, planted) {
            Ok(pool) => {
                disk.never_crash();
                return (pool, disk);
            }
            Err(e) => {
                assert!(disk.is_dead(), "cannot open after a power failure: {e}");
                disk = disk.after_power_loss();
            }
        }
    }
}

/// The free space is used many times over by a few blocks, and only then is much metadata needed; the process is killed. What
/// was flushed is there.
pub fn turns(seed: u64, planted: PlantedBug) {
    const POOL: u64 = 5200;
    const LOT: u64 = 16;
    const FAR: u64 = 1 << 10;
    let mut rng = Rng::new(seed);
    let disk = SimDisk::new(POOL * BLOCK, seed);
    Pool::format(&*disk, POOL).unwrap();
    let options = OpenOptions { background: true, cache: Bytes(16 << 20), ..options(planted) };
    let open = |disk: &Arc<SimDisk>| Pool::open_on(Arc::clone(disk) as _, Path::new("sim"), &options);
    let pool = open(&disk).unwrap();
    let info = pool.info();
    let lots = ((info.free.0 - info.reserve.0) / BLOCK - 1200) / LOT;
    let scattered = 400 + rng.below(200);
    pool.create_volume("dense", Bytes(lots * LOT * BLOCK)).unwrap();
    pool.create_volume("sparse", Bytes(scattered * FAR * BLOCK)).unwrap();
    let dense = pool.open_volume("dense", Access::ReadWrite).unwrap();
    let sparse = pool.open_volume("sparse", Access::ReadWrite).unwrap();
    let stamped = |stamp: u64, blocks: u64| stamp.to_le_bytes().repeat((blocks * BLOCK) as usize / 8);
    let mut stamps = vec![0; lots as usize];
    for stamp in 1..=lots * 3 {
        let lot = if stamp <= lots { stamp - 1 } else { rng.below(4) };
        dense.write_at(&stamped(stamp, LOT), lot * LOT * BLOCK).unwrap();
        stamps[lot as usize] = stamp;
        if stamp == lots {
            pool.checkpoint().unwrap();
        }
        // Only what is durably free is used again.
        if stamp % 4 == 0 {
            dense.flush().unwrap();
        }
    }
    for block in 0..scattered {
        sparse.write_at(&stamped(block + 1, 1), block * FAR * BLOCK).unwrap();
    }
    sparse.flush().unwrap();
    let killed = disk.copy();
    drop((dense, sparse, pool));
    let pool = open(&killed).unwrap_or_else(|e| panic!("cannot open after a kill: {e}"));
    let expect = |name: &str, blocks: u64, apart: u64, stamps: &mut dyn Iterator<Item = u64>| {
        let volume = pool.open_volume(name, Access::ReadOnly).unwrap();
        let mut found = vec![0; (blocks * BLOCK) as usize];
        for (n, stamp) in (0..).zip(stamps) {
            volume.read_at(&mut found, n * apart * BLOCK).unwrap();
            assert!(found == stamped(stamp, blocks), "{name}: number {n} is not of stamp {stamp}");
        }
    };
    expect("dense", LOT, LOT, &mut stamps.into_iter());
    expect("sparse", 1, FAR, &mut (1..=scattered));
    pool.close().unwrap();
    check_clean(&killed);
}

type Contents = [(String, Vec<u64>)];

/// Where two states part.
fn difference(expected: &Contents, found: &Contents) -> String {
    let names = |c: &Contents| c.iter().map(|(n, v)| (n.clone(), v.len())).collect::<Vec<_>>();
    if names(expected) != names(found) {
        return format!("expected {:?}, found {:?}", names(expected), names(found));
    }
    for ((name, want), (_, have)) in expected.iter().zip(found) {
        if let Some(i) = (0..want.len()).find(|i| want[*i] != have[*i]) {
            return format!("{name} sector {i}: expected stamp {}, found {}", want[i], have[i]);
        }
    }
    "none".into()
}
