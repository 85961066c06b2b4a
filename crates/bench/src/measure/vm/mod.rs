//! Machines, measured through `keyframe up` and the command line as a user has them. Times of commands include the command's own start.
//!
//! Every guest runs the same: [`crate::guest::BUSY`], and a quarter of its RAM in use.

pub(super) mod catalog;
pub(super) mod clones;
pub(super) mod disks;
pub(super) mod libvirt;
pub(super) mod memory;
mod virsh;

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use keyframe_lab::machine::Machine;
use keyframe_lab::site::{Site, SiteOptions};
use serde_json::Value;

use super::Bench;
use crate::figure::{Figure, Unit};
use crate::guest;

fn site(bench: &Bench) -> Result<Site> {
    Site::up(&bench.keyframe, &SiteOptions { pool_size: "8G", ..SiteOptions::default() })
}

/// A machine with a busy guest.
fn busy<'a>(site: &'a Site, name: &str, mib: u64) -> Result<Machine<'a>> {
    let machine = site.boot(name, &format!("{mib}M"), guest::BUSY)?;
    machine.run(&guest::fill(mib))?;
    guest::tick(machine.console())?;
    Ok(machine)
}

/// A time of a snapshot's report.
fn reported(snapshot: &Value, what: &str) -> Result<f64> {
    let micros = snapshot["report"][what].as_f64().with_context(|| format!("no {what} in {snapshot}"))?;
    Ok(micros / 1e6)
}

fn timed<T>(act: impl FnOnce() -> Result<T>) -> Result<(T, f64)> {
    let began = Instant::now();
    let value = act()?;
    Ok((value, began.elapsed().as_secs_f64()))
}

fn time(values: impl IntoIterator<Item = f64>) -> Figure {
    Figure::new(Unit::Time, values)
}

/// What the guest's counter does when it is left alone: its longest silence in a while.
fn calm(console: &keyframe_lab::console::Console, rounds: usize, length: Duration) -> Result<Figure> {
    let mut values = Vec::new();
    for _ in 0..rounds {
        let from = guest::listen(console)?;
        std::thread::sleep(length);
        values.push(guest::silence(console, from)?.as_secs_f64());
    }
    Ok(time(values))
}

fn size(mib: u64) -> String {
    if mib >= 1024 { format!("{} GiB", mib / 1024) } else { format!("{mib} MiB") }
}
