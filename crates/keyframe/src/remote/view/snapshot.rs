//! Snapshots.

use std::collections::HashMap;
use std::io::{self, Write};

use keyframe_manager::request::{DiffView, DiskDiff, DiskPresence, SnapshotView};
use keyframe_model::agent::{CutMethod, GuestAnswer, InstantReport, VmId};
use keyframe_model::{Finding, SnapshotOrigin, SnapshotState, Verification};

use super::{fields, moment, or_dash, print, size, span, word};

/// What is being done to it, in a word.
pub(super) fn state(state: &SnapshotState) -> &'static str {
    match state {
        SnapshotState::Creating { .. } => "creating",
        SnapshotState::Ready => "ready",
        SnapshotState::Deleting { .. } => "deleting",
        SnapshotState::Error { .. } => "error",
    }
}

/// `machines` are the names of those whose snapshots are in it; none where there is one of which everybody knows.
pub(in crate::remote) fn list(
    snapshots: &[SnapshotView],
    machines: &HashMap<VmId, String>,
    out: &mut impl Write,
) -> io::Result<()> {
    let row = |view: &SnapshotView| {
        let snapshot = &view.snapshot;
        let current = if view.current { "* " } else { "" };
        vec![
            format!("{current}{}", full_name(view, machines)),
            word(snapshot.kind),
            or_dash(view.consistency.map(word)),
            state(&snapshot.state).to_owned(),
            moment(snapshot.created),
            super::tree::remarks(snapshot.verification.as_ref(), snapshot.locked, snapshot.expires, &snapshot.tags),
        ]
    };
    print(
        &["SNAPSHOT", "KIND", "CONSISTENT", "STATE", "CREATED (UTC)", "REMARKS"],
        snapshots.iter().map(row).collect(),
        out,
    )
}

/// As it can be typed.
pub(super) fn full_name(view: &SnapshotView, machines: &HashMap<VmId, String>) -> String {
    let name = &view.snapshot.name;
    machines.get(&view.snapshot.vm).map_or_else(|| name.to_string(), |vm| format!("{vm}@{name}"))
}

fn method(method: CutMethod) -> &'static str {
    match method {
        CutMethod::AtRest => "the machine was at rest",
        CutMethod::WritesHeld => "writes to all disks were held",
        CutMethod::AtResume => "cut when the guest was resumed, memory written while it ran on",
        CutMethod::Stopped => "guest stopped until its memory was written",
    }
}

fn guest(answer: &GuestAnswer) -> String {
    match answer {
        GuestAnswer::NotAsked => "not asked".into(),
        GuestAnswer::Frozen { file_systems } => format!("froze {file_systems} file systems"),
        GuestAnswer::Failed { reason } => format!("did not freeze: {reason}"),
    }
}

/// One line about a snapshot just taken.
pub(in crate::remote) fn taken(vm: &str, view: &SnapshotView) -> String {
    let snapshot = &view.snapshot;
    let begin = format!("{vm}@{}: {}", snapshot.name, word(snapshot.kind));
    match &snapshot.report {
        None => begin,
        Some(report) => {
            let consistent = or_dash(view.consistency.map(word));
            format!("{begin}, {consistent} consistent, {}", stood_still(report))
        }
    }
}

/// For how long the machine was held up.
pub(in crate::remote) fn stood_still(report: &InstantReport) -> String {
    format!("guest paused {}, writes held {}", span(report.paused), span(report.held))
}

pub(super) fn report(report: &InstantReport) -> Vec<(&'static str, String)> {
    let mut list = vec![
        ("instant (utc)", moment(report.at)),
        ("method", method(report.method).to_owned()),
        ("guest agent", guest(&report.guest)),
        ("guest paused", span(report.paused)),
        ("writes held", span(report.held)),
    ];
    if report.frozen.0 > 0 {
        list.push(("frozen for", span(report.frozen)));
    }
    if let Some(memory) = &report.memory {
        let packed = if memory.compressed { ", compressed" } else { "" };
        list.push(("memory", format!("{} of {} stored{packed}", size(memory.stored), size(memory.memory))));
        list.push(("hypervisor", memory.hypervisor.clone()));
    }
    list
}

pub(in crate::remote) fn show(view: &SnapshotView, out: &mut impl Write) -> io::Result<()> {
    let snapshot = &view.snapshot;
    let mut list = vec![
        ("snapshot", snapshot.name.to_string()),
        ("id", snapshot.id.to_string()),
        ("vm", snapshot.vm.to_string()),
        ("state", state(&snapshot.state).to_owned()),
    ];
    if let SnapshotState::Error { reason } = &snapshot.state {
        list.push(("reason", reason.clone()));
    }
    if !snapshot.description.is_empty() {
        list.push(("description", snapshot.description.clone()));
    }
    list.push(("kind", word(snapshot.kind)));
    list.push(("consistent", or_dash(view.consistency.map(word))));
    list.push(("current", if view.current { "yes" } else { "no" }.to_owned()));
    list.push(("made", origin(&snapshot.origin).to_owned()));
    list.push(("created (utc)", moment(snapshot.created)));
    list.extend(snapshot.expires.map(|at| ("expires (utc)", moment(at))));
    let tags: Vec<&str> = snapshot.tags.iter().map(|tag| tag.as_str()).collect();
    if !tags.is_empty() {
        list.push(("tags", tags.join(", ")));
    }
    list.push(("locked", if snapshot.locked { "yes" } else { "no" }.to_owned()));
    list.push(("processors", snapshot.hardware.cpus.to_string()));
    list.push(("disks", snapshot.hardware.disks.len().to_string()));
    list.extend(snapshot.report.iter().flat_map(report));
    if let Some(Verification { at, finding }) = &snapshot.verification {
        list.push(("verified (utc)", moment(*at)));
        list.push(match finding {
            Finding::Whole => ("found", "whole".to_owned()),
            Finding::Damaged { reason } => ("found damaged", reason.clone()),
        });
    }
    if let Some(space) = &view.space {
        list.push(("referenced", size(space.referenced)));
        list.push(("unique", size(space.unique)));
        list.push(("shared", size(space.shared)));
        list.push(("memory image", size(space.memory)));
        list.push(("would free", size(space.would_free)));
    }
    fields(&list, out)
}

/// Why it was made.
fn origin(origin: &SnapshotOrigin) -> &'static str {
    match origin {
        SnapshotOrigin::User => "by hand",
        SnapshotOrigin::BeforeApply { .. } => "automatically, before another was applied",
        SnapshotOrigin::ForClone { .. } => "for a clone",
        SnapshotOrigin::ForTemplate { .. } => "for a template",
    }
}

/// What differs between two of them.
pub(in crate::remote) fn diff(view: &DiffView, out: &mut impl Write) -> io::Result<()> {
    let row = |disk: &DiskDiff| {
        let remark = match disk.presence {
            DiskPresence::Both => String::new(),
            DiskPresence::OnlyBefore => format!("only in {}", view.from.name),
            DiskPresence::OnlyAfter => format!("only in {}", view.to.name),
        };
        vec![disk.name.to_string(), size(disk.changed), size(disk.zeroed), disk.extents.to_string(), remark]
    };
    print(&["DISK", "CHANGED", "ZEROED", "EXTENTS", "REMARKS"], view.disks.iter().map(row).collect(), out)?;
    if view.memory_left_out {
        writeln!(out, "memory is not compared")?;
    }
    Ok(())
}
