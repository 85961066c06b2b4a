//! The engine without a protocol, against what the kernel gives anybody.

use anyhow::Result;

use super::{Bench, Contender, in_turn, side};
use crate::bed::{Bed, raw_file};
use crate::figure::Unit;
use crate::fio::{Job, Via};
use crate::load::{Kind, Load, run as load};
use crate::report::{Report, Row, Target};

pub(super) fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    let plan = &bench.plan;
    let file = raw_file(bench.place.file("raw"), plan.volume)?;
    let bed = Bed::make(&bench.place.file("pool"), plan.pool)?;
    let volume = bed.volume("disk", plan.volume)?;
    for (write, depth) in [(false, 32), (true, 32), (false, 1), (true, 1)] {
        let kind = if write { Kind::Write } else { Kind::Read };
        let mut seed = 10;
        let ours: Contender = Box::new(|| {
            seed += 1;
            Ok(load(&bed.pool, &volume, &Load::random(kind, depth, plan.run, seed))?.iops())
        });
        let job = Job { via: Via::File(&file), write, depth, time: plan.run };
        let figures = in_turn(plan.rounds, Unit::Iops, vec![ours, Box::new(|| job.iops())])?;
        let target = match (depth, write) {
            (32, false) => Target::RatioAtLeast(0.8),
            (32, true) => Target::RatioAtLeast(0.7),
            _ => Target::None,
        };
        let what = format!("random {}, queue depth {depth}", side(write));
        report.row(Row::new(what, figures[0].clone()).against("fio, raw file", figures[1].clone()).target(target));
    }
    Ok(())
}
