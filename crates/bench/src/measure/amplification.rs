//! Everything written to the device, journal and checkpoints included, for each byte that a guest wrote.

use anyhow::Result;

use super::Bench;
use crate::bed::{Bed, snapshots};
use crate::figure::{Figure, Unit};
use crate::plan::Scale;
use crate::report::{Report, Row, Target};

pub(super) fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    let plan = &bench.plan;
    let bed = Bed::make(&bench.place.file("pool"), plan.pool)?;
    let volume = bed.volume("disk", plan.volume)?;
    let rounds = if plan.scale == Scale::Quick { 200 } else { 1000 };
    for writes in [10, 1, 100] {
        let count = if writes == 100 { rounds / 5 } else { rounds };
        bed.pool.checkpoint()?;
        let before = bed.probe.counts();
        snapshots(&bed.pool, &volume, count, writes, writes)?;
        let by_commits = bed.probe.counts().since(before);
        bed.pool.checkpoint()?;
        let cost = bed.probe.counts().since(before);
        let asked = (count * writes * 4096) as f64;
        let row = Row::new(
            format!("{writes} random 4 KiB after each of {count} snapshots: bytes written / asked"),
            Figure::one(Unit::Ratio, cost.bytes() as f64 / asked),
        );
        report.row(row.target(if writes == 10 { Target::AtMost(Unit::Ratio, 1.5) } else { Target::None }));
        report.note(format!(
            "{writes} each: guest data {:.2}x, commits of snapshots {:.2}x, checkpoints {:.2}x or less.",
            cost.ring_bytes as f64 / asked,
            by_commits.direct_bytes as f64 / asked,
            (cost.direct_bytes - by_commits.direct_bytes) as f64 / asked,
        ));
    }
    Ok(())
}
