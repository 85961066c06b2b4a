//! Disk snapshots of a running machine, the guest not asked.

use anyhow::Result;

use super::super::Bench;
use super::{busy, reported, site, time, timed};
use crate::figure::Unit;
use crate::report::{Report, Row, Target};

/// Snapshots, each cheap.
const ROUNDS: usize = 20;

pub(in crate::measure) fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    let site = site(bench)?;
    let machine = busy(&site, "disks", 256)?;
    let (mut held, mut took) = (Vec::new(), Vec::new());
    for n in 0..=ROUNDS {
        let name = machine.at(&format!("s{n}"));
        let (_, seconds) = timed(|| site.json(["snapshot", "create", &name]))?;
        if n > 0 {
            held.push(reported(&site.json(["snapshot", "show", &name])?, "held")?);
            took.push(seconds);
        }
    }
    let row = Row::new("guest's writes held by a snapshot of two disks", time(held));
    report.row(row.target(Target::AtMost(Unit::Time, 0.005)));
    report.row(Row::new("… the whole command", time(took)));
    Ok(())
}
