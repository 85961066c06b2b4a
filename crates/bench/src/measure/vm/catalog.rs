//! A manager that knows many snapshots: how fast it starts, how fast it lists them. The snapshots are real ones, of machines
//! that are off, ordered through the REST interface.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use keyframe_lab::process::{Ending, Process};
use keyframe_lab::site::Site;
use serde_json::{Value, json};

use super::super::Bench;
use super::{site, time, timed};
use crate::ask::Server;
use crate::figure::Unit;
use crate::report::{Report, Row, Target};

/// Machines that share the snapshots.
const MACHINES: usize = 20;
/// Who order snapshots at the same time, each for machines of its own.
const CALLERS: usize = 10;
const PATIENCE: Duration = Duration::from_secs(60);
/// Pages that are listed; one is cheap.
const PAGES: usize = 30;

pub(in crate::measure) fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    let site = site(bench)?;
    let manager = Server::at(&site.data().join("run/manager.sock"));
    let rounds = bench.plan.machine_rounds;
    let begun = Instant::now();
    site.down()?;
    let few = starts(bench, &site, rounds)?;
    site.start()?;
    prepare(&manager, bench.plan.snapshots)?;
    let count = bench.plan.snapshots;
    report.note(format!(
        "{count} snapshots of {MACHINES} machines, taken through the REST interface by {CALLERS} callers in {:.0} s.",
        begun.elapsed().as_secs_f64()
    ));
    pages(report, &manager, count)?;
    let (_, seconds) = timed(|| site.json(["snapshot", "list", "tiny-1"]))?;
    report.row(Row::new(format!("`keyframe snapshot list` of one machine's {}", count / MACHINES), time([seconds])));
    site.down()?;
    let many = starts(bench, &site, rounds)?;
    let row = Row::new(format!("start of a manager that knows {count} snapshots, until it lists one"), time(many));
    report.row(row.against("it knows nothing", time(few)).target(Target::AtMost(Unit::Time, 1.0)));
    site.start().map(drop)
}

/// Takes the snapshots.
fn prepare(manager: &Server, count: usize) -> Result<()> {
    let mut machines = Vec::new();
    for n in 1..=MACHINES {
        let wish = json!({ "name": format!("tiny-{n}"), "memory": 16 << 20, "disks": [{ "size": 1 << 20 }] });
        let job = done(manager.post("/v1/vms?wait=60", &wish)?)?;
        machines.push(job["vms"][0].as_str().context("no machine was made")?.to_owned());
    }
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| -> Result<()> {
        let callers: Vec<_> = machines.chunks(MACHINES / CALLERS).map(|mine| {
            let next = &next;
            scope.spawn(move || -> Result<()> {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= count {
                        return Ok(());
                    }
                    let vm = &mine[n % mine.len()];
                    let wish = json!({ "name": format!("s{n}"), "description": "a snapshot among many", "tags": ["bench"] });
                    done(manager.post(&format!("/v1/vms/{vm}/snapshots?wait=60"), &wish)?)?;
                }
            })
        }).collect();
        for caller in callers {
            caller.join().map_err(|_| anyhow::anyhow!("a caller panicked"))??;
        }
        Ok(())
    })
}

fn done(job: Value) -> Result<Value> {
    ensure!(job["state"] == "succeeded", "a job did not succeed: {job}");
    Ok(job)
}

/// Lists pages of all snapshots, one after the other.
fn pages(report: &mut Report, manager: &Server, count: usize) -> Result<()> {
    let (mut times, mut after) = (Vec::new(), String::new());
    for _ in 0..PAGES {
        let (page, seconds) = timed(|| manager.get(&format!("/v1/snapshots?limit=100{after}")))?;
        ensure!(page["items"].as_array().map(Vec::len) == Some(100), "a page is not full");
        after = page["next"].as_str().map_or_else(String::new, |next| format!("&after={next}"));
        times.push(seconds);
    }
    let row = Row::new(format!("list a page of 100 of {count} snapshots"), time(times));
    report.row(row.target(Target::AtMost(Unit::Time, 0.05)));
    let mut times = Vec::new();
    for _ in 0..PAGES {
        let (_, seconds) = timed(|| manager.get("/v1/snapshots?limit=100&search=s77"))?;
        times.push(seconds);
    }
    report.row(Row::new(format!("search a name among {count} snapshots"), time(times)));
    Ok(())
}

/// How long a manager takes from its process's start to its first answer, beside an agent that runs.
fn starts(bench: &Bench, site: &Site, rounds: usize) -> Result<Vec<f64>> {
    let _agent = process(bench, site, "agent")?;
    let socket = site.data().join("run/agent.sock");
    until(|| UnixStream::connect(&socket).map(drop).context("connect to the agent"))?;
    let server = Server::at(&site.data().join("run/manager.sock"));
    let mut times = Vec::new();
    for round in 0..=rounds {
        let began = Instant::now();
        let mut manager = process(bench, site, "manager")?;
        until(|| server.get("/v1/snapshots?limit=1").map(drop))?;
        if round > 0 {
            times.push(began.elapsed().as_secs_f64());
        }
        manager.ask_to_end()?;
    }
    Ok(times)
}

fn process(bench: &Bench, site: &Site, role: &str) -> Result<Process> {
    let log: PathBuf = bench.place.file(&format!("{role}.log"));
    Process::spawn(role, site.command([role, "--foreground"]).stdout(Stdio::null()), Ending::Ask, &log)
}

/// Asks again until it is answered.
fn until(mut ask: impl FnMut() -> Result<()>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match ask() {
            Ok(()) => return Ok(()),
            Err(e) if Instant::now() > deadline => return Err(e),
            Err(_) => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}
