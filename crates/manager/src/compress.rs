//! Stores the memory of snapshots that are no longer fresh compressed: in the background, one image at a time, and none that a
//! job is at work with.

use std::sync::Arc;
use std::time::Duration;

use keyframe_model::agent::{SnapshotId, Timestamp};
use tokio::time::{MissedTickBehavior, interval};

use crate::kind::image::{ImageOrder, SnapshotCompress, memory_of};
use crate::{ErrorKind, Manager, Result};

/// How often images are looked for, at most and at least.
const LOOK: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(60)];
/// So many snapshots are looked at in one go.
const PAGE: u32 = 100;

/// Compresses what is older than that, for ever.
pub(crate) async fn compress(manager: Arc<Manager>, age: Duration) {
    let mut ticks = interval((age / 4).clamp(LOOK[0], LOOK[1]));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Identifiers follow the order of making, so what was seen once need not be looked at again.
    let mut seen = None;
    loop {
        ticks.tick().await;
        if let Err(e) = all(&manager, age, &mut seen).await {
            tracing::warn!(error = &e as &dyn std::error::Error, "cannot compress the memory of snapshots");
        }
    }
}

async fn all(manager: &Manager, age: Duration, seen: &mut Option<SnapshotId>) -> Result<()> {
    let age = i64::try_from(age.as_micros()).unwrap_or(i64::MAX);
    loop {
        let before = Timestamp(Timestamp::now().0.saturating_sub(age));
        let page = manager.catalog.read().await?.memories(*seen, before, PAGE).await?;
        if page.is_empty() {
            return Ok(());
        }
        for snapshot in page {
            let wanted = memory_of(&snapshot).is_some_and(|memory| !memory.compressed);
            if wanted && !one(manager, snapshot.id).await? {
                return Ok(());
            }
            *seen = Some(snapshot.id);
        }
    }
}

/// `false` if it has to be tried again later.
async fn one(manager: &Manager, snapshot: SnapshotId) -> Result<bool> {
    let order = ImageOrder { snapshot, expected: None };
    match manager.engine.submit::<SnapshotCompress>("compression", order).await {
        Ok(job) => {
            let job = manager.engine.wait(job).await?;
            Ok(job.error.is_none_or(|error| error.kind != "unreachable"))
        }
        Err(e) if e.kind == ErrorKind::Busy => Ok(false),
        Err(e) if matches!(e.kind, ErrorKind::NotFound | ErrorKind::State | ErrorKind::Invalid) => Ok(true),
        Err(e) => Err(e),
    }
}
