//! A database's commit: write, make durable, and only then the next.

use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use keyframe_engine::IoBuf;

use super::{Bench, Contender, in_turn};
use crate::bed::{Bed, raw_file};
use crate::figure::{Figure, Unit};
use crate::load::{End, Kind, Load, run as load};
use crate::report::{Report, Row, Target};
use crate::rng::Rng;

pub(super) fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    let plan = &bench.plan;
    let size = plan.volume / 2;
    let file = raw_file(bench.place.file("raw"), size)?;
    let bed = Bed::make(&bench.place.file("pool"), plan.pool / 2)?;
    let volume = bed.volume("disk", size)?;
    let mut seed = 30;
    let fua: Contender = Box::new(|| {
        seed += 1;
        Ok(load(&bed.pool, &volume, &Load::random(Kind::DurableWrite, 1, plan.run, seed))?.iops())
    });
    let plain: Contender = Box::new(|| write_and_sync(&file, size, plan.run));
    // A disk's cache flush takes a different time every time: more rounds than elsewhere.
    let figures = in_turn(plan.rounds + 2, Unit::Iops, vec![fua, plain])?;
    let row = Row::new("write 4 KiB with FUA, one at a time", figures[0].clone());
    report.row(row.against("raw file, pwrite + fdatasync", figures[1].clone()).target(Target::RatioAtLeast(0.7)));

    const WRITES: u64 = 500;
    bed.pool.checkpoint()?;
    let before = bed.probe.counts();
    load(&bed.pool, &volume, &Load { end: End::Count(WRITES), ..Load::random(Kind::DurableWrite, 1, plan.run, 40) })?;
    let cost = bed.probe.counts().since(before);
    let each = |n: u64| n as f64 / WRITES as f64;
    let syncs = Row::new("fdatasyncs for each", Figure::one(Unit::Ratio, each(cost.syncs)));
    report.row(syncs.target(Target::AtMost(Unit::Ratio, 1.0)));
    report.row(Row::new("device writes for each", Figure::one(Unit::Ratio, each(cost.ring_writes))));
    report.row(Row::new("bytes written for each", Figure::one(Unit::Bytes, each(cost.bytes()))));

    let mut contenders: Vec<Contender> = Vec::new();
    for depth in [1, 8, 32] {
        let (bed, volume) = (&bed, &volume);
        contenders.push(Box::new(move || {
            Ok(load(&bed.pool, volume, &Load::random(Kind::DurableWrite, depth, plan.run / 2, depth as u64))?.iops())
        }));
    }
    let figures = in_turn(plan.rounds, Unit::Iops, contenders)?;
    for (figure, depth) in figures[1..].iter().zip([8, 32]) {
        let row = Row::new(format!("the same, {depth} at a time (group commit)"), figure.clone());
        report.row(row.against("one at a time", figures[0].clone()));
    }
    Ok(())
}

fn write_and_sync(path: &Path, size: u64, time: Duration) -> Result<f64> {
    let file = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(path).context("open the raw file")?;
    let mut buf = IoBuf::zeroed(4096);
    let mut rng = Rng::new(31);
    rng.fill(&mut buf);
    let (start, mut count) = (Instant::now(), 0u64);
    while start.elapsed() < time {
        file.write_all_at(&buf, rng.below(size / 4096) * 4096)?;
        file.sync_data()?;
        count += 1;
    }
    Ok(count as f64 / start.elapsed().as_secs_f64())
}
