//! Requests become engine calls. One arm for each request; what needs more than a call has a file of its own.

use anyhow::{Context as _, Result};
use keyframe_engine::units::Bytes;
use keyframe_engine::{ErrorKind, Pool};
use keyframe_transfer as transfer;

use super::reply::{CheckView, Event, PoolStats, Reply, ServerStats, SizeView, SnapshotsView, VersionsView};
use super::request::{PAGE, Request};
use super::{delete, inspect};

/// What a request is handled with.
pub(crate) struct Context<'a> {
    pub(crate) pool: &'a Pool,
    /// The server's own counters, where there is a server.
    pub(crate) server: Option<&'a dyn Fn() -> ServerStats>,
}

/// Receives what is said before the result. An error from it (the client is gone, the server stops) ends the request.
pub(crate) type Sink<'a> = dyn FnMut(Event) -> Result<()> + 'a;

/// Does what is asked. A request that fails leaves the pool as it was.
pub(crate) fn handle(context: &Context<'_>, request: Request, sink: &mut Sink<'_>) -> Result<Reply> {
    let pool = context.pool;
    match request {
        Request::PoolInfo {} => Ok(Reply::Pool(inspect::pool(pool)?)),
        Request::PoolStats {} => Ok(Reply::Stats(stats(context)?)),
        Request::PoolGrow { size } => Ok(Reply::Size(SizeView { size: pool.grow(size.map(Bytes))?.0 })),
        Request::PoolScrub {} => scrub(pool, sink),
        Request::VolumeCreate { name, size } => {
            pool.create_volume(&name, Bytes(size))?;
            inspect::show(pool, &name)
        }
        Request::VolumeList { after, limit } => page(pool.volumes(after.as_deref(), page_size(limit))?),
        Request::VolumeResize { name, size } => {
            pool.resize_volume(&name, Bytes(size))?;
            inspect::show(pool, &name)
        }
        Request::VolumeDelete { name, snapshots } => delete::volume(pool, name, snapshots),
        Request::SnapshotCreate { targets } => snapshot(pool, &targets),
        Request::SnapshotList { volume, after, limit } => {
            page(pool.snapshots(&volume, after.as_deref(), page_size(limit))?)
        }
        Request::SnapshotDelete { target, subtree, dry_run: true } => delete::preview(pool, target, subtree),
        Request::SnapshotDelete { target, subtree, dry_run: false } => delete::snapshot(pool, target, subtree),
        Request::Show { target } => inspect::show(pool, &target),
        Request::Rename { target, new } => rename(pool, &target, &new),
        Request::Clone { source, name, via } => clone(pool, &source, &name, via),
        Request::Revert { volume, snapshot, keep } => {
            pool.revert(&volume, &snapshot, keep.as_deref())?;
            inspect::show(pool, &volume)
        }
        Request::Tree { volume, space } => inspect::tree(pool, &volume, space),
        Request::Space { targets } => inspect::space(pool, &targets),
        Request::Diff { from, to } => inspect::diff(pool, from.as_deref(), &to, sink),
        Request::Import { file, volume, format } => {
            let mut progress = |done, total| sink(Event::Progress { done, total });
            transfer::import(pool, &file, &volume, format, &mut progress).map(Reply::Copy)
        }
        Request::Export { target, file, format, overlay } => {
            let mut progress = |done, total| sink(Event::Progress { done, total });
            transfer::export(pool, &target, &file, format, overlay.as_ref(), &mut progress).map(Reply::Copy)
        }
    }
}

fn page_size(limit: Option<usize>) -> usize {
    limit.unwrap_or(PAGE).min(PAGE)
}

fn page(items: Vec<keyframe_engine::VersionInfo>) -> Result<Reply> {
    Ok(Reply::Versions(VersionsView { items: items.into_iter().map(inspect::version).collect() }))
}

fn stats(context: &Context<'_>) -> Result<PoolStats> {
    let pending = inspect::pending(context.pool)?;
    let info = context.pool.info();
    Ok(PoolStats {
        used: info.used.0,
        free: info.free.0,
        pending,
        ghosts: info.ghosts,
        checkpoints: info.checkpoints,
        journal_percent: info.journal_percent,
        cached_pages: info.cached_pages,
        dirty_pages: info.dirty_pages,
        server: context.server.map(|server| server()),
    })
}

fn scrub(pool: &Pool, sink: &mut Sink<'_>) -> Result<Reply> {
    let mut gone = None;
    let report = pool.scrub(&mut |done, total| {
        if gone.is_none() {
            gone = sink(Event::Progress { done, total }).err();
        }
    })?;
    match gone {
        Some(error) => Err(error),
        None => Ok(Reply::Check(CheckView::from(report))),
    }
}

fn snapshot(pool: &Pool, targets: &[(String, String)]) -> Result<Reply> {
    let report = pool.snapshot(targets)?;
    Ok(Reply::Snapshots(SnapshotsView {
        snapshots: targets.iter().map(|(volume, snapshot)| format!("{volume}@{snapshot}")).collect(),
        held_us: report.held.as_micros() as u64,
        total_us: report.total.as_micros() as u64,
    }))
}

fn rename(pool: &Pool, target: &str, new: &str) -> Result<Reply> {
    pool.rename(target, new)?;
    match target.split_once('@') {
        Some((volume, _)) => inspect::show(pool, &format!("{volume}@{new}")),
        None => inspect::show(pool, new),
    }
}

fn clone(pool: &Pool, source: &str, name: &str, via: Option<String>) -> Result<Reply> {
    let via = match via {
        Some(via) => via,
        None if source.contains('@') => String::new(),
        None => free_name(pool, source, name)?,
    };
    pool.clone_volume(source, name, &via)?;
    inspect::show(pool, name)
}

/// `clone-NEW`, or with a number when an earlier clone of that name left its snapshot. Somebody else may take the name
/// before it is used; then the clone is refused, and nothing is lost.
fn free_name(pool: &Pool, source: &str, name: &str) -> Result<String> {
    let mut candidate = format!("clone-{name}");
    for number in 2.. {
        match pool.show(&format!("{source}@{candidate}")) {
            Ok(_) => candidate = format!("clone-{name}-{number}"),
            Err(error) if error.kind() == ErrorKind::NotFound => break,
            Err(error) => return Err(error).context(format!("clone {source}")),
        }
    }
    Ok(candidate)
}
