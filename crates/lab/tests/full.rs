//! No space for the memory of a snapshot, and no space in the pool: an error or a pause, never damage.
//!
//! The first needs a small file system of its own for memory images, and so root; without it that test says so and ends.

use anyhow::{Context, Result, ensure};
use keyframe_lab::console::Mark;
use keyframe_lab::mounted::Mounted;
use keyframe_lab::scratch;
use keyframe_lab::site::{PATIENCE, Site, SiteOptions};

/// Room for half of the guest's memory.
const ROOM: &str = "48m";

#[test]
fn a_snapshot_for_whose_memory_there_is_no_space_fails_and_the_guest_goes_on() -> Result<()> {
    let site = Site::up(&scratch::keyframe()?, &SiteOptions::default())?;
    let folder = site.data().join("memory");
    let vm = site.boot("web", "256M", "lab=stamp lab=pages,64")?;
    vm.counters(Mark::default())?;
    let Some(full) = Mounted::over(&folder, ROOM)? else { return Ok(()) };
    let refused = site.refusal(["snapshot", "create", "web@big", "--memory"])?;
    println!("{refused}");
    ensure!(refused.to_lowercase().contains("space"), "the reason is not named: {refused}");
    ensure!(
        refused.contains("machine web") && refused.contains("for snapshot big"),
        "what failed is not named: {refused}"
    );
    ensure!(!refused.contains("partial"), "a file is named that nobody knows: {refused}");
    vm.counters(vm.console().mark()).context("the guest does not go on")?;
    site.wait_until_at_rest()?;
    ensure!(std::fs::read_dir(&folder)?.next().is_none(), "something is left in the folder of memory images");
    site.json(["snapshot", "create", "web@small"])?;
    drop(full);
    let before = vm.tick()?;
    vm.snapshot("later", &["--memory"])?;
    vm.wait_for_tick(before + 40)?;
    vm.go_back("later", &[])?;
    vm.counters(vm.console().mark())?;
    site.wait_until_at_rest()
}

#[test]
fn a_guest_that_fills_the_pool_pauses_and_goes_on_by_itself_when_the_pool_has_grown() -> Result<()> {
    let site = Site::up(&scratch::keyframe()?, &SiteOptions { pool_size: "192M", ..SiteOptions::default() })?;
    let vm = site.boot("web", "128M", "")?;
    vm.act("disk", "attach", &["size=512M,name=big"])?;
    vm.run("while [ ! -b /dev/vdc ]; do usleep 20000; done")?;
    // In the background, because the console must not wait for a guest that stands still.
    vm.run(
        "(tr '\\0' x </dev/zero | dd of=/dev/vdc bs=1M count=256 iflag=fullblock conv=fsync; echo FILLED $?) & true",
    )?;
    site.wait_until(PATIENCE * 2, || {
        let shown = vm.show()?;
        let power = (&shown["state"]["power"], &shown["state"]["reason"]);
        ensure!(power.0 == "paused" && power.1 == "no-space", "the machine is {}", shown["state"]);
        Ok(())
    })?;
    let control = site.data().join("pool.kf.control").display().to_string();
    site.run(["pool", "grow", "--size", "1G", "--control", &control])?;
    // Nobody has to tell it: the host tries again, once a minute at the latest.
    vm.expect(Mark::default(), PATIENCE * 2, "FILLED 0", |line| line.contains("FILLED 0").then_some(()))?;
    let from = vm.console().mark();
    // Every seventeenth MiB, for an emulated processor takes its time.
    vm.run("for i in $(seq 0 17 255); do dd if=/dev/vdc bs=1M skip=$i count=1 2>/dev/null; done | tr -d x | wc -c")?;
    vm.expect(from, PATIENCE, "nothing but x", |line| (line == "0").then_some(()))?;
    site.check_at_rest()
}
