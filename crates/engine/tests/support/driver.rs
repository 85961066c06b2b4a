//! Runs random operations on a pool and on the oracle, and compares the two.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use keyframe_engine::units::{BLOCK, Bytes};
use keyframe_engine::{Access, OpenOptions, PlantedBug, Pool, check_on};

use super::Rng;
use super::oracle::{Map, Oracle, SECTORS};
use super::sim::SimDisk;

/// Blocks of the volumes.
pub const BLOCKS: u64 = 200;
/// Blocks of the pool.
pub const POOL: u64 = 4096;

pub fn options(planted: PlantedBug) -> OpenOptions {
    OpenOptions { cache: Bytes(0), background: false, planted, ..OpenOptions::default() }
}

pub fn open(disk: &Arc<SimDisk>, planted: PlantedBug) -> keyframe_engine::Result<Pool> {
    Pool::open_on(Arc::clone(disk) as _, Path::new("sim"), &options(planted))
}

pub fn new_disk(seed: u64) -> Arc<SimDisk> {
    let disk = SimDisk::new(POOL * BLOCK, seed);
    Pool::format(&*disk, POOL).unwrap();
    disk
}

/// One operation, chosen and described before it runs.
#[derive(Clone, Debug)]
pub enum Op {
    Create(String),
    Write { volume: String, sector: u64, stamps: Vec<u64> },
    Punch { volume: String, block: u64, count: u64, zero: bool },
    Flush(String),
    Snapshot(Vec<(String, String)>),
    Clone { source: String, snapshot: String, name: String },
    CloneLive { source: String, via: String, name: String },
    Revert { volume: String, snapshot: String, keep: Option<String> },
    DeleteSnapshot { volume: String, snapshot: String },
    DeleteVolume(String),
    Rename { volume: String, name: String },
    Resize { volume: String, blocks: u64 },
    Background(u64),
    Checkpoint,
}

pub struct Driver {
    pub pool: Pool,
    pub oracle: Oracle,
    pub rng: Rng,
    stamp: u64,
    name: u64,
}

impl Driver {
    pub fn new(pool: Pool, rng: Rng) -> Driver {
        Driver { pool, oracle: Oracle::default(), rng, stamp: 0, name: 0 }
    }

    /// Names and stamps used before a crash must not be used again.
    pub fn skip_names(&mut self, by: u64) {
        self.name += by;
        self.stamp += by * 1_000_000;
    }

    fn fresh_name(&mut self, prefix: &str) -> String {
        self.name += 1;
        format!("{prefix}{}", self.name)
    }

    pub fn choose(&mut self) -> Op {
        let volumes: Vec<String> = self.oracle.volumes.keys().cloned().collect();
        if volumes.is_empty() {
            return Op::Create(self.fresh_name("v"));
        }
        let volume = self.rng.pick(&volumes).clone();
        let blocks = self.oracle.volumes[&volume].head.len() as u64;
        let snapshots: Vec<(String, String)> = self
            .oracle
            .volumes
            .iter()
            .flat_map(|(v, volume)| volume.snapshots.iter().map(move |(s, _)| (v.clone(), s.clone())))
            .collect();
        let many = self.oracle.versions().len() > 24;
        match self.rng.below(40) {
            0..=13 => {
                // Few hot places, so that versions overlap.
                let hot = if self.rng.one_in(3) { blocks } else { blocks.min(40) };
                let whole = !self.rng.one_in(4);
                let sector = if whole { self.rng.below(hot) * 8 } else { self.rng.below(hot * 8) };
                let len = if whole { 8 * (1 + self.rng.below(6)) } else { 1 + self.rng.below(20) };
                let len = len.min(blocks * 8 - sector);
                let stamps = (0..len).map(|i| self.stamp + i + 1).collect();
                self.stamp += len;
                Op::Write { volume, sector, stamps }
            }
            14..=16 => {
                let block = self.rng.below(blocks);
                let longest = if self.rng.one_in(3) { blocks } else { 8 };
                let count = (1 + self.rng.below(longest)).min(blocks - block);
                Op::Punch { volume, block, count, zero: self.rng.one_in(2) }
            }
            17 => Op::Flush(volume),
            18..=21 if !many => {
                let name = self.fresh_name("s");
                let mut targets = vec![(volume.clone(), name.clone())];
                for other in volumes {
                    if other != volume && self.rng.one_in(4) {
                        targets.push((other, name.clone()));
                    }
                }
                Op::Snapshot(targets)
            }
            22..=23 if !many && !snapshots.is_empty() => {
                let (source, snapshot) = self.rng.pick(&snapshots).clone();
                Op::Clone { source, snapshot, name: self.fresh_name("c") }
            }
            24 if !many => Op::CloneLive { source: volume, via: self.fresh_name("l"), name: self.fresh_name("c") },
            25..=26 if !snapshots.is_empty() => {
                let (volume, snapshot) = self.rng.pick(&snapshots).clone();
                let keep = (!many && self.rng.one_in(2)).then(|| self.fresh_name("k"));
                Op::Revert { volume, snapshot, keep }
            }
            27..=31 if !snapshots.is_empty() => {
                let (volume, snapshot) = self.rng.pick(&snapshots).clone();
                Op::DeleteSnapshot { volume, snapshot }
            }
            32 if volumes.len() > 1 => Op::DeleteVolume(volume),
            33 => Op::Rename { volume, name: self.fresh_name("r") },
            34 => Op::Resize { volume, blocks: 1 + self.rng.below(BLOCKS + 60) },
            35 => Op::Checkpoint,
            36 if volumes.len() < 4 => Op::Create(self.fresh_name("v")),
            _ => Op::Background(1 + self.rng.below(30)),
        }
    }

