//! The demonstration: one machine's life with snapshots, memory, a tree, applies, a fork, a template and clones, all by
//! `keyframe` commands that are shown as they are typed. Every claim that is printed has been checked.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::images::Watch;
use crate::machine::Machine;
use crate::site::{PATIENCE, Site, SiteOptions};
use crate::steps::{Limit, Steps, human};

/// What to play.
pub struct Options {
    /// The binary to demonstrate.
    pub keyframe: PathBuf,
}

const MEMORY: &str = "256M";
const CLONES: usize = 100;
const BOOTED: usize = 3;
/// Machines that are listed: some of the clones will do.
const LISTED: &str = "8";
/// What the times are held to, which the table at the end shows beside them. `./x bench` measures them with more rounds, and with
/// other sizes of RAM.
const PAUSE: Limit = limit("guest paused", 15);
const HOLD: Limit = limit("writes held", 5);
const APPLY: Limit = limit("to first word", 500);
const FORK: Limit = limit("whole image to first word", 1000);
const CLONING: Limit = limit("100 thin clones", 2000);
const OTHER_SIZES: &str = "A pause is held to 15 ms with 256 MiB of RAM, to 25 ms with 1 GiB and to 60 ms with 4 GiB.";

const fn limit(of: &'static str, millis: u64) -> Limit {
    Limit { of, most: Duration::from_millis(millis) }
}

/// On the guest's kernel command line: numbered writes to both disks, and rewriting and checking 32 MiB of memory.
const BUSY: &str = "lab=stamp lab=pages,32";

/// Plays all of it. The first thing that is not as promised is the error.
pub fn run(options: &Options) -> Result<()> {
    let mut steps = Steps::default();
    let site = steps.run("keyframe up: an agent and a manager on an empty folder", || {
        Ok((Site::up(&options.keyframe, &SiteOptions::default())?, "they answer".into()))
    })?;
    let web = boot(&mut steps, &site)?;
    grow_tree(&mut steps, &site, &web)?;
    let fork = fork(&mut steps, &site, &web)?;
    delete(&mut steps, &site, &web)?;
    templates(&mut steps, &site)?;
    steps.run("the machine and its fork have run all the time", || {
        let (one, other) = (web.next_stamp()?, fork.next_stamp()?);
        Ok(((), format!("at stamps {one} and {other}")))
    })?;
    show(&site, &["vm", "list", "--space"])?;
    show(&site, &["snapshot", "space", "web"])?;
    drop((web, fork));
    steps.run("keyframe down --vms", || {
        Ok((site.run(["down", "--vms"])?, "machines stopped, processes ended".into()))
    })?;
    println!("\n{}\n{OTHER_SIZES}", steps.table());
    Ok(())
}

/// Prints a command and what it says.
fn show(site: &Site, line: &[&str]) -> Result<()> {
    println!("\n$ keyframe {}\n{}", line.join(" "), site.run(line)?);
    Ok(())
}

fn boot<'a>(steps: &mut Steps, site: &'a Site) -> Result<Machine<'a>> {
    let web = steps.run("create a machine with two disks from images, 256 MiB of RAM", || {
        Ok((site.create("web", MEMORY, BUSY)?, "256 MiB and 64 MiB imported".into()))
    })?;
    steps.run("start it", || {
        let ready = web.start()?;
        Ok(((), format!("guest up after {}; it numbers writes to both disks and checks its memory", human(ready))))
    })?;
    Ok(web)
}

/// Takes a snapshot of the machine while it runs, with its memory.
fn take(steps: &mut Steps, web: &Machine<'_>, name: &str) -> Result<u64> {
    steps.measure(&format!("snapshot web@{name} with memory while the guest counts on"), PAUSE, || {
        let before = web.tick()?;
        let taken = web.snapshot(name, &["--memory"])?;
        let after = web.tick()?;
        ensure!(after > before, "the guest stood still");
        Ok((before, reported(&taken, "paused")?, method(&taken)))
    })
}

/// A time in the report of a snapshot.
fn reported(snapshot: &Value, what: &str) -> Result<Duration> {
    let micros = snapshot["report"][what].as_u64().with_context(|| format!("no time {what} in {snapshot}"))?;
    Ok(Duration::from_micros(micros))
}

fn method(snapshot: &Value) -> String {
    format!("cut {}", snapshot["report"]["method"].as_str().unwrap_or("in an unknown way"))
}

/// Applies a snapshot with memory and checks that the guest goes on from there.
fn apply(steps: &mut Steps, web: &Machine<'_>, name: &str, [least, most]: [u64; 2]) -> Result<()> {
    steps.measure(&format!("apply web@{name}: the guest goes on where it was"), APPLY, || {
        let back = web.go_back(name, &[])?;
        let tick = back.tick;
        ensure!((least..=most).contains(&tick), "it goes on at {tick}, {name} was taken between {least} and {most}");
        let counters = web.counters(web.console().mark())?;
        let remark = format!("counter back at {tick}, memory verified in pass {}", counters.pass);
        Ok(((), back.to_output, remark))
    })
}

