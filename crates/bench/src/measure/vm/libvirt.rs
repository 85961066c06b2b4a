//! The same guest, RAM and disks under Keyframe and under libvirt with qcow2: one snapshot with memory is taken, applied and
//! deleted, by each in turn, while the machines of the others stand still. Both are timed and seen the same way: by their command,
//! and by the guest's counter.

use std::time::Instant;

use anyhow::{Context, Result};
use keyframe_lab::console::Console;
use keyframe_lab::machine::Machine;
use keyframe_lab::site::Site;

use super::super::Bench;
use super::virsh::{Domain, Libvirt};
use super::{busy, site, size, time, timed};
use crate::figure::Figure;
use crate::guest::{first_tick, listen, silence, tick};
use crate::report::{Report, Row};

const LARGEST: u64 = 1024;
const AHEAD: u64 = 20;

pub(in crate::measure) fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        report.note("SKIPPED: a libvirt of its own needs root.");
        return Ok(());
    }
    let mib = bench.plan.memory.min(LARGEST);
    let libvirt = Libvirt::start(bench.place)?;
    let site = site(bench)?;
    let mut sides = vec![Trial::new(Box::new(Ours { machine: busy(&site, "ours", mib)?, site: &site }))];
    sides[0].side.stand_still(true)?;
    for (name, way) in [("internal", Way::Internal), ("external", Way::External)] {
        let domain = libvirt.boot(site.guest(), name, mib)?;
        let theirs = Theirs { domain, way };
        theirs.stand_still(true)?;
        sides.push(Trial::new(Box::new(theirs)));
    }
    for round in 0..=bench.plan.machine_rounds {
        for trial in &mut sides {
            trial.round(round)?;
        }
    }
    show(report, &sides, mib);
    Ok(())
}

/// Whoever runs machines.
trait Side {
    fn name(&self) -> &'static str;
    fn console(&self) -> &Console;
    fn stand_still(&self, still: bool) -> Result<()>;
    fn take(&self, name: &str) -> Result<()>;
    fn apply(&self, name: &str) -> Result<()>;
    fn delete(&self, name: &str) -> Result<()>;
}

/// One side, and what it took.
struct Trial<'a> {
    side: Box<dyn Side + 'a>,
    taken: Vec<f64>,
    silence: Vec<f64>,
    applied: Vec<f64>,
    output: Vec<f64>,
    deleted: Vec<f64>,
    /// Why it goes no further.
    failed: Option<String>,
}

impl<'a> Trial<'a> {
    fn new(side: Box<dyn Side + 'a>) -> Trial<'a> {
        let none = Vec::new;
        Trial { side, taken: none(), silence: none(), applied: none(), output: none(), deleted: none(), failed: None }
    }

    /// Takes, applies and deletes a snapshot; the first round warms up.
    fn round(&mut self, round: usize) -> Result<()> {
        if self.failed.is_some() {
            return Ok(());
        }
        self.side.stand_still(false)?;
        if let Err(e) = self.steps(round) {
            self.failed = Some(format!("{e:#}"));
            // It may be beyond obeying; what failed first is what is told.
            self.side.stand_still(true).unwrap_or_else(|e| eprintln!("{}: {e:#}", self.side.name()));
            return Ok(());
        }
        self.side.stand_still(true)
    }

    fn steps(&mut self, round: usize) -> Result<()> {
        let name = format!("s{round}");
        let counts = round > 0;
        let console = self.side.console();
        let from = listen(console)?;
        let now = tick(console)?;
        let (_, taken) = timed(|| self.side.take(&name)).context("take a snapshot with memory")?;
        let silence = silence(console, from)?.as_secs_f64();
        if counts {
            self.taken.push(taken);
            self.silence.push(silence);
        }
        first_tick(console, console.mark(), |tick| tick > now + AHEAD)?;
        // The counter must be ahead of what the snapshot holds, wherever in its course the snapshot was.
        let reached = tick(console)?;
        first_tick(console, console.mark(), |tick| tick > reached + AHEAD)?;
        let (from, mut last) = (console.mark(), tick(console)?);
        let began = Instant::now();
        let (_, applied) = timed(|| self.side.apply(&name)).context("apply it")?;
        let at = first_tick(console, from, |tick| std::mem::replace(&mut last, tick) > tick)?;
        if counts {
            self.applied.push(applied);
            self.output.push(at.saturating_duration_since(began).as_secs_f64());
        }
        let (_, deleted) = timed(|| self.side.delete(&name)).context("delete it")?;
        if counts {
            self.deleted.push(deleted);
        }
        Ok(())
    }
}

fn show(report: &mut Report, sides: &[Trial], mib: u64) {
    let Some((ours, others)) = sides.split_first() else { return };
    type Pick = for<'a> fn(&'a Trial<'_>) -> &'a Vec<f64>;
    let rows: [(&str, Pick); 5] = [
        ("take a snapshot with memory, whole command", |t| &t.taken),
        ("… longest silence of the guest's counter", |t| &t.silence),
        ("apply it to the running machine, whole command", |t| &t.applied),
        ("… to the guest's first word", |t| &t.output),
        ("delete it, whole command", |t| &t.deleted),
    ];
    for (what, pick) in rows {
        for other in others {
            let row = Row::new(format!("{}: {what}", size(mib)), time(pick(ours).iter().copied()));
            if pick(other).is_empty() {
                report.row(row);
            } else {
                let figure: Figure = time(pick(other).iter().copied());
                report.row(row.against(other.side.name(), figure));
            }
        }
    }
    for trial in sides {
        match &trial.failed {
            Some(why) if trial.side.name() == ours.side.name() => report.failed(why),
            Some(why) => report.note(format!("{} goes no further: {why}", trial.side.name())),
            None => {}
        }
    }
}

struct Ours<'a> {
    site: &'a Site,
    machine: Machine<'a>,
}

