//! Requests that only look: views of pools, versions, trees, space and differences.

use anyhow::Result;
use keyframe_engine::{CheckReport, ExtentKind, Pool, TreeNode, VersionInfo, VersionKind};

use super::handle::Sink;
use super::reply::{
    CheckView, DiffTotals, Event, Kind, PoolView, Range, RangeKind, Reply, SpaceView, SpacesView, TreeRow, TreeView,
    VersionView,
};

/// Ranges of a difference in one event.
const BATCH: usize = 500;

/// What will be free again without anybody doing anything: freed but not yet usable, and held by deleted versions only.
pub(super) fn pending(pool: &Pool) -> keyframe_engine::Result<u64> {
    Ok(pool.info().pending.0 + pool.pending_reclaim()?.0)
}

pub(super) fn pool(pool: &Pool) -> keyframe_engine::Result<PoolView> {
    let pending = pending(pool)?;
    let info = pool.info();
    Ok(PoolView {
        path: info.path.display().to_string(),
        uuid: info.uuid,
        created: info.created,
        size: info.size.0,
        used: info.used.0,
        free: info.free.0,
        reserve: info.reserve.0,
        pending,
        volumes: info.volumes,
        snapshots: info.snapshots,
        ghosts: info.ghosts,
        stopped: info.stopped,
        damaged_superblock: info.damaged_superblock.map(|copy| copy + 1),
    })
}

pub(super) fn version(info: VersionInfo) -> VersionView {
    VersionView {
        name: info.name,
        kind: match info.kind {
            VersionKind::Head => Kind::Volume,
            VersionKind::Snapshot => Kind::Snapshot,
            VersionKind::Ghost => Kind::Ghost,
        },
        size: info.size.0,
        referenced: info.referenced.0,
        written: info.written.0,
        created: info.created,
        parent: info.parent,
        attached: info.attached,
        snapshots: info.snapshots,
        children: info.children,
    }
}

pub(super) fn show(pool: &Pool, target: &str) -> Result<Reply> {
    Ok(Reply::Version(version(pool.show(target)?)))
}

/// The family as a flat list. Not recursive: the depth is the user's.
pub(super) fn rows(root: TreeNode) -> Vec<TreeRow> {
    let mut rows = Vec::new();
    let mut waiting = vec![(0, root)];
    while let Some((depth, mut node)) = waiting.pop() {
        rows.push(TreeRow { depth, unique: None, version: version(node.info.clone()) });
        let children = std::mem::take(&mut node.children);
        waiting.extend(children.into_iter().rev().map(|child| (depth + 1, child)));
    }
    rows
}

pub(super) fn tree(pool: &Pool, volume: &str, space: bool) -> Result<Reply> {
    let mut nodes = rows(pool.tree(volume)?);
    if space {
        for row in nodes.iter_mut().filter(|row| row.version.kind != Kind::Ghost) {
            row.unique = Some(pool.space(&row.version.name)?.unique.0);
        }
    }
    Ok(Reply::Tree(TreeView { volume: volume.to_owned(), nodes }))
}

pub(super) fn space(pool: &Pool, targets: &[String]) -> Result<Reply> {
    let mut views = Vec::new();
    for name in targets {
        let space = pool.space(name)?;
        views.push(SpaceView {
            name: name.clone(),
            referenced: space.referenced.0,
            unique: space.unique.0,
            shared: space.shared.0,
            would_free: space.would_free.0,
        });
    }
    let would_free = match &views[..] {
        [only] => only.would_free,
        _ => pool.would_free(targets)?.0,
    };
    Ok(Reply::Space(SpacesView { targets: views, would_free }))
}

/// Sends the ranges in batches, in order, and ends with their sums. Neighbours of one kind are one range, across the
/// engine's own pieces.
pub(super) fn diff(pool: &Pool, from: Option<&str>, to: &str, sink: &mut Sink<'_>) -> Result<Reply> {
    let mut totals = DiffTotals::default();
    let mut batch: Vec<Range> = Vec::new();
    let mut gone = None;
    pool.diff(from, to, &mut |extent| {
        let kind = match extent.kind {
            ExtentKind::Data => RangeKind::Data,
            ExtentKind::Zero => RangeKind::Zero,
            ExtentKind::Hole => RangeKind::Hole,
        };
        match batch.last_mut() {
            Some(last) if last.kind == kind && last.offset + last.length == extent.offset => last.length += extent.len,
            _ => {
                if batch.len() == BATCH && gone.is_none() {
                    gone = flush(&mut batch, &mut totals, sink).err();
                }
                batch.push(Range { offset: extent.offset, length: extent.len, kind });
            }
        }
        Ok(())
    })?;
    if let Some(error) = gone {
        return Err(error);
    }
    flush(&mut batch, &mut totals, sink)?;
    Ok(Reply::Diff(totals))
}

fn flush(batch: &mut Vec<Range>, totals: &mut DiffTotals, sink: &mut Sink<'_>) -> Result<()> {
    let ranges = std::mem::take(batch);
    ranges.iter().for_each(|range| totals.add(range));
    if ranges.is_empty() { Ok(()) } else { sink(Event::Ranges(ranges)) }
}

impl From<CheckReport> for CheckView {
    fn from(report: CheckReport) -> CheckView {
        CheckView {
            clean: report.is_clean(),
            data_blocks: report.data_blocks,
            metadata_pages: report.metadata_pages,
            versions: report.versions,
            errors: report.errors,
            more_errors: report.more_errors,
        }
    }
}
