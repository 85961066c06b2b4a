//! Kill -9 of the agent, the manager or the machine before and after each step of each kind of job, and while a step is taken
//! back: everything comes to rest, nothing is left over, and who was not killed runs on.
//!
//! Each step meets one of the victims here, and every second one again while it is taken back. `KEYFRAME_DEATHS=all` brings each
//! together with each, before and after; `KEYFRAME_KIND=clone` plays jobs of one kind only.

use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use keyframe_lab::hold::Held;
use keyframe_lab::machine::Machine;
use keyframe_lab::process::run_tool;
use keyframe_lab::scratch;
use keyframe_lab::site::{PATIENCE, Role, Site, SiteOptions, runs};
use rustix::process::Pid;
use serde_json::Value;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Victim {
    Agent,
    Manager,
    /// Every machine but the one that nothing is to happen to.
    Machine,
}

const VICTIMS: [Victim; 3] = [Victim::Agent, Victim::Manager, Victim::Machine];

/// One kind of job on a small machine without a system, called `web`.
struct Play {
    kind: &'static str,
    /// As many as the job reports.
    steps: usize,
    /// How `web` is before.
    power: &'static str,
    /// What comes before the order, each time.
    first: &'static [&'static [&'static str]],
    order: &'static [&'static str],
    /// It leaves the process of `web` alone.
    keeps: bool,
}

const fn play(kind: &'static str, steps: usize, power: &'static str, order: &'static [&'static str]) -> Play {
    Play { kind, steps, power, first: &[], order, keeps: true }
}

const MORE: &[&str] = &["disk", "attach", "web", "size=8M,name=more"];
const LESS: &[&str] = &["disk", "detach", "web", "more"];
const IMAGED: &[&str] =
    &["vm", "create", "made", "--memory", "32M", "--image", QCOW2, "--disk", RAW_DISK, "--nic", "none", "--start"];
/// Where images lie is known when they are made.
const QCOW2: &str = "IMAGES.qcow2";
const RAW_DISK: &str = "image=IMAGES.raw,name=raw";
const MADE: &[&str] = &["vm", "create", "made", "--memory", "32M", "--disk", "8M", "--nic", "none", "--start"];

const PLAYS: &[Play] = &[
    play("vm-create", 2, "running", MADE),
    Play { keeps: false, ..play("vm-start", 1, "stopped", &["vm", "start", "web"]) },
    Play { keeps: false, ..play("vm-stop", 1, "running", &["vm", "stop", "web", "--hard"]) },
    // It has no system that would obey; so its plug is pulled in the end.
    Play { keeps: false, ..play("vm-stop", 1, "running", &["vm", "stop", "web", "--deadline", "1s"]) },
    play("vm-pause", 1, "running", &["vm", "pause", "web"]),
    play("vm-resume", 1, "paused", &["vm", "resume", "web"]),
    play("vm-reset", 1, "running", &["vm", "reset", "web"]),
    Play {
        first: &[&["nic", "plug", "web", "0"]],
        ..play("vm-configure", 1, "running", &["nic", "unplug", "web", "0"])
    },
    Play {
        first: &[MADE, &["snapshot", "create", "made@one", "--memory"]],
        ..play("vm-delete", 4, "running", &["vm", "delete", "made", "--force"])
    },
    play("vm-create", 2, "running", IMAGED),
    play("disk-attach", 2, "running", MORE),
    play("disk-attach", 1, "stopped", MORE),
    Play { first: &[MORE], ..play("disk-detach", 1, "stopped", LESS) },
    Play { first: &[MORE], ..play("disk-resize", 1, "running", &["disk", "resize", "web", "more", "16M"]) },
    play("snapshot-create", 1, "running", &["snapshot", "create", "web@new", "--memory"]),
    // The disk is in no snapshot, so it goes with the state that is given up.
    Play {
        first: &[MORE],
        keeps: false,
        ..play("snapshot-apply", 8, "running", &["snapshot", "apply", "web@start", "--discard-current"])
    },
    Play {
        keeps: false,
        ..play(
            "snapshot-apply",
            6,
            "running",
            &["snapshot", "apply", "web@start", "--keep-memory", "--keep-name", "new"],
        )
    },
    // What is given up is no process.
    play("snapshot-apply", 3, "stopped", &["snapshot", "apply", "web@start", "--keep-name", "new"]),
    Play {
        keeps: false,
        ..play(
            "snapshot-apply",
            5,
            "paused",
            &["snapshot", "apply", "web@start", "--keep-memory", "--keep-name", "new"],
        )
    },
    Play {
        first: &[&["snapshot", "create", "web@new", "--memory"]],
        ..play("snapshot-compress", 1, "running", &["snapshot", "compress", "web@new"])
    },
    play("snapshot-verify", 1, "running", &["snapshot", "verify", "web@start"]),
    // Its disk is in nothing else.
    Play {
        first: &[MORE, &["snapshot", "create", "web@new"], LESS],
        ..play("snapshot-delete", 2, "stopped", &["snapshot", "delete", "web@new"])
    },
    play("clone", 4, "running", &["clone", "web", "--memory", "--name", "made", "--keep-identity"]),
    play("clone", 2, "running", &["clone", "web@start", "--name", "made", "--start"]),
    play("template-create", 4, "stopped", &["template", "create", "web", "--name", "mold"]),
    Play {
        first: &[&["template", "create", "web", "--name", "mold"]],
        ..play("template-delete", 3, "stopped", &["template", "delete", "mold"])
    },
];

