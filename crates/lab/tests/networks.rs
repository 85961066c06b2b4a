//! Whose frames go where. Played by root in a network namespace of its own, with a bridge; every frame in it is heard.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::os::fd::OwnedFd;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use keyframe_lab::console::Mark;
use keyframe_lab::machine::Machine;
use keyframe_lab::process::run_tool;
use keyframe_lab::scratch;
use keyframe_lab::site::{PATIENCE, Role, Site, SiteOptions, runs};
use parking_lot::Mutex;
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, Protocol, RecvFlags, SocketType, recv, socket};
use rustix::process::{Signal, kill_process};

const INSIDE: &str = "KEYFRAME_LAB_INSIDE";
const BRIDGE: &str = "kflab";
/// `/sys/class/net` shows the namespace of whoever mounted it.
const SCENE: &str = "set -e; mount -t sysfs sys /sys; ip link add kflab type bridge; ip link set kflab up
    ip tuntap add dev kftry mode tap; ip link delete dev kftry; exec \"$@\"";
const MAC: &str = "52:54:00:6b:66:01";
/// Asks for somebody who is not there about once a second, for ever.
const TALK: &str = "ip link set eth0 up; ip addr add 10.9.0.1/24 dev eth0; \
    (while :; do ping -c 1 -W 1 10.9.0.99 >/dev/null 2>&1; done) & true";

fn in_a_namespace(line: &[&str]) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount", "--", "sh", "-c", SCENE, "sh"]).args(line);
    command
}

#[test]
fn a_fork_sends_nothing_under_the_address_of_its_source_and_isolated_ones_reach_only_each_other() -> Result<()> {
    if std::env::var_os(INSIDE).is_some() {
        return play();
    }
    if let Err(why) = run_tool(&mut in_a_namespace(&["true"])) {
        println!("SKIPPED: no network namespace with a bridge and a tap device: {why:#}");
        return Ok(());
    }
    let program = std::env::current_exe()?;
    let program = program.to_str().context("the path of this test is text")?;
    let thread = std::thread::current();
    let name = thread.name().context("a test has a name")?;
    let status = in_a_namespace(&[program, name, "--exact", "--nocapture"]).env(INSIDE, "1").status()?;
    ensure!(status.success(), "inside the namespace: {status}");
    Ok(())
}

fn play() -> Result<()> {
    let ear = Ear::open()?;
    let site = Site::up(&scratch::keyframe()?, &SiteOptions::default())?;
    let vm = site.create("web", "128M", "lab=stamp")?;
    vm.act("nic", "remove", &["0"])?;
    vm.act("nic", "add", &[&format!("bridge={BRIDGE},mac={MAC}")])?;
    vm.start()?;
    vm.run(TALK)?;
    ear.hears(&site, MAC, 1).context("the source, as a control")?;
    vm.snapshot("one", &["--memory"])?;
    vm.act("vm", "stop", &["--hard"])?;
    let last = ear.heard(MAC);

    let fork = fork(&site, "fork", &[])?;
    let new = address(&fork)?;
    ensure!(new != MAC, "the fork has the address of its source");
    let in_guest = fork.run("cat /sys/class/net/eth0/address").and_then(|()| said(&fork, &new));
    in_guest.context("the guest does not have its new address")?;
    tries(&fork)?;
    ensure!(ear.heard(&new) == 0, "the cable of a fork is plugged: {}", fork.act("nic", "list", &[])?);
    ensure!(ear.heard(MAC) == last, "a fork spoke under the address of its source");
    fork.act("nic", "plug", &["0"])?;
    ear.hears(&site, &new, 2).context("the fork, with its cable plugged")?;
    tries(&fork)?;
    ensure!(ear.heard(MAC) == last, "a fork spoke under the address of its source when its cable was plugged");

    isolated(&site, &ear)?;
    ensure!(ear.heard(MAC) == last, "somebody spoke under the address of the source");
    // Had one of them done so, it would have been heard.
    plug(&self::fork(&site, "twin", &["--nics", "keep", "--keep-identity"])?)?;
    ear.hears(&site, MAC, last + 1).context("a twin that was wished for")?;
    nothing_stays(&site)
}

/// A machine that ends while nobody looks leaves no device behind.
fn nothing_stays(site: &Site) -> Result<()> {
    let devices = || -> Result<usize> {
        let all = std::fs::read_dir("/sys/class/net")?.map(|entry| Ok(entry?.path().join("tun_flags").exists()));
        Ok(all.collect::<Result<Vec<bool>>>()?.into_iter().filter(|tap| *tap).count())
    };
    let twin = site.machine("twin")?;
    let before = devices()?;
    // Before the agent that follows has looked: its supervisor waits a moment.
    kill_process(site.pid(Role::Agent)?, Signal::STOP)?;
    let pid = twin.pid()?;
    twin.kill()?;
    site.wait_until(PATIENCE, || {
        ensure!(!runs(pid), "the machine still runs");
        Ok(())
    })?;
    site.kill(Role::Agent)?;
    site.wait_until_up()?;
    site.wait_until_at_rest()?;
    ensure!(devices()? == before - 1, "{before} tap devices, and one machine less: {} now", devices()?);
    Ok(())
}

