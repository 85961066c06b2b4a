//! Clones and deletions: what the caller waits for, what is written, what is reclaimed, and whether guests notice.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use keyframe_engine::units::Bytes;
use keyframe_engine::{Access, Pool, Volume};

use super::Bench;
use crate::bed::{Bed, snapshots, write_blocks};
use crate::figure::{Figure, Unit};
use crate::load::{End, Kind, Load, Order, run as load};
use crate::report::{Report, Row, Target};
use crate::rng::Rng;

const PATIENCE: Duration = Duration::from_secs(180);
/// Clones made to be timed.
const CLONES: u64 = 50;
const COMMAND: Target = Target::AtMost(Unit::Time, 0.010);

pub(super) fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    let bed = Bed::make(&bench.place.file("pool"), bench.plan.pool)?;
    // Guests that notice or do not.
    let guest = bed.volume("guest", bench.plan.volume / 4)?;
    let disk = bed.volume("disk", bench.plan.volume / 2)?;
    snapshots(&bed.pool, &disk, bench.plan.many, 4, 60)?;
    clones(bench, &bed, report)?;
    deletions(bench, &bed, report)?;
    proportion(&bed, &disk, report)?;
    golden(bench, &bed, &guest, report)?;
    under_load(&bed, &guest, &disk, report)
}

fn seconds(times: &[Duration]) -> Figure {
    Figure::new(Unit::Time, times.iter().map(Duration::as_secs_f64))
}

fn clones(bench: &Bench, bed: &Bed, report: &mut Report) -> Result<()> {
    let mut rng = Rng::new(61);
    let before = bed.probe.counts();
    let mut times = Vec::new();
    for n in 0..CLONES {
        let source = format!("disk@s60-{}", rng.below(bench.plan.many));
        let start = Instant::now();
        bed.pool.clone_volume(&source, &format!("clone-{n}"), "")?;
        times.push(start.elapsed());
    }
    let cost = bed.probe.counts().since(before);
    let what = format!("clone of any of {} snapshots", bench.plan.many);
    report.row(Row::new(what, seconds(&times)).target(COMMAND));
    let data = Row::new("data bytes written by a clone", Figure::one(Unit::Bytes, cost.ring_bytes as f64));
    report.row(data.target(Target::AtMost(Unit::Bytes, 0.0)));
    let all = Figure::one(Unit::Bytes, cost.bytes() as f64 / CLONES as f64);
    report.row(Row::new("bytes written by a clone, its share of a checkpoint included", all));
    for n in 0..CLONES {
        bed.pool.delete_volume(&format!("clone-{n}"), false)?;
    }
    Ok(())
}

fn deletions(bench: &Bench, bed: &Bed, report: &mut Report) -> Result<()> {
    let mut rng = Rng::new(62);
    let mut times = Vec::new();
    for n in rng.permutation(bench.plan.many).into_iter().take(50) {
        let start = Instant::now();
        bed.pool.delete_snapshot(&format!("disk@s60-{n}"))?;
        times.push(start.elapsed());
    }
    report.row(Row::new("delete any snapshot: the command", seconds(&times)).target(COMMAND));
    let start = Instant::now();
    wait(&bed.pool)?;
    report.note(format!("Those {} deletions were reclaimed after {:?} more.", times.len(), start.elapsed()));
    Ok(())
}

fn wait(pool: &Pool) -> Result<()> {
    ensure!(pool.wait_reclaimed(PATIENCE), "reclaiming did not end within {PATIENCE:?}");
    Ok(())
}

/// Deletes a snapshot that alone holds `count` blocks; how long until they are reclaimed.
fn reclaim(bed: &Bed, disk: &Volume, name: &str, count: u64) -> Result<Duration> {
    let list = Rng::new(count).permutation(disk.size().0 / 4096);
    let list = &list[..count as usize];
    write_blocks(&bed.pool, disk, list, 32)?;
    bed.pool.snapshot(&[("disk".into(), name.to_owned())])?;
    write_blocks(&bed.pool, disk, list, 32)?;
    disk.flush()?;
    bed.pool.checkpoint()?;
    bed.pool.delete_snapshot(&format!("disk@{name}"))?;
    let start = Instant::now();
    wait(&bed.pool)?;
    Ok(start.elapsed())
}

fn proportion(bed: &Bed, disk: &Volume, report: &mut Report) -> Result<()> {
    let (few, lots) = (2_000, 20_000);
    let (mut small, mut large) = (Vec::new(), Vec::new());
    for n in 0..3 {
        small.push(reclaim(bed, disk, &format!("few-{n}"), few)?);
        large.push(reclaim(bed, disk, &format!("lots-{n}"), lots)?);
    }
    let row = Row::new(format!("reclaim a snapshot's {lots} blocks, idle pool"), seconds(&large));
    report.row(row.against(format!("{few} blocks"), seconds(&small)).target(Target::RatioAtMost(10.0)));
    Ok(())
}

