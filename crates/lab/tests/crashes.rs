//! Kill -9 of the agent, the manager or a machine while jobs of every kind are under way: everything comes to rest, nothing
//! is left over, and who was not killed runs on.
//!
//! `KEYFRAME_SEEDS=N` plays N rounds instead of a few.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use keyframe_lab::machine::Machine;
use keyframe_lab::scratch;
use keyframe_lab::site::{PATIENCE, Role, Site, SiteOptions, runs};

const ROUNDS: u64 = 8;
/// The supervisor waits longer after each.
const DEATHS: u64 = 5;
/// A job with memory to write or to read is left alone for so many milliseconds at most, others for the second number.
const LONGEST: [u64; 2] = [2500, 250];

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Victim {
    Agent,
    Manager,
    Machine,
    /// And with it, in order, the agent and the manager.
    Supervisor,
}

const VICTIMS: [Victim; 4] = [Victim::Agent, Victim::Manager, Victim::Machine, Victim::Supervisor];

/// Numbers that are the same in each run (SplitMix64).
fn random(seed: u64) -> u64 {
    let mut x = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// What is under way when somebody is killed; `web` runs before each.
fn job(round: u64) -> Vec<String> {
    let made = format!("made-{round}");
    let snapshot = format!("web@s{round}");
    let line: &[&str] = match round % 8 {
        0 => &["snapshot", "create", &snapshot, "--memory"],
        1 => &["clone", "web", "--memory", "--name", &made],
        2 => &["snapshot", "apply", "web@start"],
        3 => &["snapshot", "create", &snapshot, "--quiesce", "preferred"],
        4 => &["disk", "attach", "web", "size=16M,name=more"],
        5 => &["clone", "web@start", "--name", &made, "--count", "1"],
        6 => &["snapshot", "delete", "web@start"],
        _ => &["vm", "stop", "web", "--hard"],
    };
    line.iter().map(|word| (*word).to_owned()).collect()
}

#[test]
fn whoever_is_killed_while_a_job_is_under_way_everything_comes_to_rest() -> Result<()> {
    let rounds = match std::env::var("KEYFRAME_SEEDS") {
        Ok(text) => text.parse().context("KEYFRAME_SEEDS is a number")?,
        Err(_) => ROUNDS,
    };
    let site = Site::up(&scratch::keyframe()?, &SiteOptions::default())?;
    let vm = site.boot("web", "128M", "lab=stamp")?;
    for round in 0..rounds {
        play(&site, &vm, round).with_context(|| format!("round {round}: {:?}", job(round)))?;
    }
    Ok(())
}

fn play(site: &Site, vm: &Machine<'_>, round: u64) -> Result<()> {
    prepare(site, vm)?;
    let seed = random(round);
    // Four cycles of jobs bring each together with each victim.
    let victim = VICTIMS[((round + round / 8) % 4) as usize];
    let delay = Duration::from_millis(seed % LONGEST[usize::from(round % 8 > 2)]);
    let process = vm.pid()?;
    let mut order = site.command(job(round)).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let began = Instant::now();
    // The moment of a crash is what is varied here; there is no event to wait for.
    std::thread::sleep(delay);
    let under_way = order.try_wait()?.is_none();
    match victim {
        Victim::Supervisor => {
            site.kill(Role::Supervisor)?;
            site.start()?;
        }
        Victim::Agent => site.kill(Role::Agent)?,
        Victim::Manager => site.kill(Role::Manager)?,
        // It may be between two processes.
        Victim::Machine => vm.kill().unwrap_or(()),
    }
    order.wait()?;
    site.wait_until_up()?;
    site.wait_until_at_rest()?;
    // The manager hears of a death when it does.
    site.wait_until(PATIENCE, || {
        let (stopped, alive) = (vm.show()?["state"]["power"] == "stopped", vm.pid().is_ok_and(runs));
        ensure!(stopped != alive, "the manager believes that it is {}", if stopped { "off" } else { "on" });
        Ok(())
    })?;
    let when = if under_way { "while it was under way" } else { "when it was over" };
    println!("round {round}: {victim:?} killed after {delay:?} {when}, at rest {:?} later", began.elapsed() - delay);
    // Jobs that replace or end the process may have gone forward.
    let may_end = matches!(round % 8, 2 | 7) || victim == Victim::Machine;
    ensure!(may_end || runs(process), "the machine was not killed, and does not run");
    if vm.show()?["state"]["power"] == "running" && runs(process) && !may_end {
        vm.next_stamp().context("the guest was left standing still")?;
    }
    Ok(())
}

/// The machine runs, has a snapshot with memory called `start`, and no more disks and machines than it needs.
fn prepare(site: &Site, vm: &Machine<'_>) -> Result<()> {
    let shown = vm.show()?;
    match shown["state"]["power"].as_str() {
        Some("running") => {}
        Some("paused") => drop(vm.act("vm", "resume", &[])?),
        _ => drop(vm.start()?),
    }
    vm.next_stamp().context("the guest does not write")?;
    for other in site.json(["vm", "list", "--search", "made-"])?.as_array().into_iter().flatten() {
        let name = other["name"].as_str().context("a machine has a name")?;
        site.json(["vm", "delete", name, "--force"])?;
    }
    if shown["hardware"]["disks"].as_array().is_some_and(|disks| disks.iter().any(|disk| disk["name"] == "more")) {
        vm.act("disk", "detach", &["more"])?;
    }
    if site.run(["snapshot", "show", "web@start"]).is_err() {
        vm.snapshot("start", &["--memory"])?;
    }
    site.wait_until(PATIENCE, || site.check_at_rest())
}

/// A guest is told that its write is done, or it is not done: there is nothing between, also when the agent dies.
#[test]
fn writes_that_the_guest_was_told_of_outlive_the_agent() -> Result<()> {
    let site = Site::up(&scratch::keyframe()?, &SiteOptions::default())?;
    let vm = site.boot("web", "128M", "lab=stamp")?;
    for round in 0..DEATHS {
        let stamp = vm.next_stamp()?;
        std::thread::sleep(Duration::from_millis(random(round) % 100));
        site.kill(Role::Agent)?;
        site.wait_until_up()?;
        vm.next_stamp().with_context(|| format!("death {round}, after stamp {stamp}"))?;
    }
    vm.sound()
}
