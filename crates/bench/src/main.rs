//! `keyframe-bench`: every figure that Keyframe is held to, measured beside the alternatives in one run on one machine.
//!
//! It reports and does not judge its own exit by a figure: it fails only when something could not be measured.

mod ask;
mod bed;
mod figure;
mod fio;
mod guest;
mod load;
mod machine;
mod measure;
mod place;
mod plan;
mod probe;
mod report;
mod rng;
mod servers;
mod tool;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;

use crate::measure::{Bench, CASES};
use crate::place::Place;
use crate::plan::{Plan, Scale};
use crate::report::Report;

/// Measure Keyframe beside the alternatives
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Small sizes: at most three minutes
    #[arg(long, conflicts_with = "full")]
    quick: bool,
    /// Everything, 100,000 snapshots included: about an hour
    #[arg(long)]
    full: bool,
    /// Only these measurements, by name, or by the first word of names; see --list
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Name the measurements
    #[arg(long)]
    list: bool,
    /// Where pools and images are put for the time of the run; must not be tmpfs
    #[arg(long, default_value = ".keyframe/bench")]
    dir: PathBuf,
    /// Where the table is written
    #[arg(long, default_value = "bench/results.md")]
    results: PathBuf,
    /// The server to measure [default: beside this program]
    #[arg(long)]
    keyframe: Option<PathBuf>,
    #[command(flatten)]
    sizes: plan::Sizes,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    if arguments.list {
        for case in CASES {
            println!("{:12} {}", case.name, case.about);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let unknown = arguments.only.iter().find(|name| !CASES.iter().any(|case| case.is_of(name)));
    if let Some(name) = unknown {
        anyhow::bail!("no measurement named {name}; --list names them");
    }
    let scale = match (arguments.quick, arguments.full) {
        (true, _) => Scale::Quick,
        (_, true) => Scale::Full,
        _ => Scale::Standard,
    };
    let keyframe = match arguments.keyframe {
        Some(path) => path,
        None => std::env::current_exe().context("find this program")?.with_file_name("keyframe"),
    };
    let place = Place::make(&arguments.dir)?;
    let mut report = Report::new(machine::describe(place.path(), scale));
    let bench = Bench { place: &place, plan: Plan::new(scale, &arguments.sizes), keyframe };
    for case in CASES.iter().filter(|c| arguments.only.is_empty() || arguments.only.iter().any(|o| c.is_of(o))) {
        eprintln!("==> {}: {}", case.name, case.about);
        report.begin(case.about, machine::now(scale));
        if let Err(e) = (case.run)(&bench, &mut report) {
            report.failed(&format!("{}: {e:#}", case.name));
        }
        place.clear()?;
    }
    report.print();
    let old = std::fs::read_to_string(&arguments.results).unwrap_or_default();
    let titles: Vec<&str> = CASES.iter().map(|case| case.about).collect();
    write(&arguments.results, &report.markdown(&old, &titles))?;
    println!("written to {}", arguments.results.display());
    Ok(if report.complete() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn write(path: &Path, text: &str) -> Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
    }
    std::fs::write(path, text).with_context(|| format!("write {}", path.display()))
}