/// A base snapshot under thousands of clones.
fn golden(bench: &Bench, bed: &Bed, guest: &Volume, report: &mut Report) -> Result<()> {
    let size = bench.plan.volume / 4;
    let golden = bed.volume("golden", size)?;
    bed.pool.snapshot(&[("golden".into(), "base".into())])?;
    let mut rng = Rng::new(63);
    let start = Instant::now();
    for n in 0..bench.plan.clones {
        let name = format!("vm-{n}");
        bed.pool.clone_volume("golden@base", &name, "")?;
        let clone = bed.pool.open_volume(&name, Access::ReadWrite)?;
        let list: Vec<u64> = (0..4).map(|_| rng.below(size / 4096)).collect();
        write_blocks(&bed.pool, &clone, &list, 4)?;
    }
    report.note(format!("{} clones with 4 writes each in {:.1} s.", bench.plan.clones, start.elapsed().as_secs_f64()));
    bed.pool.checkpoint()?;
    // The head of the golden image moves on, so that the base alone holds something for no clone.
    write_blocks(&bed.pool, &golden, &rng.permutation(size / 4096)[..1000], 32)?;
    drop(golden);
    let mut took = Duration::ZERO;
    let seen = beside(bed, guest, || {
        let start = Instant::now();
        bed.pool.delete_snapshot("golden@base")?;
        took = start.elapsed();
        Ok(())
    })?;
    let what = format!("delete a golden image with {} clones: the command", bench.plan.clones);
    report.row(Row::new(what, seconds(&[took])).target(COMMAND));
    report.row(Row::new("… until nothing is left to trim", seconds(&[seen.reclaim])));
    seen.report("delete a golden image", report);
    Ok(())
}

/// A snapshot that alone holds a whole volume.
fn under_load(bed: &Bed, guest: &Volume, disk: &Volume, report: &mut Report) -> Result<()> {
    let blocks = disk.size().0 / 4096;
    bed.pool.snapshot(&[("disk".into(), "whole".into())])?;
    write_blocks(&bed.pool, disk, &Rng::new(64).permutation(blocks), 32)?;
    bed.pool.snapshot(&[("disk".into(), "big".into())])?;
    write_blocks(&bed.pool, disk, &Rng::new(65).permutation(blocks), 32)?;
    bed.pool.checkpoint()?;
    let seen = beside(bed, guest, || Ok(bed.pool.delete_snapshot("disk@big")?))?;
    let what = format!("reclaim a snapshot that alone holds {} under load", Bytes(blocks * 4096));
    report.row(Row::new(what, seconds(&[seen.reclaim])));
    seen.report("reclaim it", report);
    Ok(())
}

struct Seen {
    reclaim: Duration,
    during: Option<(f64, f64)>,
    before: (f64, f64),
}

impl Seen {
    fn report(&self, what: &str, report: &mut Report) {
        let Some(during) = self.during else {
            report.note(format!("To {what} took {:?}: too short for a latency of others.", self.reclaim));
            return;
        };
        let figure = |seconds| Figure::one(Unit::Time, seconds);
        let row = Row::new(format!("p99 of another volume's writes while we {what}"), figure(during.0));
        report.row(row.against("before", figure(self.before.0)).target(Target::RatioAtMost(1.1)));
        let row = Row::new("… p99.9", figure(during.1));
        report.row(row.against("before", figure(self.before.1)));
    }
}

/// What a writer at queue depth 4 sees before an act, and from the act until everything is reclaimed.
fn beside(bed: &Bed, guest: &Volume, mut act: impl FnMut() -> Result<()>) -> Result<Seen> {
    wait(&bed.pool)?;
    let told = AtomicBool::new(false);
    let writer =
        Load { kind: Kind::Write, order: Order::Random, size: 4096, depth: 4, end: End::Told(&told), seed: 66 };
    let mut span = (Instant::now(), Instant::now());
    let outcome = std::thread::scope(|scope| {
        let running = scope.spawn(|| load(&bed.pool, guest, &writer));
        std::thread::sleep(Duration::from_secs(3));
        span.0 = Instant::now();
        let acted = act().and_then(|()| wait(&bed.pool));
        span.1 = Instant::now();
        told.store(true, Ordering::Relaxed);
        let outcome = running.join().ok().context("the writer panicked")?;
        acted.and(outcome)
    })?;
    let split = |keep: &dyn Fn(Instant) -> bool| {
        let samples: Vec<_> = outcome.samples.iter().copied().filter(|s| keep(s.answered)).collect();
        let part = outcome.of(samples);
        (part.samples.len() >= 1000).then(|| (part.percentile(0.99), part.percentile(0.999)))
    };
    let during = split(&|at| at >= span.0 && at <= span.1);
    let before = split(&|at| at < span.0).context("the writer hardly wrote")?;
    Ok(Seen { reclaim: span.1 - span.0, during, before })
}