    /// Runs an operation on the pool alone.
    pub fn run(&self, op: &Op) -> keyframe_engine::Result<()> {
        let pool = &self.pool;
        match op {
            Op::Create(name) => pool.create_volume(name, Bytes(BLOCKS * BLOCK)),
            Op::Write { volume, sector, stamps } => {
                let bytes: Vec<u8> = stamps.iter().flat_map(|s| sector_of(*s)).collect();
                pool.open_volume(volume, Access::ReadWrite)?.write_at(&bytes, sector * 512)
            }
            Op::Punch { volume, block, count, zero } => {
                let volume = pool.open_volume(volume, Access::ReadWrite)?;
                let (offset, len) = (block * BLOCK, count * BLOCK);
                if *zero { volume.write_zeroes(offset, len) } else { volume.discard(offset, len) }
            }
            Op::Flush(volume) => pool.open_volume(volume, Access::ReadWrite)?.flush(),
            Op::Snapshot(targets) => pool.snapshot(targets).map(|_| ()),
            Op::Clone { source, snapshot, name } => pool.clone_volume(&format!("{source}@{snapshot}"), name, ""),
            Op::CloneLive { source, via, name } => pool.clone_volume(source, name, via),
            Op::Revert { volume, snapshot, keep } => pool.revert(volume, snapshot, keep.as_deref()),
            Op::DeleteSnapshot { volume, snapshot } => pool.delete_snapshot(&format!("{volume}@{snapshot}")),
            Op::DeleteVolume(volume) => pool.delete_volume(volume, true),
            Op::Rename { volume, name } => pool.rename(volume, name),
            Op::Resize { volume, blocks } => pool.resize_volume(volume, Bytes(blocks * BLOCK)),
            Op::Background(steps) => {
                for _ in 0..*steps {
                    if !pool.step()? {
                        break;
                    }
                }
                Ok(())
            }
            Op::Checkpoint => pool.checkpoint(),
        }
    }

    /// Runs an operation on the oracle alone.
    pub fn model(oracle: &mut Oracle, op: &Op) {
        match op {
            Op::Create(name) => oracle.create(name, BLOCKS),
            Op::Write { volume, sector, stamps } => oracle.write(volume, *sector, stamps),
            Op::Punch { volume, block, count, .. } => oracle.punch(volume, *block, *count),
            Op::Snapshot(targets) => targets.iter().for_each(|(v, s)| oracle.snapshot(v, s)),
            Op::Clone { source, snapshot, name } => oracle.clone_of(source, snapshot, name),
            Op::CloneLive { source, via, name } => {
                oracle.snapshot(source, via);
                oracle.clone_of(source, via, name);
            }
            Op::Revert { volume, snapshot, keep } => oracle.revert(volume, snapshot, keep.as_deref()),
            Op::DeleteSnapshot { volume, snapshot } => oracle.delete_snapshot(volume, snapshot),
            Op::DeleteVolume(volume) => oracle.delete_volume(volume),
            Op::Rename { volume, name } => {
                let v = oracle.volumes.remove(volume).expect("oracle knows the volume");
                oracle.volumes.insert(name.clone(), v);
            }
            Op::Resize { volume, blocks } => oracle.resize(volume, *blocks),
            Op::Flush(_) | Op::Background(_) | Op::Checkpoint => {}
        }
    }

