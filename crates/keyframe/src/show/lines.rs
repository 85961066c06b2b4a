//! Results that are a few lines.

use std::io::{self, Write};

use crate::clock::utc;
use crate::ops::{
    CheckView, Copied, DeletedView, DiffTotals, Kind, PoolStats, PoolView, SizeView, SnapshotsView, VersionView, human,
};

/// `name: value` lines with the values in one column, those of many lines too: none of them is taken for a name.
pub(crate) fn fields(fields: &[(&str, String)], out: &mut impl Write) -> io::Result<()> {
    let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or(0) + 1;
    let next = format!("\n{:width$} ", "");
    let line = |name: &str, value: &str| (format!("{name}:"), value.replace('\n', &next));
    fields
        .iter()
        .map(|(name, value)| line(name, value))
        .try_for_each(|(name, value)| writeln!(out, "{name:width$} {value}"))
}

pub(super) fn pool(view: &PoolView, out: &mut impl Write) -> io::Result<()> {
    let mut list = vec![
        ("pool", view.path.clone()),
        ("uuid", view.uuid.clone()),
        ("created (utc)", utc(view.created)),
        ("size", human(view.size)),
        ("used", human(view.used)),
        ("free", human(view.free)),
        ("reserve", human(view.reserve)),
        ("pending reclaim", human(view.pending)),
        ("volumes", view.volumes.to_string()),
        ("snapshots", view.snapshots.to_string()),
        ("deleted, not reclaimed", view.ghosts.to_string()),
    ];
    list.extend(view.stopped.clone().map(|why| ("stopped", why)));
    let damaged = |copy| format!("superblock copy {copy}; the next change to the pool repairs it");
    list.extend(view.damaged_superblock.map(|copy| ("damaged", damaged(copy))));
    fields(&list, out)
}

pub(super) fn stats(view: &PoolStats, out: &mut impl Write) -> io::Result<()> {
    let mut list = vec![
        ("used", human(view.used)),
        ("free", human(view.free)),
        ("pending reclaim", human(view.pending)),
        ("deleted, not reclaimed", view.ghosts.to_string()),
        ("checkpoints", view.checkpoints.to_string()),
        ("journal", format!("{} % full", view.journal_percent)),
        ("map pages in memory", view.cached_pages.to_string()),
        ("of these not yet stored", view.dirty_pages.to_string()),
    ];
    if let Some(server) = &view.server {
        list.push(("server version", server.version.clone()));
        list.push(("up for", format!("{} s", server.uptime_seconds)));
        list.push(("nbd", if server.nbd.is_empty() { "none".into() } else { server.nbd.join(", ") }));
        list.push(("nbd connections", server.nbd_connections.to_string()));
    }
    fields(&list, out)
}

pub(super) fn version(view: &VersionView, out: &mut impl Write) -> io::Result<()> {
    let kind = match view.kind {
        Kind::Volume => "volume",
        Kind::Snapshot => "snapshot",
        Kind::Ghost => "deleted",
    };
    let mut list = vec![
        (kind, view.name.clone()),
        ("size", human(view.size)),
        ("referenced", human(view.referenced)),
        ("written", human(view.written)),
        ("created (utc)", utc(view.created)),
        ("parent", view.parent.clone().unwrap_or_else(|| "none".into())),
        ("clients", view.attached.to_string()),
        ("children", view.children.to_string()),
    ];
    if view.kind == Kind::Volume {
        list.push(("snapshots", view.snapshots.to_string()));
    }
    fields(&list, out)
}

pub(super) fn size(view: &SizeView, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "the pool has {}", human(view.size))
}

pub(super) fn snapshots(view: &SnapshotsView, out: &mut impl Write) -> io::Result<()> {
    let milliseconds = |us: u64| format!("{}.{:02} ms", us / 1000, us % 1000 / 10);
    let (held, total) = (milliseconds(view.held_us), milliseconds(view.total_us));
    writeln!(out, "{}: writes held {held}, durable after {total}", view.snapshots.join(" "))
}

pub(super) fn deleted(view: &DeletedView, out: &mut impl Write) -> io::Result<()> {
    let act = if view.dry_run { "would delete" } else { "deleted" };
    view.deleted.iter().try_for_each(|name| writeln!(out, "{act} {name}"))?;
    view.would_free.map_or(Ok(()), |bytes| writeln!(out, "would free {}", human(bytes)))
}

pub(super) fn diff(view: &DiffTotals, out: &mut impl Write) -> io::Result<()> {
    if view.ranges == 0 {
        return writeln!(out, "no difference");
    }
    let (data, zero, hole) = (human(view.data), human(view.zero), human(view.hole));
    writeln!(out, "{} ranges: {data} data, {zero} zero, {hole} hole", view.ranges)
}

pub(super) fn check(view: &CheckView, out: &mut impl Write) -> io::Result<()> {
    view.errors.iter().try_for_each(|error| writeln!(out, "error: {error}"))?;
    let errors = view.errors.len() as u64 + view.more_errors;
    let found = if errors == 0 { "no errors".to_owned() } else { format!("errors: {errors}") };
    let (data, pages, versions) = (view.data_blocks, view.metadata_pages, view.versions);
    writeln!(out, "{found}; checked {data} data blocks and {pages} map pages of {versions} versions")
}

pub(super) fn copy(view: &Copied, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "{}: {}, of which {} stored", view.name, human(view.size), human(view.copied))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_of_many_lines_stays_in_its_column() {
        let mut out = Vec::new();
        fields(&[("vm", "web".into()), ("description", "mine\nstate: gone".into())], &mut out).unwrap();
        let expected = "\
vm:          web
description: mine
             state: gone
";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
