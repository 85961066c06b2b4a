//! Many snapshots and many clones: the cost of an operation, counted in device operations and bytes, must not grow with them.
//!
//! `KEYFRAME_SCALE=100000` runs the size the engine is meant for.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::time::{Duration, Instant};

use keyframe_engine::units::{BLOCK, Bytes};
use keyframe_engine::{Access, OpenOptions, PlantedBug, Pool};
use support::driver::{check_clean, options};
use support::sim::SimDisk;
use support::{Rng, env};

fn block_of(n: u64) -> Vec<u8> {
    (n + 1).to_le_bytes().repeat(BLOCK as usize / 8)
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn pool_on(disk: &std::sync::Arc<SimDisk>) -> Pool {
    let options = OpenOptions { cache: Bytes(32 << 20), ..options(PlantedBug::None) };
    Pool::open_on(std::sync::Arc::clone(disk) as _, std::path::Path::new("sim"), &options).unwrap()
}

#[test]
fn a_snapshot_costs_the_same_however_many_there_are() {
    let count = env("KEYFRAME_SCALE", 3000).max(1000);
    let disk = SimDisk::new(16 << 30, 1);
    Pool::format(&*disk, (16 << 30) / BLOCK).unwrap();
    let pool = pool_on(&disk);
    pool.create_volume("v", Bytes(1 << 30)).unwrap();
    let volume = pool.open_volume("v", Access::ReadWrite).unwrap();
    let mut rng = Rng::new(1);
    let mut newest = vec![0; 2000];
    let (mut operations, mut times) = (vec![], vec![]);
    for n in 0..count {
        for _ in 0..3 {
            let block = rng.below(2000);
            newest[block as usize] = n;
            volume.write_at(&block_of(n), block * BLOCK).unwrap();
        }
        let (before, start) = (disk.operations(), Instant::now());
        pool.snapshot(&[("v".into(), format!("s{n}"))]).unwrap();
        times.push(start.elapsed());
        operations.push(disk.operations() - before);
        while pool.step().unwrap() {}
    }
    // One journal group, one sync: no more at the end than at the beginning.
    assert!(operations.iter().all(|o| *o == 2), "device operations of a snapshot: {:?}", operations.iter().max());
    let tenth = times.len() / 10;
    let (first, last) = (median(times[..tenth].to_vec()), median(times[times.len() - tenth..].to_vec()));
    println!("{count} snapshots: median of the first tenth {first:?}, of the last {last:?}");

    let page = pool.snapshots("v", Some(&format!("s{}", count - 100)), 50).unwrap();
    assert_eq!(page.len(), 50);
    assert_eq!(page[0].name, format!("v@s{}", count - 99));
    let middle = pool.open_volume(&format!("v@s{}", count / 2), Access::ReadOnly).unwrap();
    let mut back = vec![0; BLOCK as usize];
    for block in 0..2000 {
        middle.read_at(&mut back, block * BLOCK).unwrap();
        let stamp = u64::from_le_bytes(back[..8].try_into().unwrap());
        assert!(stamp <= count / 2 + 1);
    }
    drop(middle);

    // Delete four fifths of them in no order, then everything else must be as it was.
    let mut gone = 0;
    for n in 0..count {
        if n % 5 != 0 {
            // The order visits some twice: a second deletion is refused.
            gone += u64::from(pool.delete_snapshot(&format!("v@s{}", n.wrapping_mul(7919) % count)).is_ok());
            if n.is_multiple_of(8) {
                // Nobody else does the background work here; leave most of the ghosts for later.
                pool.step().unwrap();
            }
        }
    }
    pool.reclaim().unwrap();
    assert!(gone > count / 2);
    assert_eq!(pool.info().ghosts, 0);
    for (block, n) in newest.iter().enumerate().filter(|(_, n)| **n > 0) {
        volume.read_at(&mut back, block as u64 * BLOCK).unwrap();
        assert_eq!(back, block_of(*n));
    }
    drop(volume);
    pool.close().unwrap();
    check_clean(&disk);
}

#[test]
fn a_golden_image_can_go_while_its_clones_stay() {
    let clones = env("KEYFRAME_SCALE", 400).min(5000);
    let disk = SimDisk::new(16 << 30, 2);
    Pool::format(&*disk, (16 << 30) / BLOCK).unwrap();
    let pool = pool_on(&disk);
    pool.create_volume("golden", Bytes(64 << 20)).unwrap();
    let volume = pool.open_volume("golden", Access::ReadWrite).unwrap();
    for n in 0..1000 {
        volume.write_at(&block_of(n), n * BLOCK).unwrap();
    }
    drop(volume);
    pool.snapshot(&[("golden".into(), "g".into())]).unwrap();
    let mut data = pool.info().used;
    for n in 0..clones {
        pool.clone_volume("golden@g", &format!("c{n}"), "").unwrap();
        while pool.step().unwrap() {}
    }
    let metadata = pool.info().used.0 - data.0;
    assert!(metadata < clones * 4 * BLOCK, "{} per clone", Bytes(metadata / clones));
    for n in 0..clones {
        let volume = pool.open_volume(&format!("c{n}"), Access::ReadWrite).unwrap();
        // All clones overwrite block 7, and each one block of its own.
        volume.write_at(&block_of(10_000 + n), 7 * BLOCK).unwrap();
        volume.write_at(&block_of(20_000 + n), (100 + n % 900) * BLOCK).unwrap();
    }
    let before = disk.operations();
    pool.delete_volume("golden", true).unwrap();
    assert_eq!(disk.operations() - before, 2, "deleting is one group and one sync");
    pool.reclaim().unwrap();
    pool.checkpoint().unwrap();
    data = pool.info().used;
    // Nobody holds the golden image's block 7 any more; every other block is still some clone's.
    let expected = 1000 - 1 + 2 * clones;
    assert_eq!(check_clean(&disk), expected, "pool uses {data}");
    let mut back = vec![0; BLOCK as usize];
    for n in (0..clones).step_by(37) {
        let volume = pool.open_volume(&format!("c{n}"), Access::ReadOnly).unwrap();
        for (block, want) in [(7, 10_000 + n), (100 + n % 900, 20_000 + n), (50, 50)] {
            volume.read_at(&mut back, block * BLOCK).unwrap();
            assert_eq!(back, block_of(want), "clone {n} block {block}");
        }
    }
}
