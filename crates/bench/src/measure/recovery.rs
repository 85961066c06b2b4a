//! How long a pool needs to be there again when its server died with as much in the journal as the journal takes.

use std::time::Instant;

use anyhow::Result;
use keyframe_engine::{Access, OpenOptions};

use super::Bench;
use crate::bed::Bed;
use crate::figure::{Figure, Unit};
use crate::load::{End, Kind, Load, Order, run as load};
use crate::plan::Scale;
use crate::report::{Report, Row, Target};

/// How full; beyond it, writers would wait for a checkpoint that nobody takes here.
const FULL: u64 = 85;
/// Writes between two looks.
const BATCH: u64 = 4000;

pub(super) fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    let path = bench.place.file("pool");
    // The journal has a 32nd of a pool, 15 MiB at most.
    let (pool, size) = match bench.plan.scale {
        Scale::Quick => (256 << 20, 64 << 20),
        _ => (bench.plan.pool, bench.plan.volume),
    };
    let bed = Bed::make(&path, pool)?;
    bed.volume("disk", size)?;
    bed.close()?;
    let options = OpenOptions { background: false, ..OpenOptions::default() };
    let bed = Bed::open(&path, &options)?;
    let volume = bed.pool.open_volume("disk", Access::ReadWrite)?;
    let mut writes = 0;
    while bed.pool.info().journal_percent < FULL {
        let end = End::Count(BATCH);
        let batch = Load { kind: Kind::Write, order: Order::Random, size: 4096, depth: 32, end, seed: 70 + writes };
        load(&bed.pool, &volume, &batch)?;
        volume.flush()?;
        writes += BATCH;
    }
    let full = bed.pool.info().journal_percent;
    // Without a background worker, letting go of a pool takes no checkpoint: a crash.
    drop((volume, bed));
    let (mut times, mut groups) = (Vec::new(), 0);
    for _ in 0..3 {
        let start = Instant::now();
        let bed = Bed::open(&path, &options)?;
        times.push(start.elapsed().as_secs_f64());
        groups = bed.pool.replayed_groups();
    }
    let what = format!("open with the journal {full} % full: {writes} writes in {groups} groups");
    let row = Row::new(what, Figure::new(Unit::Time, times)).target(Target::AtMost(Unit::Time, 2.0));
    report.row(row);

    Bed::open(&path, &OpenOptions::default())?.close()?;
    let start = Instant::now();
    let bed = Bed::open(&path, &options)?;
    let clean = start.elapsed().as_secs_f64();
    report.row(Row::new("open after an orderly end", Figure::one(Unit::Time, clean)));
    drop(bed);
    Ok(())
}