/// Two branches: `base` ─ `setup` ─ `upgrade`, and from `setup` again `patch` ─ `quick` ─ `tuned`.
fn grow_tree(steps: &mut Steps, site: &Site, web: &Machine<'_>) -> Result<()> {
    take(steps, web, "base")?;
    let begun = take(steps, web, "setup")?;
    let done = web.tick()?;
    take(steps, web, "upgrade")?;
    apply(steps, web, "setup", [begun, done])?;
    take(steps, web, "patch")?;
    for (what, name, more) in [
        ("a disk snapshot while the guest writes", "quick", &[][..]),
        ("one with the guest's file systems frozen", "tuned", &["--quiesce", "required", "--tag", "nightly"]),
    ] {
        steps.measure(what, HOLD, || {
            let taken = web.snapshot(name, more)?;
            Ok(((), reported(&taken, "held")?, format!("consistent: {}", taken["consistency"])))
        })?;
    }
    show(site, &["snapshot", "tree", "web"])
}

fn fork<'a>(steps: &mut Steps, site: &'a Site, web: &Machine<'_>) -> Result<Machine<'a>> {
    let what = "fork the running machine: the copy goes on from the same instant, its cable out";
    let fork = steps.measure(what, FORK, || {
        let before = web.tick()?;
        let began = Instant::now();
        let image = Watch::begin(&site.data().join("memory"))?;
        let order = site.json(["clone", "web", "--memory", "--name", "fork", "--no-wait"])?;
        let fork = site.machine("fork")?;
        let tick = fork.console().find(crate::console::Mark::default(), PATIENCE, "TICK", |at, line| {
            Some((at, crate::machine::number_after("TICK ", line)?))
        });
        let (first, tick) = tick?;
        let now = web.tick()?;
        let whole = image.end()?.context("no memory image was seen")?;
        let job = site.json(["job", "wait", order["id"].as_str().context("a job has an id")?])?;
        ensure!((before..=now).contains(&tick), "the fork counts from {tick}, the machine went from {before} to {now}");
        let counters = fork.counters(fork.console().mark())?;
        web.counters(web.console().mark())?;
        let remark = format!(
            "{} after the order; its source paused {}; memory verified in pass {}",
            human(first.saturating_duration_since(began)),
            human(Duration::from_micros(job["instant"]["paused"].as_u64().context("no pause of the source")?)),
            counters.pass
        );
        Ok((fork, first.saturating_duration_since(whole), remark))
    })?;
    show(site, &["nic", "list", "fork"])?;
    Ok(fork)
}

fn delete(steps: &mut Steps, site: &Site, web: &Machine<'_>) -> Result<()> {
    show(site, &["snapshot", "delete", "web@setup", "--dry-run"])?;
    steps.run("delete web@setup from the middle of the tree", || {
        site.json(["snapshot", "delete", "web@setup"])?;
        Ok(((), "its children moved up".into()))
    })?;
    show(site, &["snapshot", "tree", "web", "--space"])?;
    steps.run("delete web@patch and all that descends from it", || {
        site.json(["snapshot", "delete", "web@patch", "--subtree"])?;
        let left = site.json(["snapshot", "list", "web"])?;
        let mut names: Vec<&str> =
            left.as_array().into_iter().flatten().filter_map(|one| one["name"].as_str()).collect();
        names.retain(|name| !name.starts_with("before-"));
        names.sort_unstable();
        ensure!(names == ["base", "upgrade"], "left are {names:?}");
        web.next_stamp()?;
        Ok(((), "the other branch and the running machine are as they were".into()))
    })?;
    show(site, &["snapshot", "tree", "web"])
}

fn templates(steps: &mut Steps, site: &Site) -> Result<()> {
    steps.run("make a template of web@base", || {
        site.json(["template", "create", "web@base", "--name", "golden"])?;
        Ok(((), "frozen; nothing happened to the machine".into()))
    })?;
    steps.measure(&format!("{CLONES} thin clones of the template"), CLONING, || {
        let (count, began) = (CLONES.to_string(), Instant::now());
        site.json(["clone", "--template", "golden", "--name", "node-{n}", "--count", &count])?;
        let took = began.elapsed();
        let all = site.json(["vm", "list", "--search", "node-"])?;
        let made = all.as_array().map_or(0, Vec::len);
        ensure!(made == CLONES, "{made} were made");
        Ok(((), took, "no data was copied".into()))
    })?;
    let nodes = steps.run(&format!("boot {BOOTED} of them at once"), || {
        let names: Vec<String> = (1..=BOOTED).map(|n| format!("node-{n}")).collect();
        site.run(["vm", "start"].into_iter().chain(names.iter().map(String::as_str)))?;
        let nodes = names.iter().map(|name| site.machine(name)).collect::<Result<Vec<_>>>()?;
        for node in &nodes {
            node.ready(crate::console::Mark::default())?;
            node.next_stamp()?;
        }
        Ok((nodes, "each found its disks as the template has them, and writes to its own".into()))
    })?;
    show(site, &["vm", "list", "--space", "--limit", LISTED])?;
    steps.run("stop and delete the clones", || {
        for node in &nodes {
            node.act("vm", "stop", &["--hard"])?;
        }
        let names: Vec<String> = (1..=CLONES).map(|n| format!("node-{n}")).collect();
        site.run(["vm", "delete"].into_iter().chain(names.iter().map(String::as_str)))?;
        Ok(((), format!("{CLONES} machines gone")))
    })
}
