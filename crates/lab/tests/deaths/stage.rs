//! What the rounds are played on, and how it is looked at after each.

use std::cell::OnceCell;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use keyframe_lab::hold::Held;
use keyframe_lab::machine::Machine;
use keyframe_lab::process::run_tool;
use keyframe_lab::site::{PATIENCE, Role, Site, runs};
use rustix::process::Pid;
use serde_json::Value;

use crate::plays::{LESS, Play, Proof};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Victim {
    Agent,
    Manager,
    /// Every machine but the one that nothing is to happen to.
    Machine,
}

/// What all rounds play on.
pub(crate) struct Stage<'a> {
    site: &'a Site,
    /// Nothing is done to it, so nothing happens to it.
    bystander: Machine<'a>,
    process: Pid,
    /// Its guest obeys. It is made when the first play wants it.
    guest: OnceCell<Machine<'a>>,
    /// The path of two images without its extension.
    images: String,
}

impl<'a> Stage<'a> {
    pub(crate) fn set(site: &'a Site) -> Result<Stage<'a>> {
        let bystander = site.boot("bystander", "128M", "lab=stamp")?;
        let process = bystander.pid()?;
        site.json(["vm", "create", "web", "--memory", "32M", "--disk", "8M", "--nic", "user", "--start"])?;
        site.json(["snapshot", "create", "web@start", "--memory"])?;
        let images = site.data().join("images").display().to_string();
        let raw = format!("{images}.raw");
        std::fs::write(&raw, vec![7; 8 << 20])?;
        run_tool(Command::new("qemu-img").args(["convert", "-O", "qcow2", &raw, &format!("{images}.qcow2")]))?;
        Ok(Stage { site, bystander, process, guest: OnceCell::new(), images })
    }

    /// The machine whose guest obeys; it has a snapshot `start`, too.
    fn guest(&self) -> Result<&Machine<'a>> {
        if self.guest.get().is_none() {
            let guest = self.site.boot("guest", "128M", "")?;
            mark(&guest, "start")?;
            guest.snapshot("start", &["--memory"])?;
            self.guest.set(guest).unwrap_or(());
        }
        self.guest.get().context("there is no guest that obeys")
    }

    fn order(&self, play: &Play) -> Vec<String> {
        play.order.iter().map(|word| word.replace("IMAGES", &self.images)).collect()
    }

    /// Holds the job at a step, kills, lets it go on.
    pub(crate) fn play(&self, play: &Play, step: usize, victim: Victim, when: &str) -> Result<()> {
        let place = format!("{} {step} {when}", play.kind);
        let scene = || format!("{victim:?} killed at {place} of `{}`", play.order.join(" "));
        self.prepare(play).with_context(|| format!("before {}", scene()))?;
        let process = self.site.machine(play.machine)?.pid().ok();
        let mut held = self.site.hold(&self.order(play), &place).with_context(scene)?;
        ensure!(held.reached, "{}: there is no such step", scene());
        let began = Instant::now();
        self.kill(victim, &mut held).and_then(|()| self.settle(play, &held, victim, process)).with_context(scene)?;
        println!("{}: at rest after {:?}", scene(), began.elapsed());
        Ok(())
    }

    /// Has the job taken back from that step on, and kills while that is held. `false` if it cannot be cancelled there.
    pub(crate) fn take_back(&self, play: &Play, step: usize, victim: Victim, when: &str) -> Result<bool> {
        let scene = || format!("{victim:?} killed {when} of step {step} of `{}`", play.order.join(" "));
        self.prepare(play).with_context(|| format!("before {}", scene()))?;
        let process = self.site.machine(play.machine)?.pid().ok();
        // What is called off when its last step is done is done.
        let last = step + 1 == play.steps;
        let place = format!("{} {step} {}", play.kind, if last { "before" } else { "after" });
        let mut held = self.site.hold(&self.order(play), &place).with_context(scene)?;
        ensure!(held.reached, "{}: there is no such step", scene());
        if self.site.job(&held.job)?["cancellable"] != true {
            held.release()?;
            self.site.ended(&held.job)?;
            return Ok(false);
        }
        // The command would wait for the job's end.
        let mut cancel =
            self.site.command(["job", "cancel", &held.job]).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        self.site.wait_until(PATIENCE, || {
            let job = self.site.job(&held.job)?;
            ensure!(job["cancellable"] != true, "it is not cancelled: {job}");
            Ok(())
        })?;
        let began = Instant::now();
        self.site.arm(&format!("{} {step} {when}", play.kind))?;
        held.release()?;
        held.again().with_context(scene)?;
        if last && !held.reached {
            // Its last step does not ask whether it is still wished.
            cancel.wait()?;
            self.settle(play, &held, Victim::Machine, process).with_context(scene)?;
            return Ok(false);
        }
        ensure!(held.reached, "{}: the job was not taken back", scene());
        self.kill(victim, &mut held).and_then(|()| self.settle(play, &held, victim, process)).with_context(scene)?;
        cancel.wait()?;
        let job = self.site.job(&held.job)?;
        ensure!(job["state"] == "cancelled" || victim == Victim::Machine, "{}: it ended as {job}", scene());
        println!("{}: at rest after {:?}", scene(), began.elapsed());
        Ok(true)
    }

