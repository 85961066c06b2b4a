//! What a dry run says becomes free does: held against what the pool and the folder of memory images give back.

use std::fs;
use std::os::unix::fs::MetadataExt;

use anyhow::{Context, Result, ensure};
use keyframe_lab::scratch;
use keyframe_lab::site::{PATIENCE, Site, SiteOptions};
use serde_json::Value;

/// What the pool's own bookkeeping of what goes may take besides the data that is counted.
const BOOKKEEPING: u64 = 1 << 20;

fn pool(site: &Site) -> Result<Value> {
    let control = site.data().join("pool.kf.control").display().to_string();
    site.json(["pool", "info", "--control", &control])
}

fn number(value: &Value, name: &str) -> Result<u64> {
    value[name].as_u64().with_context(|| format!("no {name} in {value}"))
}

/// What is in use of the pool when all data that goes is freed. What little waits for the next checkpoint counts as free.
fn used(site: &Site) -> Result<u64> {
    let mut used = 0;
    site.wait_until(PATIENCE, || {
        let pool = pool(site)?;
        let pending = number(&pool, "pending")?;
        ensure!(number(&pool, "ghosts")? == 0 && pending < BOOKKEEPING, "not all is freed: {pool}");
        used = number(&pool, "used")? - pending;
        Ok(())
    })?;
    Ok(used)
}

/// What the memory images take on their disk.
fn memory(site: &Site) -> Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(site.data().join("memory"))? {
        sum += entry?.metadata()?.blocks() * 512;
    }
    Ok(sum)
}

/// Deletes, and holds what became free against what the dry run had said: at least so much, of it memory or not.
fn deletes_as_said(site: &Site, line: &[&str], least: u64, has_memory: bool) -> Result<()> {
    let said = site.json(line.iter().chain(&["--dry-run"]))?;
    let (all, images) = (number(&said, "would_free")?, number(&said, "memory")?);
    let blocks = all.checked_sub(images).with_context(|| format!("memory is more than all: {said}"))?;
    ensure!(blocks >= least && (images > 0) == has_memory, "this is no test: {said}");
    becomes_free(site, line, blocks, images)
}

/// The same for an apply that keeps nothing of a state without memory.
fn discards_as_said(site: &Site, line: &[&str], least: u64) -> Result<()> {
    let said = site.json(line.iter().chain(&["--dry-run"]))?;
    let (blocks, memory) = (number(&said, "loses")?, number(&said, "loses_memory")?);
    ensure!(blocks >= least && memory == 0, "this is no test: {said}");
    becomes_free(site, line, blocks, 0)
}

/// Does it; so much of the pool and of the memory images is free afterwards.
fn becomes_free(site: &Site, line: &[&str], blocks: u64, images: u64) -> Result<()> {
    let (used_before, memory_before) = (used(site)?, memory(site)?);
    site.json(line)?;
    let (used_after, memory_after) = (used(site)?, memory(site)?);
    let freed = used_before.checked_sub(used_after).context("the pool is fuller than before")?;
    println!("{}: {blocks} and {images} said, {freed} and {} freed", line.join(" "), memory_before - memory_after);
    ensure!(memory_before - memory_after == images, "{line:?}: of memory {}", memory_before - memory_after);
    ensure!((blocks..=blocks + BOOKKEEPING).contains(&freed), "{line:?}: of the pool {freed}, {blocks} had been said");
    Ok(())
}

#[test]
fn what_a_dry_run_says_becomes_free_does() -> Result<()> {
    const MIB: u64 = 1 << 20;
    let site = Site::up(&scratch::keyframe()?, &SiteOptions::default())?;
    let vm = site.boot("web", "128M", "")?;
    vm.act("disk", "attach", &["size=64M,name=big"])?;
    vm.run("while [ ! -b /dev/vdc ]; do usleep 20000; done")?;
    // Once, because an emulated processor takes its time.
    vm.run("head -c 1048576 /dev/zero | tr '\\0' x >/tmp/x")?;
    let write = |mib: u32| {
        vm.run(&format!("for i in $(seq {mib}); do cat /tmp/x; done | dd of=/dev/vdc bs=1M iflag=fullblock conv=fsync"))
    };
    // Each overwrites what the ones before have written: of that, they alone hold what is as far in.
    for (name, mib, memory) in [("root", 4, true), ("a", 6, true), ("b", 10, true), ("c", 7, false)] {
        write(mib)?;
        vm.snapshot(name, if memory { &["--memory"] } else { &[] })?;
    }
    write(3)?;
    vm.act("vm", "stop", &["--hard"])?;

    deletes_as_said(&site, &["snapshot", "delete", "web@root"], 4 * MIB, true)?;
    deletes_as_said(&site, &["snapshot", "delete", "web@b", "--subtree"], 10 * MIB, true)?;
    // The machine alone holds now what was written after that.
    discards_as_said(&site, &["snapshot", "apply", "web@a", "--discard-current", "--without-memory"], 10 * MIB)?;
    deletes_as_said(&site, &["vm", "delete", "web"], 6 * MIB, true)?;
    ensure!(memory(&site)? == 0, "memory of nobody");
    site.check_at_rest()
}
