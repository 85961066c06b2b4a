//! Live snapshots with memory, applying them, and forks, by size of the guest's RAM.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use keyframe_lab::console::Mark;
use keyframe_lab::images::Watch;
use keyframe_lab::machine::Machine;
use keyframe_lab::site::Site;

use super::super::Bench;
use super::{busy, calm, reported, site, size, time, timed};
use crate::ask::Server;
use crate::figure::Unit;
use crate::guest::{PATIENCE, first_tick, listen, silence, tick};
use crate::report::{Report, Row, Target};

/// MiB of RAM, and the longest median pause of its guest in seconds.
const SIZES: [(u64, f64); 3] = [(256, 0.015), (1024, 0.025), (4096, 0.060)];
/// Ticks that make sure that a counter is ahead of a snapshot's.
const AHEAD: u64 = 20;

pub(in crate::measure) fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    let site = site(bench)?;
    for (mib, pause) in SIZES.into_iter().filter(|(mib, _)| *mib <= bench.plan.memory) {
        let subject = Subject {
            machine: busy(&site, &format!("m{mib}"), mib)?,
            site: &site,
            mib,
            rounds: bench.plan.machine_rounds,
        };
        subject.snapshots(report, pause)?;
        subject.applies(report, false)?;
        subject.applies(report, true)?;
        subject.forks(report)?;
        subject.live_forks(report)?;
        subject.machine.act("vm", "stop", &["--hard"])?;
        subject.machine.act("vm", "delete", &[])?;
    }
    Ok(())
}

/// A machine with a busy guest.
struct Subject<'a> {
    site: &'a Site,
    machine: Machine<'a>,
    mib: u64,
    rounds: usize,
}

/// What was seen of one fork.
struct Fork {
    /// From the order to the fork's first word.
    output: Duration,
    /// From the moment at which the memory image was whole, if one was made.
    after_image: Option<Duration>,
}