    fn kill(&self, victim: Victim, held: &mut Held<'_>) -> Result<()> {
        match victim {
            Victim::Agent | Victim::Manager => {
                let role = if victim == Victim::Agent { Role::Agent } else { Role::Manager };
                self.site.kill(role)?;
                held.release()?;
                self.site.revive(role)
            }
            Victim::Machine => {
                for machine in self.machines()? {
                    // Those that are off have no process.
                    machine.kill().unwrap_or(());
                }
                held.release()
            }
        }
    }

    /// The machines that may be killed.
    fn machines(&self) -> Result<Vec<Machine<'a>>> {
        let list = self.site.json(["vm", "list"])?;
        let names = list.as_array().into_iter().flatten().filter_map(|vm| vm["name"].as_str());
        names.filter(|name| *name != "bystander").map(|name| self.site.machine(name)).collect()
    }

    fn settle(&self, play: &Play, held: &Held<'_>, victim: Victim, process: Option<Pid>) -> Result<()> {
        self.site.wait_until_up()?;
        let job = self.site.ended(&held.job)?;
        let state = job["state"].as_str().unwrap_or_default();
        // What was in error before a job that came to nothing still is.
        let broken = (play.power == "error" && state != "succeeded").then_some(play.machine);
        self.site.wait_until_at_rest_but(broken).with_context(|| format!("after {job}"))?;
        // The manager hears of a death when it does.
        self.site.wait_until(PATIENCE, || self.compare_powers())?;
        // Whoever loses only the connection goes on where it was.
        ensure!(victim == Victim::Machine || state != "failed", "the job failed: {job}");
        if state == "succeeded" {
            let steps = job["progress"]["total"].as_u64().unwrap_or(0) / 100;
            ensure!(steps == play.steps as u64, "{} has {steps} steps: bring this list up to date", play.kind);
        }
        if let (Some(process), true) = (process, play.keeps && victim != Victim::Machine) {
            let now = self.site.machine(play.machine)?.pid()?;
            ensure!(runs(process) && now == process, "{} was not left alone", play.machine);
        }
        if victim != Victim::Machine && play.machine == "guest" {
            self.guest()?.run("touch /data/alive; sync").context("the guest stands still or is frozen")?;
            self.prove(play.proof, state == "succeeded")?;
        }
        ensure!(runs(self.process) && self.bystander.pid()? == self.process, "the bystander has died");
        self.bystander.next_stamp().context("the bystander stands still")?;
        self.bystander.sound()
    }

    fn prove(&self, proof: Proof, done: bool) -> Result<()> {
        let guest = self.guest()?;
        let (machine, look, expected) = match (proof, done) {
            (Proof::None, _) | (Proof::Name | Proof::Clean, false) => return Ok(()),
            (Proof::Clean, true) => {
                let shown = self.site.json(["snapshot", "show", "guest@new"])?;
                ensure!(shown["consistency"] == "filesystem", "it is not clean: {shown}");
                return Ok(());
            }
            (Proof::Name, true) => (&self.site.machine("made")?, "hostname", "made"),
            (Proof::Disks, true) => (guest, DISKS, "2"),
            (Proof::Disks, false) => (guest, DISKS, "3"),
            (Proof::Marks, true) => (guest, MARKS, "start\nstart"),
            (Proof::Marks, false) => (guest, MARKS, "now\nnow"),
        };
        // A guest sees a disk that is back when its system has got to it.
        self.site.wait_until(PATIENCE, || {
            let found = machine.in_guest(look)?;
            ensure!(found == expected, "`{look}` in {} says {found:?}, not {expected:?}", machine.name);
            Ok(())
        })
    }

    /// Fails unless every machine that is said to run has a process, and no other; nothing is said of one in error.
    fn compare_powers(&self) -> Result<()> {
        for machine in self.machines()? {
            let shown = machine.show()?;
            if shown["state"]["state"] == "error" {
                continue;
            }
            let stopped = shown["state"]["power"] == "stopped";
            let process = machine.pid().is_ok_and(runs);
            ensure!(stopped != process, "{} has a process: {process}, and is {}", machine.name, shown["state"]);
        }
        Ok(())
    }

    /// What earlier rounds left is gone, and the machine is as the play wants it.
    fn prepare(&self, play: &Play) -> Result<()> {
        let site = self.site;
        for kind in ["vm", "template"] {
            let list = site.json([kind, "list"])?;
            for name in list.as_array().into_iter().flatten().filter_map(|one| one["name"].as_str()) {
                match name {
                    "made" => drop(site.json(["vm", "delete", name, "--force"])?),
                    "mold" => drop(site.json(["template", "delete", name])?),
                    _ => {}
                }
            }
        }
        if play.machine == "guest" {
            self.guest()?;
        }
        for machine in ["web"].into_iter().chain(self.guest.get().map(|_| "guest")) {
            for snapshot in site.json(["snapshot", "list", machine])?.as_array().into_iter().flatten() {
                let name = snapshot["name"].as_str().context("a snapshot has a name")?;
                if name != "start" {
                    site.json(["snapshot", "delete", &format!("{machine}@{name}")])?;
                }
            }
        }
        if play.machine == "guest" {
            self.wake()?;
        } else {
            self.mend()?;
            self.power(if play.power == "error" { "running" } else { play.power })?;
        }
        for line in play.first {
            site.json(*line)?;
        }
        if play.power == "error" { self.break_web() } else { Ok(()) }
    }

    /// The guest that obeys is where it was at its snapshot, or runs as it was left.
    fn wake(&self) -> Result<()> {
        let guest = self.guest()?;
        let shown = guest.show()?;
        if shown["state"]["power"] != "running" || disks(&shown).any(|disk| disk["name"] == "more") {
            guest.apply("start", &["--discard-current"])?;
        }
        mark(guest, "now")
    }

    /// `web` is not in error, and has the disk only that it was made with.
    fn mend(&self) -> Result<()> {
        let shown = self.site.json(["vm", "show", "web"])?;
        if shown["state"]["state"] == "error" {
            self.site.json(["snapshot", "apply", "web@start", "--discard-current"])?;
        } else if disks(&shown).any(|disk| disk["name"] == "more") {
            self.power("stopped")?;
            self.site.json(LESS)?;
        }
        Ok(())
    }

    /// Puts `web` into error, with its process, as a bug in a step would.
    fn break_web(&self) -> Result<()> {
        self.site.arm("vm-pause 0 panics")?;
        self.site.refusal(["vm", "pause", "web"])?;
        self.site.disarm()?;
        let state = &self.site.json(["vm", "show", "web"])?["state"];
        ensure!(state["state"] == "error", "web is not in error: {state}");
        Ok(())
    }

    fn power(&self, wanted: &str) -> Result<()> {
        let shown = self.site.json(["vm", "show", "web"])?;
        let now = shown["state"]["power"].as_str().with_context(|| format!("web is not at rest: {shown}"))?;
        let lines: &[&[&str]] = match (now, wanted) {
            ("stopped", "running") => &[&["vm", "start", "web"]],
            ("stopped", "paused") => &[&["vm", "start", "web", "--paused"]],
            ("paused", "running") => &[&["vm", "resume", "web"]],
            ("running", "paused") => &[&["vm", "pause", "web"]],
            (_, "stopped") if now != "stopped" => &[&["vm", "stop", "web", "--hard"]],
            _ => &[],
        };
        lines.iter().try_for_each(|line| self.site.json(*line).map(drop))
    }
}

/// How many disks the guest has.
const DISKS: &str = "ls /sys/block | grep -c ^vd";
/// What its memory and its disk hold.
const MARKS: &str = "echo 3 >/proc/sys/vm/drop_caches; cat /run/mark /data/mark";

/// Has it hold a word in its memory and on its disk.
fn mark(guest: &Machine<'_>, word: &str) -> Result<()> {
    guest.in_guest(&format!("echo {word} | tee /run/mark >/data/mark; sync")).map(drop)
}

fn disks(vm: &Value) -> impl Iterator<Item = &Value> {
    vm["hardware"]["disks"].as_array().into_iter().flatten()
}