impl Side for Ours<'_> {
    fn name(&self) -> &'static str {
        "keyframe"
    }

    fn console(&self) -> &Console {
        self.machine.console()
    }

    fn stand_still(&self, still: bool) -> Result<()> {
        self.machine.act("vm", if still { "pause" } else { "resume" }, &[]).map(drop)
    }

    fn take(&self, name: &str) -> Result<()> {
        self.site.run(["snapshot", "create", &self.machine.at(name), "--memory"]).map(drop)
    }

    fn apply(&self, name: &str) -> Result<()> {
        // libvirt keeps nothing of the state given up.
        self.site.run(["snapshot", "apply", &self.machine.at(name), "--discard-current"]).map(drop)
    }

    fn delete(&self, name: &str) -> Result<()> {
        self.site.run(["snapshot", "delete", &self.machine.at(name)]).map(drop)
    }
}

enum Way {
    /// Everything inside the qcow2 file.
    Internal,
    /// Memory in a file, overlays for the disks.
    External,
}

struct Theirs<'a> {
    domain: Domain<'a>,
    way: Way,
}

impl Side for Theirs<'_> {
    fn name(&self) -> &'static str {
        match self.way {
            Way::Internal => "virsh, internal",
            Way::External => "virsh, external, live",
        }
    }

    fn console(&self) -> &Console {
        &self.domain.followed.console
    }

    fn stand_still(&self, still: bool) -> Result<()> {
        self.domain.act(if still { "suspend" } else { "resume" }, &[]).map(drop)
    }

    fn take(&self, name: &str) -> Result<()> {
        let file = |what: &str| self.domain.folder.join(format!("{name}.{what}")).display().to_string();
        let [root, data] = ["vda", "vdb"].map(|disk| format!("{disk},snapshot=external,file={}", file(disk)));
        let memory = format!("file={},snapshot=external", file("memory"));
        let external = ["--memspec", &memory, "--diskspec", &root, "--diskspec", &data, "--live"];
        let more = match self.way {
            Way::Internal => &[][..],
            Way::External => &external[..],
        };
        let line: Vec<&str> = [name].into_iter().chain(more.iter().copied()).collect();
        self.domain.act("snapshot-create-as", &line).map(drop)
    }

    fn apply(&self, name: &str) -> Result<()> {
        self.domain.act("snapshot-revert", &[name]).map(drop)
    }

    fn delete(&self, name: &str) -> Result<()> {
        self.domain.act("snapshot-delete", &[name]).map(drop)
    }
}
