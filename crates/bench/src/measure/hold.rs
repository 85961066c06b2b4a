//! What a guest notices of a snapshot, at few snapshots and at many; and what the same costs with qcow2.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use keyframe_engine::Volume;

use super::Bench;
use crate::bed::{Bed, raw_file, snapshots};
use crate::figure::{Figure, Unit};
use crate::load::{End, Kind, Load, Order, Outcome, run as load};
use crate::report::{Report, Row, Target};
use crate::servers::{internal_snapshot, qcow2};

/// Snapshots taken, and flushes to compare with, at each stage.
const PROBES: u64 = 40;
/// Between a snapshot and the next flush.
const PAUSE: Duration = Duration::from_millis(10);

pub(super) fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    let plan = &bench.plan;
    let bed = Bed::make(&bench.place.file("pool"), plan.pool)?;
    let volume = bed.volume("disk", plan.volume)?;

    // The counted price of one, with nothing else going on.
    bed.pool.checkpoint()?;
    let before = bed.probe.counts();
    bed.pool.snapshot(&[("disk".into(), "first".into())])?;
    let cost = bed.probe.counts().since(before);
    let syncs = Figure::one(Unit::Count, cost.syncs as f64);
    report.row(Row::new("fdatasyncs of a snapshot", syncs).target(Target::AtMost(Unit::Count, 1.0)));
    report.row(Row::new("bytes written by a snapshot", Figure::one(Unit::Bytes, cost.bytes() as f64)));

    let mut first: Option<(Figure, Figure)> = None;
    let mut taken = 1;
    let started = Instant::now();
    for &stage in plan.stages {
        let more = stage.saturating_sub(taken);
        snapshots(&bed.pool, &volume, more, 2, stage)?;
        taken += more;
        let seen = probe(&bed, &volume, stage)?;
        taken += PROBES;
        let at = format!("at {stage} snapshots");
        let limit = Target::AtMost(Unit::Time, 0.001);
        report.row(Row::new(format!("I/O held, {at}"), seen.held.clone()).target(limit));
        let row = Row::new(format!("durable after, {at}"), seen.durable.clone());
        report.row(row.against("a flush under the same load", seen.flush));
        report.row(
            Row::new(format!("slowest write while one is taken, {at}"), seen.slowest)
                .against("while a flush runs", seen.slowest_flush),
        );
        match &first {
            None => first = Some((seen.held, seen.durable)),
            Some((held, durable)) => {
                let name = format!("at {} snapshots", plan.stages[0]);
                report.row(Row::new(format!("I/O held, {at}"), seen.held).against(name.clone(), held.clone()));
                report.row(Row::new(format!("durable after, {at}"), seen.durable).against(name, durable.clone()));
            }
        }
    }
    report.note(format!("{taken} snapshots in {:.1} s, with writes between them.", started.elapsed().as_secs_f64()));
    drop((volume, bed));

    let raw = raw_file(bench.place.file("raw"), plan.volume)?;
    let image = qcow2(&raw, bench.place.file("image.qcow2"))?;
    let times = (0..5).map(|n| Ok(internal_snapshot(&image, &format!("s{n}"))?.as_secs_f64()));
    let times = Figure::new(Unit::Time, times.collect::<Result<Vec<f64>>>()?);
    if let Some((_, durable)) = first {
        let row = Row::new(format!("durable after, at {} snapshots", plan.stages[0]), durable);
        report.row(row.against("qemu-img snapshot -c, idle image, whole command", times));
    }
    Ok(())
}

struct Seen {
    held: Figure,
    durable: Figure,
    flush: Figure,
    slowest: Figure,
    slowest_flush: Figure,
}

type Span = (Instant, Instant);

/// Snapshots and flushes in turn, under a writer.
fn probe(bed: &Bed, volume: &Volume, stage: u64) -> Result<Seen> {
    let told = AtomicBool::new(false);
    let writer =
        Load { kind: Kind::Write, order: Order::Random, size: 4096, depth: 8, end: End::Told(&told), seed: stage };
    let flusher = bed.pool.open_volume(volume.name(), keyframe_engine::Access::ReadWrite)?;
    let (mut held, mut durable, mut flushes) = (Vec::new(), Vec::new(), Vec::new());
    let (mut snapshot_spans, mut flush_spans): (Vec<Span>, Vec<Span>) = Default::default();
    let outcome: Outcome = std::thread::scope(|scope| {
        let running = scope.spawn(|| load(&bed.pool, volume, &writer));
        let mut act = || -> Result<()> {
            std::thread::sleep(10 * PAUSE);
            for n in 0..PROBES {
                let start = Instant::now();
                let report = bed.pool.snapshot(&[(volume.name().to_owned(), format!("p{stage}-{n}"))])?;
                snapshot_spans.push((start, Instant::now()));
                held.push(report.held.as_secs_f64());
                durable.push(report.total.as_secs_f64());
                std::thread::sleep(PAUSE);
                let start = Instant::now();
                flusher.flush()?;
                flush_spans.push((start, Instant::now()));
                flushes.push(start.elapsed().as_secs_f64());
                std::thread::sleep(PAUSE);
            }
            Ok(())
        };
        let acted = act();
        told.store(true, Ordering::Relaxed);
        let outcome = running.join().ok().context("the writer panicked")?;
        acted.and(outcome)
    })?;
    Ok(Seen {
        held: Figure::new(Unit::Time, held),
        durable: Figure::new(Unit::Time, durable),
        flush: Figure::new(Unit::Time, flushes),
        slowest: slowest(&outcome, &snapshot_spans),
        slowest_flush: slowest(&outcome, &flush_spans),
    })
}

/// Of the writes under way during each span, the longest.
fn slowest(outcome: &Outcome, spans: &[Span]) -> Figure {
    let longest = spans.iter().filter_map(|&(from, to)| {
        let during = outcome.samples.iter().filter(|s| s.answered >= from && s.answered - s.latency <= to);
        during.map(|s| s.latency.as_secs_f64()).max_by(f64::total_cmp)
    });
    Figure::new(Unit::Time, longest)
}
