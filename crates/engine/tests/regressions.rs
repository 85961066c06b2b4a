//! Faults that were found by reading and shown by experiment, each by the behaviour it broke.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use keyframe_engine::units::{BLOCK, Bytes};
use keyframe_engine::{Access, ErrorKind, IoBuf, Op, OpenOptions, PlantedBug, Pool};
use support::driver::{check_clean, new_disk, open, options};
use support::sim::SimDisk;
use support::{Rng, env};

const VOLUME: u64 = 2048;

fn stamped(stamp: u64) -> Vec<u8> {
    stamp.to_le_bytes().repeat(BLOCK as usize / 8)
}

/// Addresses that a trim remembers change hands when a checkpoint completes under it.
#[test]
fn a_trim_under_fast_checkpoints_frees_nothing_in_use() {
    let blocks = 5200;
    let disk = SimDisk::new(blocks * BLOCK, 3);
    Pool::format(&*disk, blocks).unwrap();
    let options = OpenOptions { background: true, cache: Bytes(16 << 20), ..options(PlantedBug::None) };
    let pool = Pool::open_on(Arc::clone(&disk) as _, std::path::Path::new("sim"), &options).unwrap();
    pool.create_volume("a", Bytes(VOLUME * BLOCK)).unwrap();
    let mut a = vec![0; VOLUME as usize];
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                pool.checkpoint().unwrap();
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        for round in 1..=env("KEYFRAME_ROUNDS", 6) {
            pool.snapshot(&[("a".into(), "g".into())]).unwrap();
            pool.clone_volume("a@g", "b", "").unwrap();
            let mut b = a.clone();
            pool.delete_snapshot("a@g").unwrap();
            let write = |name: &str, map: &mut Vec<u64>, seed: u64| {
                let volume = pool.open_volume(name, Access::ReadWrite).unwrap();
                let mut rng = Rng::new(seed);
                for n in 0..1500 {
                    let block = rng.below(VOLUME / 32) * 32 + rng.below(6);
                    map[block as usize] = round << 32 | seed << 16 | n;
                    volume.write_at(&stamped(map[block as usize]), block * BLOCK).unwrap();
                    if n % 40 == 0 {
                        volume.flush().unwrap();
                    }
                }
            };
            std::thread::scope(|writers| {
                writers.spawn(|| write("a", &mut a, 1));
                writers.spawn(|| write("b", &mut b, 2));
            });
            pool.wait_reclaimed(Duration::from_secs(5));
            for (name, map) in [("a", &a), ("b", &b)] {
                let volume = pool.open_volume(name, Access::ReadOnly).unwrap();
                let mut back = vec![0; BLOCK as usize];
                for (block, stamp) in map.iter().enumerate() {
                    volume.read_at(&mut back, block as u64 * BLOCK).unwrap();
                    assert_eq!(back, stamped(*stamp), "round {round}: {name} block {block}");
                }
            }
            pool.delete_volume("b", true).unwrap();
            pool.wait_reclaimed(Duration::from_secs(5));
        }
        over.store(true, Ordering::SeqCst);
    });
    pool.close().unwrap();
    check_clean(&disk);
}

/// A request that is parked and then only waits for durability still finds somebody to commit for it.
#[test]
fn a_parked_fua_request_is_answered() {
    let pool = open(&new_disk(1), PlantedBug::None).unwrap();
    pool.create_volume("v", Bytes(400 * BLOCK)).unwrap();
    let volume = pool.open_volume("v", Access::ReadWrite).unwrap();
    volume.write_at(&[7; 65536], 0).unwrap();
    let mut queue = pool.queue().unwrap();
    queue.submit(&volume, 1, Op::Write { offset: 512, buf: IoBuf::copy_of(&[1; 512]), fua: false });
    queue.submit(&volume, 2, Op::Discard { offset: 0, len: 8192, fua: true });
    let mut done = vec![];
    for _ in 0..100 {
        queue.poll(&mut done);
    }
    assert_eq!(done.len(), 2, "{done:?}");
}

/// A pool that a failed flush stopped writes no superblock any more, and a failed sync is not tried again.
#[test]
fn a_stopped_pool_takes_no_checkpoint() {
    let disk = new_disk(2);
    let pool = open(&disk, PlantedBug::None).unwrap();
    pool.create_volume("v", Bytes(400 * BLOCK)).unwrap();
    let volume = pool.open_volume("v", Access::ReadWrite).unwrap();
    volume.write_at(&stamped(1), 0).unwrap();
    disk.fail_after(2);
    volume.flush().unwrap_err();
    let (checkpoints, operations) = (pool.info().checkpoints, disk.operations());
    assert_eq!(pool.checkpoint().unwrap_err().kind(), ErrorKind::Poisoned);
    pool.scrub(&mut |_, _| {}).unwrap_err();
    pool.step().unwrap_err();
    assert_eq!((pool.info().checkpoints, disk.operations()), (checkpoints, operations));
}

/// The power fails at every device operation of growing.
#[test]
fn a_pool_that_lost_power_while_growing_opens() {
    for k in 1..40 {
        let disk = new_disk(k);
        let pool = open(&disk, PlantedBug::None).unwrap();
        pool.create_volume("v", Bytes(64 << 20)).unwrap();
        let volume = pool.open_volume("v", Access::ReadWrite).unwrap();
        volume.write_at(&vec![9; 8 << 20], 0).unwrap();
        volume.flush().unwrap();
        disk.crash_after(k);
        let grown = pool.grow(Some(Bytes(48 << 20)));
        let more = volume.write_at(&vec![8; 12 << 20], 20 << 20).and_then(|()| volume.flush());
        let done = grown.is_ok() && more.is_ok();
        drop((volume, pool));
        let disk = disk.after_power_loss();
        let pool = open(&disk, PlantedBug::None).unwrap_or_else(|e| panic!("after operation {k}: {e}"));
        let volume = pool.open_volume("v", Access::ReadOnly).unwrap();
        let mut back = vec![0; 4096];
        volume.read_at(&mut back, 4 << 20).unwrap();
        assert_eq!(back, [9; 4096]);
        drop(volume);
        pool.close().unwrap();
        check_clean(&disk);
        if done {
            return;
        }
    }
    panic!("growing takes more device operations than were tried");
}

/// A chain of snapshots is as deep as it is long: no stack is.
#[test]
fn the_tree_of_a_long_chain_fits_a_small_stack() {
    let blocks = 20_000;
    let disk = SimDisk::new(blocks * BLOCK, 4);
    Pool::format(&*disk, blocks).unwrap();
    let options = OpenOptions { cache: Bytes(64 << 20), ..options(PlantedBug::None) };
    let pool = Pool::open_on(Arc::clone(&disk) as _, std::path::Path::new("sim"), &options).unwrap();
    pool.create_volume("v", Bytes(400 * BLOCK)).unwrap();
    for n in 0..6000 {
        pool.snapshot(&[("v".into(), format!("s{n}"))]).unwrap();
        if n % 500 == 0 {
            pool.checkpoint().unwrap();
        }
    }
    let small = std::thread::Builder::new().stack_size(192 << 10);
    let root = small.spawn(move || pool.tree("v").unwrap().info.name.clone()).unwrap().join().unwrap();
    assert_eq!(root, "v@s0");
}
