//! Deleting, and saying beforehand what that would free.

use anyhow::Result;
use keyframe_engine::Pool;

use super::reply::{DeletedView, Reply};

fn done(deleted: Vec<String>) -> Result<Reply> {
    Ok(Reply::Deleted(DeletedView { deleted, would_free: None, dry_run: false }))
}

pub(super) fn volume(pool: &Pool, name: String, with_snapshots: bool) -> Result<Reply> {
    pool.delete_volume(&name, with_snapshots)?;
    done(vec![name])
}

pub(super) fn snapshot(pool: &Pool, target: String, subtree: bool) -> Result<Reply> {
    if subtree {
        return done(pool.delete_subtree(&target)?);
    }
    pool.delete_snapshot(&target)?;
    done(vec![target])
}

pub(super) fn preview(pool: &Pool, target: String, subtree: bool) -> Result<Reply> {
    pool.show(&target)?;
    let deleted = if subtree { pool.subtree(&target)? } else { vec![target] };
    let would_free = Some(pool.would_free(&deleted)?.0);
    Ok(Reply::Deleted(DeletedView { deleted, would_free, dry_run: true }))
}
