//! No space for the memory of a snapshot, and no space in the pool: an error or a pause, never damage.
//!
//! The first needs a small file system of its own for memory images, and so root; without it that test says so and ends.

use std::io::Write as _;

use anyhow::{Context, Result, ensure};
use keyframe_lab::console::Mark;
use keyframe_lab::machine::{Machine, number_after};
use keyframe_lab::mounted::Mounted;
use keyframe_lab::scratch;
use keyframe_lab::site::{PATIENCE, Site, SiteOptions};

/// Room for half of the guest's memory.
const ROOM: &str = "48m";
/// Room for all of it, and less than a host leaves alone on a disk.
const TIGHT: &str = "240m";

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
fn without_room_beside_it_the_memory_of_what_is_given_up_is_stored_first() -> Result<()> {
    let site = Site::up(&scratch::keyframe()?, &SiteOptions::default())?;
    let folder = site.data().join("memory");
    let Some(tight) = Mounted::over(&folder, TIGHT)? else { return Ok(()) };
    let vm = site.boot("web", "128M", "lab=stamp lab=pages,16")?;
    vm.snapshot("first", &["--memory"])?;
    let later = vm.tick()? + 20;
    vm.wait_for_tick(later)?;
    // What cannot be stored is not given up.
    let filler = folder.join("filler");
    let mut file = std::fs::File::create(&filler)?;
    while file.write_all(&[7; 65536]).is_ok() {}
    let from = vm.console().mark();
    let refused = site.refusal(["snapshot", "apply", "web@first", "--keep-memory"])?;
    println!("{refused}");
    ensure!(refused.to_lowercase().contains("space"), "the reason is not named: {refused}");
    vm.counters(from).context("the guest does not go on")?;
    ensure!(vm.tick()? >= later, "the guest went back");
    drop(file);
    std::fs::remove_file(&filler)?;
    let gone_back = vm.go_back("first", &["--keep-memory", "--keep-name", "kept"])?;
    ensure!(gone_back.tick < later, "it goes on at tick {}, not from the snapshot", gone_back.tick);
    let log = std::fs::read_to_string(site.data().join("keyframe.log"))?;
    let first = log.matches("its memory is stored before it is given up").count();
    ensure!(first == 2, "it was set aside where there is no room: {first} of two were stored first");
    let from = vm.console().mark();
    vm.apply("kept", &["--discard-current"])?;
    vm.expect(from, PATIENCE, "the counter of what was given up", |line| {
        number_after("TICK ", line).filter(|tick| *tick >= later)
    })?;
    vm.counters(vm.console().mark())?;
    vm.sound()?;
    drop(tight);
    Ok(())
}

#[test]
fn a_guest_that_fills_the_pool_pauses_and_goes_on_by_itself_when_the_pool_has_grown() -> Result<()> {
    let site = Site::up(&scratch::keyframe()?, &SiteOptions { pool_size: "192M", ..SiteOptions::default() })?;
    let vm = site.boot("web", "128M", "")?;
    vm.act("disk", "attach", &["size=512M,name=big"])?;
    fill(&site, &vm)?;
    let refused = site.refusal(["vm", "resume", "web"])?;
    println!("{refused}");
    ensure!(refused.contains("paused: no space") && refused.contains("keyframe pool grow"), "{refused}");
    ensure!(vm.show()?["state"]["reason"] == "no-space", "{}", vm.show()?);
    grow(&site)?;
    // Nobody has to tell it: the host tries again, once a minute at the latest.
    vm.expect(Mark::default(), PATIENCE * 2, "FILLED 0", |line| line.contains("FILLED 0").then_some(()))?;
    let from = vm.console().mark();
    // Every seventeenth MiB, for an emulated processor takes its time.
    vm.run("for i in $(seq 0 17 255); do dd if=/dev/vdc bs=1M skip=$i count=1 2>/dev/null; done | tr -d x | wc -c")?;
    vm.expect(from, PATIENCE, "nothing but x", |line| (line == "0").then_some(()))?;
    site.check_at_rest()
}

fn grow(site: &Site) -> Result<()> {
    // As what was refused says: the pool is found by the data directory.
    site.run(["pool", "grow", "--size", "1G"]).map(drop)
}

/// Has a machine write to its third disk until the pool is full and it stands still.
fn fill(site: &Site, vm: &Machine<'_>) -> Result<()> {
    vm.run("while [ ! -b /dev/vdc ]; do usleep 20000; done")?;
    // Made once, because an emulated processor takes its time.
    vm.run("head -c 1048576 /dev/zero | tr '\\0' x >/tmp/x")?;
    // In the background, because the console must not wait for a guest that stands still.
    vm.run(
        "(for i in $(seq 256); do cat /tmp/x; done | dd of=/dev/vdc bs=1M iflag=fullblock conv=fsync; echo FILLED $?) & true",
    )?;
    site.wait_until(PATIENCE * 2, || {
        let shown = vm.show()?;
        let power = (&shown["state"]["power"], &shown["state"]["reason"]);
        ensure!(power.0 == "paused" && power.1 == "no-space", "the machine is {}", shown["state"]);
        Ok(())
    })
}

#[test]
fn a_machine_that_stands_still_for_want_of_space_goes_back_and_forth_when_the_pool_has_grown() -> Result<()> {
    let site = Site::up(&scratch::keyframe()?, &SiteOptions { pool_size: "192M", ..SiteOptions::default() })?;
    let vm = site.boot("web", "128M", "lab=pages,8")?;
    vm.act("disk", "attach", &["size=512M,name=big"])?;
    vm.run("while [ ! -b /dev/vdc ]; do usleep 20000; done")?;
    vm.snapshot("before", &["--memory"])?;
    let later = vm.tick()? + 20;
    vm.wait_for_tick(later)?;
    fill(&site, &vm)?;
    let refused = site.refusal(["snapshot", "apply", "web@before", "--discard-current"])?;
    ensure!(refused.contains("pool is nearly full") && refused.contains("grow the pool"), "{refused}");
    ensure!(vm.show()?["state"]["reason"] == "no-space", "{}", vm.show()?);
    grow(&site)?;
    // What it could not write yet is in its memory.
    let gone_back = vm.go_back("before", &["--keep-memory", "--keep-name", "full"])?;
    ensure!(gone_back.tick < later, "it goes on at tick {}, not from the snapshot", gone_back.tick);
    let from = vm.console().mark();
    vm.apply("full", &["--discard-current"])?;
    println!("{}", vm.show()?["state"]);
    vm.expect(from, PATIENCE * 2, "FILLED 0", |line| line.contains("FILLED 0").then_some(()))?;
    vm.sound()?;
    site.check_at_rest()
}