fn all() -> bool {
    std::env::var("KEYFRAME_DEATHS").is_ok_and(|text| text == "all")
}

fn plays() -> impl Iterator<Item = &'static Play> {
    let only = std::env::var("KEYFRAME_KIND").ok();
    PLAYS.iter().filter(move |play| only.as_deref().is_none_or(|kind| kind == play.kind))
}

/// Plays every step of every kind, or one of so many, with six pairs of a victim and a moment in a row, a step at a time, so that over the kinds each
/// pair comes up; or with all of them. `act` says whether the rest of a step's pairs can be played.
fn rounds(
    moments: [&'static str; 2],
    one_of: usize,
    act: impl Fn(&Stage<'_>, &'static Play, usize, Victim, &'static str) -> Result<bool>,
) -> Result<()> {
    let site = Site::up(&scratch::keyframe()?, &SiteOptions { apart: true, ..SiteOptions::default() })?;
    let stage = Stage::set(&site)?;
    let all = all();
    let mut round = 0;
    for play in plays() {
        for step in 0..play.steps {
            let pairs = VICTIMS.iter().flat_map(|&victim| moments.map(|when| (victim, when)));
            for (at, (victim, when)) in pairs.enumerate() {
                if (all || round % one_of == 0 && at == round / one_of % 6) && !act(&stage, play, step, victim, when)? {
                    break;
                }
            }
            round += 1;
        }
    }
    Ok(())
}

#[test]
fn whoever_is_killed_at_whatever_step_everything_comes_to_rest() -> Result<()> {
    rounds(["before", "after"], 1, |stage, play, step, victim, when| {
        stage.play(play, step, victim, when)?;
        Ok(true)
    })
}

#[test]
fn whoever_is_killed_while_a_job_is_taken_back_everything_comes_to_rest() -> Result<()> {
    rounds(["before undo", "after undo"], 2, |stage, play, step, victim, when| {
        stage.take_back(play, step, victim, when)
    })
}

/// What all rounds play on.
struct Stage<'a> {
    site: &'a Site,
    /// Nothing is done to it, so nothing happens to it.
    bystander: Machine<'a>,
    process: Pid,
    /// The path of two images without its extension.
    images: String,
}

impl<'a> Stage<'a> {
    fn set(site: &'a Site) -> Result<Stage<'a>> {
        let bystander = site.boot("bystander", "128M", "lab=stamp")?;
        let process = bystander.pid()?;
        site.json(["vm", "create", "web", "--memory", "32M", "--disk", "8M", "--nic", "user", "--start"])?;
        site.json(["snapshot", "create", "web@start", "--memory"])?;
        let images = site.data().join("images").display().to_string();
        let raw = format!("{images}.raw");
        std::fs::write(&raw, vec![7; 8 << 20])?;
        run_tool(Command::new("qemu-img").args(["convert", "-O", "qcow2", &raw, &format!("{images}.qcow2")]))?;
        Ok(Stage { site, bystander, process, images })
    }

    fn order(&self, play: &Play) -> Vec<String> {
        play.order.iter().map(|word| word.replace("IMAGES", &self.images)).collect()
    }

    /// Holds the job at a step, kills, lets it go on.
    fn play(&self, play: &Play, step: usize, victim: Victim, when: &str) -> Result<()> {
        let place = format!("{} {step} {when}", play.kind);
        let scene = || format!("{victim:?} killed at {place} of `{}`", play.order.join(" "));
        self.prepare(play).with_context(|| format!("before {}", scene()))?;
        let process = self.site.machine("web")?.pid().ok();
        let mut held = self.site.hold(&self.order(play), &place).with_context(scene)?;
        ensure!(held.reached, "{}: there is no such step", scene());
        let began = Instant::now();
        self.kill(victim, &mut held).and_then(|()| self.settle(play, &held, victim, process)).with_context(scene)?;
        println!("{}: at rest after {:?}", scene(), began.elapsed());
        Ok(())
    }

    /// Has the job taken back from that step on, and kills while that is held. `false` if it cannot be cancelled there.
    fn take_back(&self, play: &Play, step: usize, victim: Victim, when: &str) -> Result<bool> {
        let scene = || format!("{victim:?} killed {when} of step {step} of `{}`", play.order.join(" "));
        self.prepare(play).with_context(|| format!("before {}", scene()))?;
        let process = self.site.machine("web")?.pid().ok();
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
        self.site.wait_until_at_rest().with_context(|| format!("after {job}"))?;
        // The manager hears of a death when it does.
        self.site.wait_until(PATIENCE, || self.compare_powers())?;
        let state = job["state"].as_str().unwrap_or_default();
        // Whoever loses only the connection goes on where it was.
        ensure!(victim == Victim::Machine || state != "failed", "the job failed: {job}");
        if state == "succeeded" {
            let steps = job["progress"]["total"].as_u64().unwrap_or(0) / 100;
            ensure!(steps == play.steps as u64, "{} has {steps} steps: bring this list up to date", play.kind);
        }
        if let (Some(process), true) = (process, play.keeps && victim != Victim::Machine) {
            ensure!(runs(process) && self.site.machine("web")?.pid()? == process, "web was not left alone");
        }
        ensure!(runs(self.process) && self.bystander.pid()? == self.process, "the bystander has died");
        self.bystander.next_stamp().context("the bystander stands still")?;
        self.bystander.sound()
    }

    /// Fails unless every machine that is said to run has a process, and no other.
    fn compare_powers(&self) -> Result<()> {
        for machine in self.machines()? {
            let shown = machine.show()?;
            let stopped = shown["state"]["power"] == "stopped";
            let process = machine.pid().is_ok_and(runs);
            ensure!(stopped != process, "{} has a process: {process}, and is {}", machine.name, shown["state"]);
        }
        Ok(())
    }

    /// What earlier rounds left is gone, and `web` is as the play wants it.
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
        for snapshot in site.json(["snapshot", "list", "web"])?.as_array().into_iter().flatten() {
            let name = snapshot["name"].as_str().context("a snapshot has a name")?;
            if name != "start" {
                site.json(["snapshot", "delete", &format!("web@{name}")])?;
            }
        }
        if disks(&site.json(["vm", "show", "web"])?).any(|disk| disk["name"] == "more") {
            self.power("stopped")?;
            site.json(LESS)?;
        }
        self.power(play.power)?;
        for line in play.first {
            site.json(*line)?;
        }
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

fn disks(vm: &Value) -> impl Iterator<Item = &Value> {
    vm["hardware"]["disks"].as_array().into_iter().flatten()
}
