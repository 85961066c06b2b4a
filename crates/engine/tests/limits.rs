//! What happens at the edges: a full pool, a small cache, damaged bytes, wrong sizes, growing.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use keyframe_engine::device::Device;
use keyframe_engine::units::{BLOCK, Bytes};
use keyframe_engine::{Access, ErrorKind, IoBuf, OpenOptions, PlantedBug, Pool, check_on};
use support::Rng;
use support::driver::{check_clean, new_disk, open, options};
use support::sim::SimDisk;

/// A pool with a thread of its own, so that waiting for space can end.
fn live(disk: &Arc<SimDisk>) -> Pool {
    let options = OpenOptions { background: true, ..options(PlantedBug::None) };
    Pool::open_on(Arc::clone(disk) as _, std::path::Path::new("sim"), &options).unwrap()
}

fn block_of(n: u64) -> Vec<u8> {
    (0..BLOCK / 8).flat_map(|i| (n * 1000 + i).to_le_bytes()).collect()
}

#[test]
fn a_full_pool_refuses_writes_and_goes_on_after_a_deletion() {
    let disk = new_disk(1);
    let pool = live(&disk);
    pool.create_volume("v", Bytes(64 << 20)).unwrap();
    pool.create_volume("w", Bytes(1 << 20)).unwrap();
    let volume = pool.open_volume("v", Access::ReadWrite).unwrap();
    let mut written = 0;
    let refused = loop {
        if written == 1000 {
            pool.snapshot(&[("v".into(), "early".into())]).unwrap();
        }
        match volume.write_at(&block_of(written), written * BLOCK) {
            Ok(()) => written += 1,
            Err(e) => break e,
        }
    };
    assert_eq!(refused.kind(), ErrorKind::NoSpace, "{refused}");
    assert!(written > 3000, "only {written} blocks fit into a pool of 4096");
    // No new versions on a full pool, but reading, flushing and deleting work.
    assert_eq!(pool.snapshot(&[("w".into(), "s".into())]).unwrap_err().kind(), ErrorKind::NoSpace);
    volume.flush().unwrap();
    let mut back = vec![0; BLOCK as usize];
    for n in 0..written {
        volume.read_at(&mut back, n * BLOCK).unwrap();
        assert_eq!(back, block_of(n), "block {n}");
    }
    volume.discard(0, 2000 * BLOCK).unwrap();
    // The snapshot still holds half of it; what it does not hold can be filled again.
    volume.write_at(&block_of(7), 0).unwrap();
    pool.delete_snapshot("v@early").unwrap();
    assert!(pool.wait_reclaimed(Duration::from_secs(60)));
    for n in 0..1500 {
        volume.write_at(&block_of(n + 5), n * BLOCK).unwrap_or_else(|e| panic!("block {n} after deleting: {e}"));
    }
    drop(volume);
    pool.close().unwrap();
    check_clean(&disk);
}

#[test]
fn guests_that_fill_a_pool_together_leave_its_reserve() {
    for seed in 10..20 {
        let disk = new_disk(seed);
        let pool = live(&disk);
        let names: Vec<_> = (0..4).map(|n| format!("v{n}")).collect();
        for name in &names {
            pool.create_volume(name, Bytes(64 << 20)).unwrap();
        }
        std::thread::scope(|scope| {
            for name in &names {
                let volume = pool.open_volume(name, Access::ReadWrite).unwrap();
                scope.spawn(move || {
                    let refused = (0..).find_map(|n| volume.write_at(&block_of(n), n * BLOCK).err()).unwrap();
                    assert_eq!(refused.kind(), ErrorKind::NoSpace, "{refused}");
                });
            }
        });
        // What the last writes left must do for this, whatever each of them held for its next ones.
        pool.checkpoint().unwrap();
        pool.delete_volume("v0", false).unwrap();
        pool.close().unwrap();
        check_clean(&disk);
    }
}

