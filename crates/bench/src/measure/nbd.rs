//! Servers against each other, all running, one asked at a time.

use std::fs::File;

use anyhow::{Context, Result};

use super::{Bench, Contender, in_turn, side};
use crate::bed::{Bed, raw_file, snapshots};
use crate::figure::Unit;
use crate::fio::{Job, fill};
use crate::report::{Report, Row, Target};
use crate::rng::Rng;
use crate::servers::{Server, chain, internal_snapshot, qcow2, scribble};

/// Snapshots inside a qcow2 image, and as many of a volume of ours.
const SNAPSHOTS: u64 = 100;
/// Overlays of a backing chain.
const CHAIN: u64 = 50;
/// Writes between two snapshots, or in an overlay.
const WRITES: u64 = 16;

pub(super) fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    let (plan, place) = (&bench.plan, bench.place);
    let pool = place.file("pool");
    let bed = Bed::make(&pool, plan.pool)?;
    bed.volume("disk", plan.volume)?;
    let kept = bed.volume("kept", plan.volume)?;
    snapshots(&bed.pool, &kept, SNAPSHOTS, WRITES, 4)?;
    drop(kept);
    bed.close()?;

    let raw = raw_file(place.file("raw"), plan.volume)?;
    let cached = raw_file(place.file("cached"), plan.volume)?;
    let plain = qcow2(&raw, place.file("plain.qcow2"))?;
    let inside = qcow2(&raw, place.file("inside.qcow2"))?;
    let mut rng = Rng::new(6);
    for n in 0..SNAPSHOTS {
        scribble(&inside, plan.volume, WRITES, &mut rng)?;
        internal_snapshot(&inside, &format!("s{n}"))?;
    }
    let base = qcow2(&raw, place.file("base.qcow2"))?;
    let top = chain(place, base, plan.volume, CHAIN, WRITES)?;

    let ours = Server::keyframe(place, &bench.keyframe, &pool)?;
    let servers = [
        Server::qemu(place, "raw", "raw", &raw)?,
        Server::nbdkit(place, "file", "file", &cached.display().to_string())?,
        Server::nbdkit(place, "memory", "memory", &plan.volume.to_string())?,
        Server::qemu(place, "plain", "qcow2", &plain)?,
        Server::qemu(place, "inside", "qcow2", &inside)?,
        Server::qemu(place, "chain", "qcow2", &top)?,
    ];
    fill(&servers[2].export(""))?;

    for write in [false, true] {
        let job = |via| Job { via, write, depth: 32, time: plan.run };
        let mut contenders: Vec<Contender> =
            vec![Box::new(|| job(ours.export("disk")).iops()), Box::new(|| job(ours.export("kept")).iops())];
        for (at, server) in servers.iter().enumerate() {
            let (job, cached) = (job(server.export("")), &cached);
            contenders.push(Box::new(move || {
                let iops = job.iops()?;
                if at == 1 && write {
                    // What it left in the page cache must not be written out during somebody else's turn.
                    File::open(cached)?.sync_all().context("sync nbdkit's file")?;
                }
                Ok(iops)
            }));
        }
        let figures = in_turn(plan.rounds, Unit::Iops, contenders)?;
        let mut row = |what: &str, ours: usize, name: &str, theirs: usize, target| {
            let what = format!("random {}{what}", side(write));
            report.row(Row::new(what, figures[ours].clone()).against(name, figures[theirs].clone()).target(target));
        };
        row("", 0, "qemu-nbd, raw file", 2, Target::RatioAtLeast(1.0));
        row("", 0, "nbdkit memory", 4, Target::RatioAtLeast(0.6));
        row("", 0, "nbdkit file (page cache)", 3, Target::None);
        row("", 0, "qemu-nbd, qcow2", 5, Target::None);
        row(", 100 snapshots", 1, "qemu-nbd, qcow2 with 100 internal", 6, Target::None);
        row(", 100 snapshots", 1, "qemu-nbd, qcow2 chain of 50", 7, Target::None);
    }
    Ok(())
}
