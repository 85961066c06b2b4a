//! The stream of changes: what the catalog's log says, as it is written.

use keyframe_catalog::{Catalog, Event};
use tokio::sync::watch;

use crate::{Error, ErrorKind, Result};

/// Most events handed out at once.
const BATCH: u32 = 1000;

/// Changes in their order, none left out.
pub struct EventStream {
    catalog: Catalog,
    changes: watch::Receiver<i64>,
    seen: i64,
}

impl EventStream {
    pub(crate) async fn new(catalog: Catalog, after: Option<i64>) -> Result<EventStream> {
        let changes = catalog.changes();
        let mut tx = catalog.read().await?;
        let seen = match after {
            None => tx.last_event().await?,
            Some(after) => {
                let oldest = tx.oldest_event().await?;
                let newest = tx.last_event().await?;
                if after > newest {
                    let message = format!(
                        "there is no event {after} yet, the newest is {newest}: this is another catalog than \
                                           the one that said so; read everything anew"
                    );
                    return Err(Error::new(ErrorKind::NotFound, message));
                }
                if after.saturating_add(1) < oldest {
                    let message = format!("events before {oldest} are forgotten; read everything anew");
                    return Err(Error::new(ErrorKind::NotFound, message));
                }
                after
            }
        };
        Ok(EventStream { catalog, changes, seen })
    }

    /// The number of the last event that was handed out, or before the first.
    pub fn seen(&self) -> i64 {
        self.seen
    }

    /// The next changes; waits until there are some.
    pub async fn next(&mut self) -> Result<Vec<Event>> {
        loop {
            self.changes.borrow_and_update();
            let events = self.catalog.read().await?.events_after(self.seen, BATCH).await?;
            if let Some(last) = events.last() {
                self.seen = last.seq;
                return Ok(events);
            }
            if self.changes.changed().await.is_err() {
                return Err(Error::new(ErrorKind::Unreachable, "the catalog is closed"));
            }
        }
    }
}
