//! Disks and memory of one instant: the guest itself compares what it remembers with what its disks hold.

use anyhow::{Context, Result, ensure};
use keyframe_lab::console::Mark;
use keyframe_lab::machine::Machine;
use keyframe_lab::scratch;
use keyframe_lab::site::{PATIENCE, Site, SiteOptions};

/// Numbered writes to both disks, and 32 MiB of memory that are rewritten and checked.
const BUSY: &str = "lab=stamp lab=pages,32";
const GENERATIONS: usize = 3;
/// A second of the counter.
const A_WHILE: u64 = 20;

/// A snapshot with memory, and the ticks between which it was taken.
struct Taken {
    name: String,
    ticks: [u64; 2],
}

fn take(vm: &Machine<'_>, name: &str) -> Result<Taken> {
    let before = vm.tick()?;
    vm.snapshot(name, &["--memory"])?;
    Ok(Taken { name: name.to_owned(), ticks: [before, vm.tick()?] })
}

/// Lets the guest get ahead of a snapshot, takes it back, and has it check its memory and its disks.
fn go_back(vm: &Machine<'_>, to: &Taken) -> Result<()> {
    vm.wait_for_tick(to.ticks[1] + A_WHILE)?;
    let back = vm.go_back(&to.name, &[])?;
    let [least, most] = to.ticks;
    ensure!((least..=most).contains(&back.tick), "{} was taken at {least} to {most}, not {}", to.name, back.tick);
    vm.counters(vm.console().mark()).with_context(|| format!("after going back to {}", to.name))?;
    println!("{}: {} by the command, {} to the first output", to.name, ms(back.took), ms(back.to_output));
    Ok(())
}

fn ms(time: std::time::Duration) -> String {
    format!("{} ms", time.as_millis())
}

#[test]
fn a_guest_finds_its_disks_as_it_remembers_them_after_every_apply_and_fork() -> Result<()> {
    let site = Site::up(&scratch::keyframe()?, &SiteOptions::default())?;
    let vm = site.boot("web", "256M", BUSY)?;
    vm.counters(Mark::default())?;
    let mut generations: Vec<Taken> = Vec::new();
    for generation in 1..=GENERATIONS {
        let taken = take(&vm, &format!("g{generation}"))?;
        go_back(&vm, &taken)?;
        generations.push(taken);
    }
    go_back(&vm, &generations[0])?;
    let before = vm.tick()?;
    site.json(["clone", "web", "--memory", "--name", "fork"])?;
    let (fork, after) = (site.machine("fork")?, vm.tick()?);
    let tick = fork.first_tick()?;
    ensure!((before..=after).contains(&tick), "the fork counts from {tick}, the machine was at {before} to {after}");
    for one in [&fork, &vm] {
        one.counters(one.console().mark())?;
    }
    let last = &generations[GENERATIONS - 1];
    site.json(["clone", &vm.at(&last.name), "--memory", "--name", "late"])?;
    let late = site.machine("late")?;
    let tick = late.first_tick()?;
    ensure!((last.ticks[0]..=last.ticks[1]).contains(&tick), "{} goes on from {tick}", last.name);
    late.counters(Mark::default())?;
    Ok(())
}

/// Without this, all of the above could pass because nobody looks.
#[test]
fn memory_of_another_instant_than_the_disks_is_noticed() -> Result<()> {
    let site = Site::up(&scratch::keyframe()?, &SiteOptions::default())?;
    let vm = site.boot("web", "256M", BUSY)?;
    vm.counters(Mark::default())?;
    let older = vm.snapshot("older", &["--memory"])?;
    let behind = vm.next_stamp()?;
    vm.expect(vm.console().mark(), PATIENCE, "ten stamps more", |line| {
        keyframe_lab::machine::number_after("STAMP ", line).filter(|stamp| *stamp > behind + 10)
    })?;
    let newer = vm.snapshot("newer", &["--memory"])?;
    let image = |snapshot: &serde_json::Value| -> Result<_> {
        let id = snapshot["id"].as_str().context("a snapshot has an id")?;
        Ok(site.data().join("memory").join(format!("{id}.kfm")))
    };
    std::fs::copy(image(&newer)?, image(&older)?)?;
    let from = vm.console().mark();
    vm.apply("older", &[])?;
    vm.console().wait_for(from, PATIENCE, "a complaint", |line| line.contains("STAMP-BAD disk").then_some(()))
}
