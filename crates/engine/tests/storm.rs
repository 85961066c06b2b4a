//! Many writes in flight, flushes and snapshots between them, and a power failure: what was flushed is there, and whatever is
//! there implies everything that was answered before it was asked for.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::collections::BTreeMap;

use keyframe_engine::units::{BLOCK, Bytes};
use keyframe_engine::{Access, IoBuf, Op, PlantedBug, Pool, Queue, Volume};
use support::driver::{check_clean, new_disk, open, sector_of};
use support::{Rng, env};

const VOLUME: u64 = 120;
const DEPTH: usize = 24;

#[derive(Clone, Copy)]
struct Write {
    block: u64,
    blocks: u64,
    stamp: u64,
    asked: u64,
    answered: Option<u64>,
}

struct Storm {
    rng: Rng,
    clock: u64,
    writes: Vec<Write>,
    /// Token to index in `writes`, or none for a flush.
    in_flight: BTreeMap<u64, Option<usize>>,
    /// For each flush in flight, the clock when it was asked for.
    flushes: BTreeMap<u64, u64>,
    durable: u64,
    snapshots: Vec<(String, u64, u64)>,
}

impl Storm {
    fn busy(&self, from: u64, to: u64) -> bool {
        self.in_flight.values().flatten().any(|i| {
            let w = &self.writes[*i];
            w.block < to && from < w.block + w.blocks
        })
    }

    fn submit(&mut self, queue: &mut Queue, volume: &Volume) {
        self.clock += 1;
        let token = self.clock;
        if self.rng.one_in(12) {
            self.in_flight.insert(token, None);
            self.flushes.insert(token, self.clock);
            return queue.submit(volume, token, Op::Flush);
        }
        let block = self.rng.below(VOLUME);
        let blocks = (1 + self.rng.below(4)).min(VOLUME - block);
        if self.busy(block, block + blocks) {
            return;
        }
        let bytes: Vec<u8> = (0..blocks * 8).flat_map(|_| sector_of(token)).collect();
        self.in_flight.insert(token, Some(self.writes.len()));
        self.writes.push(Write { block, blocks, stamp: token, asked: self.clock, answered: None });
        let fua = self.rng.one_in(20);
        queue.submit(volume, token, Op::Write { offset: block * BLOCK, buf: IoBuf::copy_of(&bytes), fua });
    }

    /// Takes answers; false when the power has failed.
    fn collect(&mut self, queue: &mut Queue) -> bool {
        let mut done = vec![];
        queue.poll(&mut done);
        for answer in done {
            self.clock += 1;
            if answer.result.is_err() {
                return false;
            }
            match self.in_flight.remove(&answer.token).flatten() {
                Some(i) => self.writes[i].answered = Some(self.clock),
                None => {
                    let asked = self.flushes.remove(&answer.token).unwrap();
                    self.durable = self.durable.max(asked);
                }
            }
        }
        true
    }

    /// The contents of a version must be a state that respects the order of questions and answers.
    fn check(&self, what: &str, stamps: &[u64], at_least: u64, at_most: u64) {
        let index = |stamp: u64| self.writes.iter().position(|w| w.stamp == stamp).expect("a stamp nobody wrote");
        let visible: Vec<Option<usize>> = stamps.iter().map(|s| (*s != 0).then(|| index(*s))).collect();
        let newest_asked = visible.iter().flatten().map(|i| self.writes[*i].asked).max().unwrap_or(0);
        assert!(newest_asked <= at_most, "{what}: holds a write asked for later");
        for (i, write) in self.writes.iter().enumerate() {
            let Some(answered) = write.answered else { continue };
            if answered >= newest_asked.max(at_least) {
                continue;
            }
            for block in write.block..write.block + write.blocks {
                let there = visible[block as usize];
                assert!(
                    there.is_some_and(|t| self.writes[t].asked >= write.asked),
                    "{what}: block {block} lacks write {i} (stamp {}), answered at {answered}, \
                     but something asked for at {newest_asked} is there or {at_least} was durable",
                    write.stamp
                );
            }
        }
    }
}

fn stamps(pool: &Pool, target: &str) -> Vec<u64> {
    let volume = pool.open_volume(target, Access::ReadOnly).unwrap();
    let mut bytes = vec![0; volume.size().0 as usize];
    volume.read_at(&mut bytes, 0).unwrap();
    bytes
        .chunks_exact(BLOCK as usize)
        .map(|block| {
            let stamp = u64::from_le_bytes(block[..8].try_into().unwrap()) / 64;
            assert!(block.chunks_exact(512).all(|s| s == sector_of(stamp)), "a torn block");
            stamp
        })
        .collect()
}

fn storm(seed: u64) {
    let disk = new_disk(seed);
    let pool = open(&disk, PlantedBug::None).unwrap();
    pool.create_volume("v", Bytes(VOLUME * BLOCK)).unwrap();
    let volume = pool.open_volume("v", Access::ReadWrite).unwrap();
    let mut queue = pool.queue().unwrap();
    let mut storm = Storm {
        rng: Rng::new(seed),
        clock: 0,
        writes: vec![],
        in_flight: BTreeMap::new(),
        flushes: BTreeMap::new(),
        durable: 0,
        snapshots: vec![],
    };
    disk.crash_after(20 + storm.rng.below(400));
    loop {
        while storm.in_flight.len() < DEPTH && !storm.rng.one_in(8) {
            storm.submit(&mut queue, &volume);
        }
        let mut alive = storm.collect(&mut queue);
        while alive && queue.is_committing() {
            alive = storm.collect(&mut queue);
        }
        if alive && storm.rng.one_in(6) {
            alive = pool.step().is_ok();
        }
        if alive && storm.rng.one_in(25) {
            let name = format!("s{}", storm.snapshots.len());
            let before = storm.clock;
            alive = pool.snapshot(&[("v".into(), name.clone())]).is_ok();
            storm.clock += 1;
            if alive {
                storm.durable = storm.durable.max(before);
                storm.snapshots.push((name, before, storm.clock));
            }
        }
        if !alive || disk.is_dead() {
            break;
        }
    }
    drop((queue, volume, pool));
    let disk = disk.after_power_loss();
    let pool = open(&disk, PlantedBug::None).unwrap();
    storm.check("head", &stamps(&pool, "v"), storm.durable, u64::MAX);
    for (name, before, after) in &storm.snapshots {
        storm.check(name, &stamps(&pool, &format!("v@{name}")), *before, *after);
    }
    check_clean(&disk);
}

#[test]
fn answers_imply_what_came_before_them() {
    let first = env("KEYFRAME_SEED", 1);
    for seed in first..first + env("KEYFRAME_SEEDS", 500) {
        println!("seed {seed}");
        storm(seed);
    }
}