#[test]
fn a_storm_on_a_full_pool_is_refused_and_never_stops_it() {
    for seed in 0..3u64 {
        let disk = new_disk(100 + seed);
        let pool = live(&disk);
        for n in 0..8 {
            pool.create_volume(&format!("v{n}"), Bytes(16 << 20)).unwrap();
        }
        std::thread::scope(|scope| {
            for n in 0..8u64 {
                let (pool, volume) = (&pool, pool.open_volume(&format!("v{n}"), Access::ReadWrite).unwrap());
                scope.spawn(move || {
                    let mut rng = Rng::new(seed * 100 + n);
                    for round in 0..200 {
                        let at = rng.below(volume.size().0 / 512 - 1024) * 512;
                        let len = (rng.below(512) as usize + 1) * 512;
                        let done = match rng.below(20) {
                            0 => pool.snapshot(&[(format!("v{n}"), format!("s{round}"))]).map(drop),
                            1 => volume.discard(at, len as u64),
                            2 => volume.flush(),
                            _ => volume.write_at(&vec![n as u8; len], at),
                        };
                        if let Err(e) = done {
                            assert_eq!(e.kind(), ErrorKind::NoSpace, "{e}");
                            if rng.below(3) == 0 {
                                for gone in 0..round {
                                    let deleted = pool.delete_snapshot(&format!("v{n}@s{gone}"));
                                    // Deleting is what helps a full pool, so it is never refused for want of space.
                                    assert!(
                                        deleted.as_ref().err().is_none_or(|e| e.kind() == ErrorKind::NotFound),
                                        "{deleted:?}"
                                    );
                                }
                            }
                        }
                    }
                });
            }
        });
        pool.checkpoint().unwrap();
        pool.close().unwrap();
        check_clean(&disk);
    }
}

#[test]
fn overwriting_a_nearly_full_pool_never_runs_out() {
    let disk = new_disk(2);
    let pool = live(&disk);
    pool.create_volume("v", Bytes(10 << 20)).unwrap();
    let volume = pool.open_volume("v", Access::ReadWrite).unwrap();
    let blocks = volume.size().0 / BLOCK;
    let mut rng = Rng::new(2);
    for n in 0..4 * blocks {
        let block = if n < blocks { n } else { rng.below(blocks) };
        volume.write_at(&block_of(n), block * BLOCK).unwrap_or_else(|e| panic!("write {n}: {e}"));
    }
    drop(volume);
    pool.close().unwrap();
    assert_eq!(check_clean(&disk), blocks);
}

#[test]
fn a_full_pool_that_grows_takes_writes_again() {
    let disk = new_disk(3);
    let pool = live(&disk);
    pool.create_volume("v", Bytes(64 << 20)).unwrap();
    let volume = pool.open_volume("v", Access::ReadWrite).unwrap();
    let mut n = 0;
    while volume.write_at(&block_of(n), n * BLOCK).is_ok() {
        n += 1;
    }
    assert_eq!(pool.grow(Some(Bytes(40 << 20))).unwrap(), Bytes(40 << 20));
    for more in n..n + 4000 {
        volume.write_at(&block_of(more), more * BLOCK).unwrap_or_else(|e| panic!("block {more} after growing: {e}"));
    }
    assert_eq!(pool.grow(Some(Bytes(16 << 20))).unwrap_err().kind(), ErrorKind::Invalid);
    drop(volume);
    pool.close().unwrap();
    assert_eq!(check_clean(&disk), n + 4000);
}

/// A pool with a volume, a snapshot and both closed and crashed states.
fn sample(closed: bool) -> Arc<SimDisk> {
    let disk = new_disk(4);
    let pool = open(&disk, PlantedBug::None).unwrap();
    pool.create_volume("v", Bytes(4 << 20)).unwrap();
    let volume = pool.open_volume("v", Access::ReadWrite).unwrap();
    for n in 0..100 {
        volume.write_at(&block_of(n), n * BLOCK).unwrap();
    }
    pool.snapshot(&[("v".into(), "s".into())]).unwrap();
    volume.write_at(&block_of(500), 0).unwrap();
    volume.flush().unwrap();
    drop(volume);
    if closed {
        pool.close().unwrap();
    }
    disk.copy()
}

fn open_error(disk: &Arc<SimDisk>) -> (ErrorKind, String) {
    let before = disk.fingerprint();
    let e = open(disk, PlantedBug::None).err().expect("the pool opens although it must not");
    assert_eq!(disk.fingerprint(), before, "a refused pool was written to");
    (e.kind(), e.to_string())
}

