//! Whether a volume pays for its snapshots.

use anyhow::Result;

use super::{Bench, Contender, in_turn, side};
use crate::bed::{Bed, snapshots};
use crate::figure::Unit;
use crate::load::{Kind, Load, run as load};
use crate::report::{Report, Row, Target};

/// Writes between two snapshots.
const WRITES: u64 = 4;

pub(super) fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    let plan = &bench.plan;
    let bed = Bed::make(&bench.place.file("pool"), plan.pool)?;
    let bare = bed.volume("bare", plan.volume)?;
    let many = bed.volume("many", plan.volume)?;
    snapshots(&bed.pool, &many, plan.many, WRITES, 7)?;
    bed.pool.checkpoint()?;
    for write in [false, true] {
        let kind = if write { Kind::Write } else { Kind::Read };
        let contender = |volume| -> Contender {
            let (mut seed, pool) = (20, &bed.pool);
            Box::new(move || {
                seed += 1;
                Ok(load(pool, volume, &Load::random(kind, 32, plan.run, seed))?.iops())
            })
        };
        let figures = in_turn(plan.rounds, Unit::Iops, vec![contender(&many), contender(&bare)])?;
        let what = format!("random {}, {} snapshots", side(write), plan.many);
        let target = Target::RatioAtLeast(if write { 0.9 } else { 0.95 });
        report.row(Row::new(what, figures[0].clone()).against("keyframe, none", figures[1].clone()).target(target));
    }
    Ok(())
}