fn isolated(site: &Site, ear: &Ear) -> Result<()> {
    site.json(["clone", "web@one", "--memory", "--name", "apart-{n}", "--count", "2", "--nics", "isolated=lab"])?;
    let (one, other) = (site.machine("apart-1")?, site.machine("apart-2")?);
    for (vm, ip) in [(&one, "10.9.0.11"), (&other, "10.9.0.12")] {
        vm.run(&format!("ip addr flush dev eth0; ip addr add {ip}/24 dev eth0"))?;
    }
    one.run("ping -c 1 -W 10 10.9.0.12 >/dev/null && echo ANSWERED")?;
    said(&one, "ANSWERED").context("isolated machines do not reach each other")?;
    // It is on the bridge.
    one.run("ping -c 1 -W 1 10.9.0.1 >/dev/null || echo NOBODY")?;
    said(&one, "NOBODY").context("an isolated machine reaches one that is not")?;
    for vm in [&one, &other] {
        ensure!(ear.heard(&address(vm)?) == 0, "frames of the isolated machine {} are on the bridge", vm.name);
    }
    Ok(())
}

fn fork<'a>(site: &'a Site, name: &str, more: &[&str]) -> Result<Machine<'a>> {
    site.json(["clone", "web@one", "--memory", "--name", name].iter().chain(more))?;
    site.machine(name)
}

/// A copy that was not told who it is has its cables out, although they are wished in.
fn plug(vm: &Machine<'_>) -> Result<()> {
    vm.act("nic", "unplug", &["0"])?;
    vm.act("nic", "plug", &["0"]).map(drop)
}

/// The address of its only interface, as the host has it.
fn address(vm: &Machine<'_>) -> Result<String> {
    let nics = vm.act("nic", "list", &[])?;
    nics[0]["mac"].as_str().map(str::to_owned).with_context(|| format!("no address in {nics}"))
}

fn said(vm: &Machine<'_>, what: &str) -> Result<()> {
    vm.expect(Mark::default(), Duration::from_secs(5), what, |line| (line == what).then_some(()))
}

/// Returns when the guest has tried to send for some seconds: there is no event for what does not happen.
fn tries(vm: &Machine<'_>) -> Result<()> {
    vm.run("ping -c 2 -W 1 10.9.0.98 >/dev/null 2>&1; true")
}

/// Hears every frame on every interface of this namespace, and counts them by the address of their sender.
struct Ear {
    heard: Arc<Mutex<HashMap<String, u64>>>,
    over: Arc<AtomicBool>,
}

impl Ear {
    fn open() -> Result<Ear> {
        const EVERYTHING: u16 = 3;
        let protocol = NonZeroU32::new(u32::from(EVERYTHING.to_be())).map(Protocol::from_raw);
        let socket = socket(AddressFamily::PACKET, SocketType::RAW, protocol).context("listen to all frames")?;
        set_socket_timeout(&socket, Timeout::Recv, Some(Duration::from_millis(100)))?;
        let ear = Ear { heard: Arc::default(), over: Arc::default() };
        let (heard, over) = (Arc::clone(&ear.heard), Arc::clone(&ear.over));
        std::thread::spawn(move || listen(&socket, &heard, &over));
        Ok(ear)
    }

    fn heard(&self, mac: &str) -> u64 {
        self.heard.lock().get(mac).copied().unwrap_or(0)
    }

    fn hears(&self, site: &Site, mac: &str, least: u64) -> Result<()> {
        site.wait_until(PATIENCE, || {
            ensure!(self.heard(mac) >= least, "of {mac} nothing is heard; heard are {:?}", self.heard.lock());
            Ok(())
        })
    }
}

impl Drop for Ear {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

fn listen(socket: &OwnedFd, heard: &Mutex<HashMap<String, u64>>, over: &AtomicBool) {
    let mut frame = [0; 64];
    while !over.load(Ordering::Relaxed) {
        match recv(socket, &mut frame[..], RecvFlags::TRUNC) {
            Ok((read, _)) if read >= 12 => {
                let sender: Vec<String> = frame[6..12].iter().map(|byte| format!("{byte:02x}")).collect();
                *heard.lock().entry(sender.join(":")).or_default() += 1;
            }
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => {}
            Err(e) => panic!("nothing more is heard: {e}"),
        }
    }
}
