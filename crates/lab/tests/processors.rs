//! A guest with more than one processor: captured while all of them work, gone back and forked; and other hardware for it.

use anyhow::{Context, Result, ensure};
use keyframe_lab::machine::{Machine, number_after};
use keyframe_lab::scratch;
use keyframe_lab::site::{PATIENCE, Site, SiteOptions};

/// One counter bound to each processor; each number is a line of its own.
const COUNT: &str = r"
for cpu in 0 1; do
    taskset $((1 << cpu)) sh -c 'echo $$ >/run/pid$0; n=0; while :; do n=$((n + 1)); echo $n >>/run/count$0; usleep 20000; done' $cpu \
        </dev/null >/dev/null 2>&1 &
done";
/// The last number of each, how many it has told of, and the processor that it was last on.
const LOOK: &str = r"
for cpu in 0 1; do
    sed -n '$p;$=' /run/count$cpu
    cut -d' ' -f39 /proc/$(cat /run/pid$cpu)/stat
done";
/// How far each counts on.
const FAR: u64 = 20;

#[test]
fn all_processors_of_a_guest_are_captured_and_go_on_and_it_sees_what_is_set() -> Result<()> {
    let site = Site::up(&scratch::keyframe()?, &SiteOptions::default())?;
    let vm = site.create_with("web", "128M", "", &["--cpus", "2"])?;
    vm.start()?;
    ensure!(vm.in_guest("nproc")? == "2", "the guest sees {} processors", vm.in_guest("nproc")?);
    vm.in_guest(COUNT)?;
    let before = count_on(&site, &vm, [0, 0])?;
    let snapshot = vm.snapshot("one", &["--memory"])?;
    ensure!(snapshot["report"]["method"] == "at-resume", "it was not captured while it ran: {snapshot}");
    count_on(&site, &vm, before).context("after its capture")?;
    vm.in_guest("touch /run/later")?;

    site.json(["clone", "web@one", "--memory", "--name", "fork"])?;
    let fork = site.machine("fork")?;
    count_on(&site, &fork, before).context("the fork")?;
    ensure!(fork.in_guest("nproc; ls /run/later 2>/dev/null; :")? == "2", "the fork is not of that instant");
    site.json(["vm", "delete", "fork", "--force"])?;

    vm.apply("one", &["--discard-current"])?;
    count_on(&site, &vm, before).context("gone back")?;
    ensure!(vm.in_guest("nproc; ls /run/later 2>/dev/null; :")? == "2", "it has not gone back");

    ensure!(memory(&vm)? < 128 << 10, "the guest sees {} KiB", memory(&vm)?);
    vm.act("vm", "stop", &["--hard"])?;
    vm.act("vm", "set", &["--cpus", "3", "--memory", "192M"])?;
    vm.start()?;
    ensure!(vm.in_guest("nproc")? == "3", "the guest sees {} processors", vm.in_guest("nproc")?);
    let seen = memory(&vm)?;
    ensure!((144 << 10..192 << 10).contains(&seen), "the guest sees {seen} KiB");
    site.wait_until_at_rest()
}

/// What the guest can use, in KiB.
fn memory(vm: &Machine<'_>) -> Result<u64> {
    let said = vm.in_guest("sed -n 's/^MemTotal: *\\([0-9]*\\) kB/MEMORY \\1/p' /proc/meminfo")?;
    number_after("MEMORY ", &said).with_context(|| format!("it says {said}"))
}

/// Waits until each counter, on its processor, is well beyond what it was, and has left no number out.
fn count_on(site: &Site, vm: &Machine<'_>, from: [u64; 2]) -> Result<[u64; 2]> {
    let mut counts = from;
    site.wait_until(PATIENCE, || {
        let said = vm.in_guest(LOOK)?;
        let numbers: Vec<u64> = said.lines().map(str::parse).collect::<Result<_, _>>().context(said.clone())?;
        for (cpu, of) in numbers.chunks(3).enumerate() {
            ensure!(of.len() == 3 && of[0] == of[1], "processor {cpu} lost count: {said}");
            ensure!(of[2] == cpu as u64, "the counter of processor {cpu} is on another: {said}");
            ensure!(of[0] >= from[cpu] + FAR, "processor {cpu} does not count on from {}: {said}", from[cpu]);
            counts[cpu] = of[0];
        }
        Ok(())
    })?;
    Ok(counts)
}
