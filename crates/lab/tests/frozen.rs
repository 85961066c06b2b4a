//! Agent and freezer are killed while a guest is frozen: the next agent thaws it.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use keyframe_lab::machine::Machine;
use keyframe_lab::scratch;
use keyframe_lab::site::{PATIENCE, Role, Site, SiteOptions};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

/// Has the guest agent take its time before it freezes, when it has been asked already.
const SLOW: &str = "kill -KILL $(cat /run/qga.pid); printf '#!/bin/sh\\n[ $1 = freeze ] || exit 0\\necho ASKED >/dev/console; sleep 2\\n' >/run/slow; \
    chmod 755 /run/slow; qemu-ga -d -m virtio-serial -p /dev/virtio-ports/org.qemu.guest_agent.0 -t /run -f /run/qga.pid -F/run/slow";
/// A guest that has not written for so long is frozen, or the guest agent tells that it is not.
const SILENCE: Duration = Duration::from_secs(2);

#[test]
fn a_guest_that_was_left_frozen_is_thawed_by_the_next_agent() -> Result<()> {
    let site = Site::up(&scratch::keyframe()?, &SiteOptions { apart: true, ..SiteOptions::default() })?;
    let vm = site.boot("web", "128M", "lab=stamp")?;
    vm.next_stamp()?;
    vm.run(SLOW)?;
    let from = vm.console().mark();
    let snapshot = ["snapshot", "create", "web@clean", "--quiesce", "required", "--deadline", "30s", "--no-wait"];
    let job = site.json(snapshot)?;
    let job = job["id"].as_str().context("a job has an id")?;
    let freezer = freezer(&site, &vm)?;
    vm.expect(from, PATIENCE, "ASKED", |line| (line == "ASKED").then_some(()))?;
    // It hears of nothing any more: neither that the guest is frozen, nor that it is to be thawed.
    kill_process(freezer, Signal::STOP)?;
    falls_silent(&site, &vm)?;
    // The manager would have the snapshot taken again, and the guest thawed with that.
    site.kill(Role::Manager)?;
    site.kill(Role::Agent)?;
    kill_process(freezer, Signal::KILL)?;
    let state = vm.agent()?.execute("guest-fsfreeze-status", json!({}))?;
    ensure!(state == "frozen", "nobody thawed the guest, which is {state}");

    site.revive(Role::Agent)?;
    vm.next_stamp().context("the guest does not write on")?;
    let state = vm.agent()?.execute("guest-fsfreeze-status", json!({}))?;
    ensure!(state == "thawed", "the guest is {state}");
    site.revive(Role::Manager)?;
    site.wait_until_up()?;
    println!("the snapshot: {}", site.ended(job)?["state"]);
    vm.next_stamp()?;
    vm.sound()?;
    site.wait_until_at_rest()
}

/// The process that freezes this guest, as soon as there is one.
fn freezer(site: &Site, vm: &Machine<'_>) -> Result<Pid> {
    let socket = vm.folder().join("qga.sock");
    let wanted = format!("freezer\0{}\0", socket.display());
    let mut found = None;
    site.wait_until(PATIENCE, || {
        for entry in fs::read_dir("/proc")?.filter_map(Result::ok) {
            let pid = entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            if String::from_utf8_lossy(&line).contains(&wanted) {
                found = pid;
            }
        }
        found.map(drop).context("nobody freezes the guest")
    })?;
    found.context("nobody freezes the guest")
}

/// Waits until the guest writes no more.
fn falls_silent(site: &Site, vm: &Machine<'_>) -> Result<()> {
    let (mut lines, mut since) = (0, Instant::now());
    site.wait_until(PATIENCE, || {
        let now = vm.console().lines().len();
        if now != lines {
            (lines, since) = (now, Instant::now());
        }
        ensure!(since.elapsed() > SILENCE, "the guest writes");
        Ok(())
    })
}
