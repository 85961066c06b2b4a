//! What redirected writes cost a later sequential reader.

use std::time::Duration;

use anyhow::Result;

use super::{Bench, Contender, in_turn};
use crate::bed::{Bed, raw_file, write_blocks};
use crate::figure::Unit;
use crate::fio::{Job, Via};
use crate::load::{End, Kind, Load, Order, run as load};
use crate::report::{Report, Row, Target};
use crate::rng::Rng;

pub(super) fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    let plan = &bench.plan;
    let size = plan.volume / 2;
    let file = raw_file(bench.place.file("raw"), size)?;
    let bed = Bed::make(&bench.place.file("pool"), plan.pool / 2)?;
    let fresh = bed.volume("fresh", size)?;
    let aged = bed.volume("aged", size)?;
    let mut rng = Rng::new(50);
    for _ in 0..2 {
        write_blocks(&bed.pool, &aged, &rng.permutation(size / 4096), 32)?;
        aged.flush()?;
    }
    bed.pool.checkpoint()?;
    for depth in [4, 1] {
        let contender = |volume| -> Contender {
            let pool = &bed.pool;
            let end = End::After(plan.run.min(Duration::from_secs(2)));
            let read = Load { kind: Kind::Read, order: Order::Sequential, size: 1 << 20, depth, end, seed: 51 };
            Box::new(move || Ok(load(pool, volume, &read)?.rate()))
        };
        // What the device gives for the same thing: blocks from everywhere, as many in flight as their requests cover.
        let job = Job { via: Via::File(&file), write: false, depth: depth * 256, time: plan.run };
        let device: Contender = Box::new(|| Ok(job.iops()? * 4096.0));
        let figures = in_turn(plan.rounds, Unit::Rate, vec![contender(&aged), contender(&fresh), device])?;
        let target = if depth == 4 { Target::RatioAtLeast(0.5) } else { Target::None };
        let row = Row::new(format!("1 MiB reads in order, queue depth {depth}, aged"), figures[0].clone());
        report.row(row.against("keyframe, fresh", figures[1].clone()).target(target));
        let row = Row::new(format!("… queue depth {depth}"), figures[0].clone());
        report.row(row.against("fio, raw file, 4 KiB at random", figures[2].clone()));
    }
    Ok(())
}
