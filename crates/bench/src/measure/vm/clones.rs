//! Thin clones of a template, a hundred at once.

use anyhow::{Context, Result};
use keyframe_lab::site::Site;

use super::super::Bench;
use super::{site, time, timed};
use crate::figure::{Figure, Unit};
use crate::report::{Report, Row, Target};

const CLONES: usize = 100;

pub(in crate::measure) fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    let site = site(bench)?;
    site.create("gold", "256M", "")?;
    site.json(["template", "create", "gold", "--name", "golden"])?;
    let count = CLONES.to_string();
    let (mut made, mut used, mut gone) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=bench.plan.machine_rounds {
        let before = used_by(&site)?;
        let name = format!("c{round}-{{n}}");
        let (_, seconds) = timed(|| site.json(["clone", "--template", "golden", "--name", &name, "--count", &count]))?;
        let after = used_by(&site)?;
        let names: Vec<String> = (1..=CLONES).map(|n| format!("c{round}-{n}")).collect();
        let delete = ["vm", "delete"].into_iter().chain(names.iter().map(String::as_str));
        let (_, deleted) = timed(|| site.run(delete))?;
        if round > 0 {
            made.push(seconds);
            used.push((after - before) / (2 * CLONES) as f64);
            gone.push(deleted);
        }
    }
    let row = Row::new(format!("{CLONES} clones of a template with two disks, 320 MiB"), time(made));
    report.row(row.target(Target::AtMost(Unit::Time, 2.0)));
    let row = Row::new(
        "… the pool's bytes in use for each of their disks; a block of data has 4 KiB",
        Figure::new(Unit::Bytes, used),
    );
    report.row(row.target(Target::AtMost(Unit::Bytes, 4095.0)));
    report.row(Row::new("… to delete them again", time(gone)));
    Ok(())
}

fn used_by(site: &Site) -> Result<f64> {
    let hosts = site.json(["host", "list"])?;
    let name = hosts[0]["name"].as_str().context("no host")?.to_owned();
    let host = site.json(["host", "show", &name])?;
    host["info"]["arrays"][0]["used"].as_f64().with_context(|| format!("no used space in {host}"))
}