impl Subject<'_> {
    fn snapshots(&self, report: &mut Report, target: f64) -> Result<()> {
        let console = self.machine.console();
        let (mut pauses, mut ready, mut silences) = (Vec::new(), Vec::new(), Vec::new());
        for n in 0..=self.rounds {
            let name = self.machine.at(&format!("s{n}"));
            let from = listen(console)?;
            let (_, seconds) = timed(|| self.site.json(["snapshot", "create", &name, "--memory"]))?;
            let gap = silence(console, from)?;
            if n > 0 {
                pauses.push(reported(&self.site.json(["snapshot", "show", &name])?, "paused")?);
                ready.push(seconds);
                silences.push(gap.as_secs_f64());
            }
        }
        let ready = time(ready);
        let calm = calm(console, self.rounds, Duration::from_secs_f64(ready.median()))?;
        let size = size(self.mib);
        let row = Row::new(format!("{size}: guest paused by a live snapshot of disks and memory"), time(pauses));
        report.row(row.target(Target::AtMost(Unit::Time, target)));
        report.row(Row::new(format!("{size}: … until it is ready (whole command)"), ready));
        let row = Row::new(format!("{size}: … longest silence of the guest's counter"), time(silences));
        report.row(row.against("nothing happens", calm));
        Ok(())
    }

    fn applies(&self, report: &mut Report, keep: bool) -> Result<()> {
        let (how, option) = match keep {
            true => ("keeping the memory of what is given up", "--keep-memory"),
            false => ("keeping the disks of what is given up", "--no-keep-memory"),
        };
        let console = self.machine.console();
        let agent = Server::at(&self.site.data().join("run/agent.sock"));
        let target = self.machine.at("s1");
        let (mut output, mut command, mut whole) = (Vec::new(), Vec::new(), Vec::new());
        let mut ahead = tick(console)?;
        for n in 0..=self.rounds {
            first_tick(console, console.mark(), |tick| tick > ahead + AHEAD)?;
            let (from, before) = (console.mark(), tick(console)?);
            let began = Instant::now();
            let (_, seconds) = timed(|| self.site.json(["snapshot", "apply", &target, option]))?;
            while agent.get(&format!("/v1/vms/{}", self.machine.id))?["memory_pending"] != 0 {
                ensure!(began.elapsed() < PATIENCE, "memory is not in after {PATIENCE:?}");
                std::thread::sleep(Duration::from_millis(2));
            }
            let all = began.elapsed();
            let mut last = before;
            // Ticks of before may still arrive; those of the snapshot are lower.
            let at = first_tick(console, from, |tick| std::mem::replace(&mut last, tick) > tick)?;
            ahead = last;
            if n > 0 {
                output.push(at.saturating_duration_since(began).as_secs_f64());
                command.push(seconds);
                whole.push(all.as_secs_f64());
            }
        }
        let size = size(self.mib);
        let row = Row::new(format!("{size}: apply, {how}, to the guest's first word"), time(output));
        report.row(row.target(Target::AtMost(Unit::Time, 0.5)));
        report.row(Row::new(format!("{size}: … the whole command"), time(command)));
        report.row(Row::new(format!("{size}: … until all memory is in"), time(whole)));
        Ok(())
    }

    fn forks(&self, report: &mut Report) -> Result<()> {
        let source = self.machine.at("s1");
        let mut output = Vec::new();
        for n in 0..=self.rounds {
            let fork = self.fork(&source, &format!("f{}-{n}", self.mib))?;
            if n > 0 {
                output.push(fork.output.as_secs_f64());
            }
        }
        let what = format!("{}: fork of a snapshot with memory, to its first word", size(self.mib));
        report.row(Row::new(what, time(output)).target(Target::AtMost(Unit::Time, 1.0)));
        Ok(())
    }

    fn live_forks(&self, report: &mut Report) -> Result<()> {
        let console = self.machine.console();
        let (mut output, mut after, mut silences) = (Vec::new(), Vec::new(), Vec::new());
        for n in 0..=self.rounds {
            let from = listen(console)?;
            let fork = self.fork(&self.machine.name, &format!("l{}-{n}", self.mib))?;
            if n > 0 {
                output.push(fork.output.as_secs_f64());
                after.push(fork.after_image.context("no memory image was seen")?.as_secs_f64());
                silences.push(silence(console, from)?.as_secs_f64());
            }
        }
        let output = time(output);
        let calm = calm(console, self.rounds, Duration::from_secs_f64(output.median()))?;
        let size = size(self.mib);
        let row =
            Row::new(format!("{size}: fork of the running machine, image whole to the fork's first word"), time(after));
        report.row(row.target(Target::AtMost(Unit::Time, 1.0)));
        report.row(Row::new(format!("{size}: … from the order on"), output));
        let row = Row::new(format!("{size}: … longest silence of the source's counter"), time(silences));
        report.row(row.against("nothing happens", calm));
        Ok(())
    }

    /// Makes a fork, looks at it, and deletes it.
    fn fork(&self, source: &str, name: &str) -> Result<Fork> {
        let image = Watch::begin(&self.site.data().join("memory"))?;
        let began = Instant::now();
        let spoke = self.order(source, name);
        let image = image.end()?;
        let spoke = spoke?;
        self.site.json(["vm", "stop", name, "--hard"])?;
        self.site.json(["vm", "delete", name])?;
        Ok(Fork {
            output: spoke.saturating_duration_since(began),
            after_image: image.map(|image| spoke.saturating_duration_since(image)),
        })
    }

    /// Orders a fork; when it spoke first.
    fn order(&self, source: &str, name: &str) -> Result<Instant> {
        // What its agent is told comes after its first word.
        let order = ["clone", source, "--memory", "--name", name, "--keep-identity", "--no-wait"];
        let job = self.site.json(order)?;
        let id = job["id"].as_str().with_context(|| format!("no id in {job}"))?;
        let fork = self.site.machine(name)?;
        let spoke = first_tick(fork.console(), Mark::default(), |_| true);
        self.site.json(["job", "wait", id])?;
        spoke
    }
}