#[test]
fn a_damaged_superblock_is_survived_once_and_refused_twice() {
    for copy in [4, 5] {
        let disk = sample(true);
        disk.damage(copy * BLOCK + 100, 1);
        let pool = open(&disk, PlantedBug::None).unwrap();
        assert_eq!(pool.info().damaged_superblock, Some(copy as u8 - 4));
        pool.checkpoint().unwrap();
        drop(pool);
        check_clean(&disk);
    }
    let disk = sample(true);
    disk.damage(4 * BLOCK + 100, 1);
    disk.damage(5 * BLOCK + 100, 1);
    let (kind, text) = open_error(&disk);
    assert_eq!(kind, ErrorKind::Corrupt);
    assert!(text.contains("both superblocks"), "{text}");
}

#[test]
fn foreign_newer_truncated_and_empty_devices_are_told_apart() {
    let empty = SimDisk::new(0, 1);
    assert_eq!(open_error(&empty).0, ErrorKind::NotAPool);
    let foreign = SimDisk::new(64 << 20, 1);
    foreign.write_at(&IoBuf::copy_of(&[0x51; 65536]), 0).unwrap();
    assert_eq!(open_error(&foreign).0, ErrorKind::NotAPool);

    let disk = sample(true);
    for copy in [4, 5] {
        let mut block = disk.bytes(copy * BLOCK, 4096);
        block[8] = 99;
        let crc = crc32c::crc32c(&block[..4092]);
        block[4092..].copy_from_slice(&crc.to_le_bytes());
        disk.write_at(&block, copy * BLOCK).unwrap();
    }
    disk.sync().unwrap();
    let (kind, text) = open_error(&disk);
    assert_eq!(kind, ErrorKind::NewerFormat);
    assert!(text.contains("99"), "{text}");

    let disk = sample(true);
    disk.extend(10 << 20).unwrap();
    let (kind, text) = open_error(&disk);
    assert_eq!(kind, ErrorKind::NotAPool, "{text}");
}

/// Flips each stored byte of a region in turn: opening, reading and checking must notice or be right, and never panic.
#[test]
fn a_flipped_bit_anywhere_is_noticed_or_harmless() {
    for closed in [true, false] {
        let original = sample(closed);
        let used: Vec<u64> = original.fingerprint().into_keys().collect();
        let mut rng = Rng::new(9);
        let (mut noticed, mut harmless) = (0, 0);
        for _ in 0..600 {
            let disk = original.copy();
            let offset = rng.pick(&used) * 512 + rng.below(512);
            disk.damage(offset, 1 << rng.below(8));
            match judge(&disk, closed) {
                true => noticed += 1,
                false => harmless += 1,
            }
        }
        assert!(noticed > 200, "only {noticed} of 600 flips noticed, {harmless} harmless");
    }
}

/// Whether damage was noticed; panics if it went through as wrong data.
fn judge(disk: &Arc<SimDisk>, closed: bool) -> bool {
    let report = check_on(disk.copy() as _, &options(PlantedBug::None), &mut |_, _| {});
    let noticed = !report.is_ok_and(|r| r.is_clean());
    let Ok(pool) = open(disk, PlantedBug::None) else {
        assert!(noticed, "check is content with a pool that does not open");
        return true;
    };
    for (target, first) in [("v", 500), ("v@s", 0)] {
        let Ok(volume) = pool.open_volume(target, Access::ReadOnly) else {
            assert!(noticed, "check is content although {target} does not open");
            return true;
        };
        let mut back = vec![0; BLOCK as usize];
        for n in 0..100 {
            match volume.read_at(&mut back, n * BLOCK) {
                Ok(()) => {
                    // Damage to the last journal group of a pool that was not closed cannot be told from a power failure
                    // before it was durable: then its one write never happened. Nothing may ever be wrong, though.
                    let old = !closed && n == 0 && target == "v" && back == block_of(0);
                    let good = back == block_of(if n == 0 { first } else { n });
                    assert!(good || old, "{target}: block {n} is wrong and nobody said so");
                }
                Err(e) => {
                    assert_eq!(e.kind(), ErrorKind::Corrupt, "{e}");
                    assert!(noticed, "check is content although {target} cannot be read: {e}");
                    return true;
                }
            }
        }
    }
    noticed
}

