//! Pools to measure on: reserved and written beforehand, like the raw files they are compared with.

use std::fs::OpenOptions as FileOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use keyframe_engine::device::{Device, FileDevice};
use keyframe_engine::units::Bytes;
use keyframe_engine::{Access, CreateOptions, IoBuf, IoMode, OpenOptions, Pool, Preallocation, Volume};

use crate::load::{End, Kind, Load, Order, run};
use crate::probe::Probe;
use crate::rng::Rng;

const MEBIBYTE: u64 = 1 << 20;

/// A pool whose device is counted.
pub(crate) struct Bed {
    pub(crate) pool: Pool,
    pub(crate) probe: Arc<Probe>,
}

impl Bed {
    /// A new pool in `path`.
    pub(crate) fn make(path: &Path, size: u64) -> Result<Bed> {
        create(path, size)?;
        Bed::open(path, &OpenOptions::default())
    }

    pub(crate) fn open(path: &Path, options: &OpenOptions) -> Result<Bed> {
        let device: Arc<dyn Device> = Arc::new(FileDevice::open(path, IoMode::Auto)?);
        let probe = Probe::new(device);
        let pool = Pool::open_on(Arc::clone(&probe) as Arc<dyn Device>, path, options)?;
        Ok(Bed { pool, probe })
    }

    /// Checkpoints, closes, and lets go of the file.
    pub(crate) fn close(self) -> Result<()> {
        Ok(self.pool.close()?)
    }

    /// A new volume with every block written.
    pub(crate) fn volume(&self, name: &str, size: u64) -> Result<Volume> {
        self.pool.create_volume(name, Bytes(size))?;
        let volume = self.pool.open_volume(name, Access::ReadWrite)?;
        fill(&self.pool, &volume)?;
        Ok(volume)
    }
}

/// A new, fully written pool file.
fn create(path: &Path, size: u64) -> Result<()> {
    Ok(Pool::create(path, &CreateOptions { size: Bytes(size), preallocation: Preallocation::Full })?)
}

/// Writes every block of a volume, in order.
pub(crate) fn fill(pool: &Pool, volume: &Volume) -> Result<()> {
    let count = volume.size().0 / MEBIBYTE;
    let load =
        Load { kind: Kind::Write, order: Order::Sequential, size: MEBIBYTE, depth: 4, end: End::Count(count), seed: 1 };
    run(pool, volume, &load)?;
    volume.flush()?;
    pool.checkpoint()?;
    Ok(())
}

/// Writes `list`ed 4 KiB blocks of a volume.
pub(crate) fn write_blocks(pool: &Pool, volume: &Volume, list: &[u64], depth: usize) -> Result<()> {
    let end = End::Count(list.len() as u64);
    let load = Load { kind: Kind::Write, order: Order::Listed(list), size: 4096, depth, end, seed: 2 };
    run(pool, volume, &load).map(drop)
}

/// Takes `count` snapshots of the volume `name`, with `writes` random writes before each.
pub(crate) fn snapshots(pool: &Pool, volume: &Volume, count: u64, writes: u64, seed: u64) -> Result<()> {
    let blocks = volume.size().0 / 4096;
    let mut rng = Rng::new(seed);
    for n in 0..count {
        let list: Vec<u64> = (0..writes).map(|_| rng.below(blocks)).collect();
        if writes > 0 {
            write_blocks(pool, volume, &list, list.len())?;
        }
        pool.snapshot(&[(volume.name().to_owned(), format!("s{seed}-{n}"))])?;
    }
    Ok(())
}

/// A raw file with every block written.
pub(crate) fn raw_file(path: PathBuf, size: u64) -> Result<PathBuf> {
    let mut options = FileOptions::new();
    options.write(true).create_new(true).custom_flags(libc::O_DIRECT);
    let mut file = options.open(&path).with_context(|| format!("create {}", path.display()))?;
    let mut buf = IoBuf::zeroed(MEBIBYTE as usize);
    let mut rng = Rng::new(3);
    for _ in 0..size / MEBIBYTE {
        rng.fill(&mut buf[..4096]);
        file.write_all(&buf).with_context(|| format!("write {}", path.display()))?;
    }
    file.sync_all()?;
    Ok(path)
}
