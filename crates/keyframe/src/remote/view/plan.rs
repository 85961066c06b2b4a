//! Dry runs: exactly what would happen.

use std::io::{self, Write};

use keyframe_manager::request::{ApplyPlanView, DeletePlanView, DiskFate, MemoryUse, PlanView};

use keyframe_model::agent::Bytes;

use super::{moment, size};

/// `what` is the thing as the user named it.
pub(in crate::remote) fn draw(plan: &PlanView, what: &str, out: &mut impl Write) -> io::Result<()> {
    match plan {
        PlanView::Apply(plan) => apply(plan, out),
        PlanView::Delete(plan) => delete(plan, what, out),
    }
}

fn apply(plan: &ApplyPlanView, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "would apply {}", plan.snapshot.name)?;
    if plan.stops {
        writeln!(out, "would pull the machine's plug")?;
    }
    given_up(plan, out)?;
    for disk in &plan.disks {
        let (name, fate) = (&disk.name, disk.fate);
        match fate {
            DiskFate::Reverted => writeln!(out, "would put disk {name} back")?,
            DiskFate::ComesBack => writeln!(out, "would bring disk {name} back into the machine")?,
            DiskFate::TakenOut => writeln!(out, "would take disk {name} out; snapshots keep it")?,
            DiskFate::Deleted => writeln!(out, "would delete disk {name}; no snapshot holds it")?,
        }
    }
    plan.hardware.iter().try_for_each(|change| writeln!(out, "would change {change}"))?;
    match &plan.memory {
        MemoryUse::Absent => {}
        MemoryUse::Used => writeln!(out, "would go on with the memory of then")?,
        MemoryUse::LeftAside => writeln!(out, "would leave the memory of then aside")?,
        MemoryUse::Unusable { reason } => writeln!(out, "cannot use the memory of then: {reason}")?,
    }
    writeln!(out, "would end {}", plan.ends)?;
    hurdles(&plan.obstacles, out)
}

/// What is kept of the state given up, and what is lost.
fn given_up(plan: &ApplyPlanView, out: &mut impl Write) -> io::Result<()> {
    if let Some(name) = &plan.keeps {
        let memory = if plan.keeps_memory { " with the guest's memory" } else { "" };
        let until = plan.keeps_until.map_or_else(String::new, |at| format!(", until {}", moment(at)));
        writeln!(out, "would keep the state given up as {name}{memory}{until}")?;
    } else {
        let blocks = Bytes(plan.loses.0.saturating_sub(plan.loses_memory.0));
        writeln!(out, "would lose the state given up: {} on disks", size(blocks))?;
    }
    match plan.loses_memory {
        Bytes(0) => Ok(()),
        lost => writeln!(out, "would lose the guest's memory: {}", size(lost)),
    }
}

fn delete(plan: &DeletePlanView, what: &str, out: &mut impl Write) -> io::Result<()> {
    if plan.loses_memory.0 > 0 {
        writeln!(out, "would pull the machine's plug and lose the guest's memory: {}", size(plan.loses_memory))?;
    }
    if plan.removed.is_empty() {
        writeln!(out, "would delete {what}")?;
    }
    plan.removed.iter().try_for_each(|snapshot| writeln!(out, "would delete snapshot {}", snapshot.name))?;
    plan.moved.iter().try_for_each(|snapshot| writeln!(out, "would move snapshot {} up", snapshot.name))?;
    if plan.current_changes {
        let current = plan.current.as_ref().map_or("no snapshot", |current| current.name.as_str());
        writeln!(out, "the machine's state would descend from {current}")?;
    }
    plan.volumes.iter().try_for_each(|volume| writeln!(out, "would delete volume {volume}"))?;
    match plan.memory.0 {
        0 => writeln!(out, "would free {}", size(plan.would_free))?,
        _ => writeln!(out, "would free {}, of which {} memory", size(plan.would_free), size(plan.memory))?,
    }
    hurdles(&plan.obstacles, out)
}

/// What stands in the way.
pub(in crate::remote) fn obstacles(plan: &PlanView) -> &[String] {
    match plan {
        PlanView::Apply(plan) => &plan.obstacles,
        PlanView::Delete(plan) => &plan.obstacles,
    }
}

fn hurdles(obstacles: &[String], out: &mut impl Write) -> io::Result<()> {
    obstacles.iter().try_for_each(|why| writeln!(out, "not now: {why}"))
}