#[test]
fn a_cache_far_smaller_than_the_map_is_only_slower() {
    let disk = SimDisk::new(1 << 30, 5);
    Pool::format(&*disk, (1 << 30) / BLOCK).unwrap();
    let pool = live(&disk);
    pool.create_volume("sparse", Bytes(1 << 40)).unwrap();
    let volume = pool.open_volume("sparse", Access::ReadWrite).unwrap();
    let places: Vec<u64> = {
        let mut rng = Rng::new(5);
        (0..6000).map(|_| rng.below((1 << 40) / BLOCK)).collect()
    };
    for (n, place) in places.iter().enumerate() {
        volume.write_at(&block_of(n as u64), place * BLOCK).unwrap();
    }
    let info = pool.info();
    assert!(info.cached_pages < 2 * 1024, "{} pages in a cache of 1024", info.cached_pages);
    let mut back = vec![0; BLOCK as usize];
    for (n, place) in places.iter().enumerate() {
        volume.read_at(&mut back, place * BLOCK).unwrap();
        assert_eq!(back, block_of(n as u64));
    }
    drop(volume);
    pool.close().unwrap();
    assert_eq!(check_clean(&disk), 6000);
}

#[test]
fn a_scrub_finds_damage_under_a_live_pool_and_names_who_is_affected() {
    let disk = sample(true);
    let pool = open(&disk, PlantedBug::None).unwrap();
    assert!(pool.scrub(&mut |_, _| {}).unwrap().is_clean());
    // Block 50 is shared by the head and the snapshot: find where it lies by its contents.
    let wanted = block_of(50);
    let place = (0..4096).find(|b| disk.bytes(b * BLOCK, 4096) == wanted).unwrap();
    disk.damage(place * BLOCK + 9, 4);
    let report = pool.scrub(&mut |_, _| {}).unwrap();
    assert_eq!(report.errors.len(), 1, "{:?}", report.errors);
    let text = &report.errors[0];
    assert!(text.contains("block 50") && text.contains("v@s") && text.contains("v,") | text.contains(", v"), "{text}");
    let volume = pool.open_volume("v", Access::ReadWrite).unwrap();
    let mut back = vec![0; BLOCK as usize];
    assert_eq!(volume.read_at(&mut back, 50 * BLOCK).unwrap_err().kind(), ErrorKind::Corrupt);
    // Overwriting heals the head; the snapshot stays damaged.
    volume.write_at(&wanted, 50 * BLOCK).unwrap();
    volume.read_at(&mut back, 50 * BLOCK).unwrap();
    assert_eq!(pool.scrub(&mut |_, _| {}).unwrap().errors.len(), 1);
}

#[test]
fn one_flush_is_one_sync() {
    let disk = new_disk(6);
    let pool = open(&disk, PlantedBug::None).unwrap();
    pool.create_volume("v", Bytes(1 << 20)).unwrap();
    let volume = pool.open_volume("v", Access::ReadWrite).unwrap();
    for n in 0..10 {
        volume.write_at(&block_of(n), n * BLOCK).unwrap();
        let before = disk.syncs();
        volume.flush().unwrap();
        assert_eq!(disk.syncs() - before, 1);
        volume.flush().unwrap();
        assert_eq!(disk.syncs() - before, 1, "a flush with nothing to flush costs nothing");
    }
}

/// Superblocks whose checksum is right and whose fields are not: refused or opened, never a panic or a huge allocation.
#[test]
fn a_superblock_of_garbage_with_a_good_checksum_is_survived() {
    let original = sample(true);
    let mut rng = Rng::new(11);
    for _ in 0..3000 {
        let disk = original.copy();
        let mut block = disk.bytes(4 * BLOCK, 4096);
        for _ in 0..1 + rng.below(3) {
            let at = 28 + rng.below(172) as usize;
            block[at] = if rng.one_in(2) { rng.next() as u8 } else { 0xff };
        }
        let crc = crc32c::crc32c(&block[..4092]);
        block[4092..].copy_from_slice(&crc.to_le_bytes());
        for copy in [4, 5] {
            disk.write_at(&block, copy * BLOCK).unwrap();
        }
        if let Ok(pool) = open(&disk, PlantedBug::None) {
            // Whatever it is now, asking is allowed to fail.
            for volume in pool.volumes(None, 10).unwrap_or_default() {
                if let Ok(volume) = pool.open_volume(&volume.name, Access::ReadOnly) {
                    let _any = volume.read_at(&mut [0; 4096], 0);
                }
            }
        }
        let _any = check_on(disk.copy() as _, &options(PlantedBug::None), &mut |_, _| {});
    }
}