    /// Whether everything before this operation is durable once it has returned.
    pub fn makes_durable(op: &Op) -> bool {
        !matches!(op, Op::Write { .. } | Op::Punch { .. } | Op::Background(_))
    }
}

/// The bytes of a stamped sector.
pub fn sector_of(stamp: u64) -> [u8; 512] {
    let mut out = [0; 512];
    if stamp != 0 {
        out.chunks_exact_mut(8)
            .enumerate()
            .for_each(|(i, w)| w.copy_from_slice(&(stamp * 64 + i as u64).to_le_bytes()));
    }
    out
}

/// Every version of the pool as the oracle would write it, without identities.
pub fn contents(pool: &Pool) -> keyframe_engine::Result<Vec<(String, Vec<u64>)>> {
    let mut names = vec![];
    for volume in pool.volumes(None, usize::MAX)? {
        names.push(volume.name.clone());
        names.extend(pool.snapshots(&volume.name, None, usize::MAX)?.into_iter().map(|s| s.name));
    }
    let mut out = vec![];
    for name in names {
        let volume = pool.open_volume(&name, Access::ReadOnly)?;
        let mut bytes = vec![0; volume.size().0 as usize];
        volume.read_at(&mut bytes, 0)?;
        let stamps = bytes
            .chunks_exact(512)
            .map(|sector| {
                let stamp = u64::from_le_bytes(sector[..8].try_into().unwrap()) / 64;
                assert!(sector == sector_of(stamp), "{name}: a sector is a mixture");
                stamp
            })
            .collect();
        out.push((name, stamps));
    }
    out.sort();
    Ok(out)
}

/// The same of the oracle.
pub fn expected(oracle: &Oracle) -> Vec<(String, Vec<u64>)> {
    let stamps = |map: &Map| map.iter().flat_map(|b| b.map_or([0; SECTORS], |b| b.stamps)).collect();
    let mut out: Vec<_> = oracle.versions().into_iter().map(|(name, map)| (name, stamps(map))).collect();
    out.sort();
    out
}

/// The pool's own check must find nothing. Returns the data blocks in use.
pub fn check_clean(disk: &Arc<SimDisk>) -> u64 {
    let report = check_on(disk.copy() as _, &options(PlantedBug::None), &mut |_, _| {}).expect("check runs");
    assert!(report.is_clean(), "check: {:#?}", report.errors);
    report.data_blocks
}

/// Compares everything: contents, space, reclaim, check.
pub fn compare(driver: &Driver, disk: &Arc<SimDisk>) {
    assert_eq!(contents(&driver.pool).unwrap(), expected(&driver.oracle));
    for (name, unique) in driver.oracle.unique() {
        let space = driver.pool.space(&name).unwrap();
        assert_eq!(space.unique, Bytes(unique * BLOCK), "unique space of {name}");
    }
    let targets: Vec<String> =
        driver.oracle.unique().into_iter().map(|(name, _)| name).filter(|n| n.len() % 2 == 0).collect();
    let freed = driver.pool.would_free(&targets).unwrap();
    assert_eq!(freed, Bytes(driver.oracle.held_only_by(&targets) * BLOCK), "deleting {targets:?}");
    let pending = driver.pool.pending_reclaim().unwrap();
    driver.pool.checkpoint().unwrap();
    let before = check_clean(disk);
    assert_eq!(
        before * BLOCK,
        pending.0 + driver.oracle.distinct() * BLOCK,
        "data in use is what versions hold and what is pending"
    );
    driver.pool.reclaim().unwrap();
    assert!(driver.pool.wait_reclaimed(Duration::ZERO));
    assert_eq!(contents(&driver.pool).unwrap(), expected(&driver.oracle), "reclaiming changed something");
    driver.pool.checkpoint().unwrap();
    assert_eq!(check_clean(disk), driver.oracle.distinct(), "data blocks kept that nobody refers to");
}
