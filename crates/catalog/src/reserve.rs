//! Room that is kept for the catalog, for when its disk is full: whatever takes room must be deletable then.
//!
//! It lies in SQLite's own files, so nobody else can take it, however busy: pages of the database that are free again, and the
//! log, which stays as long as it once was. What is used up is kept anew while there is room. PostgreSQL's disk is not looked
//! after here.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use keyframe_agent_api::Bytes;
use rustix::fs::statvfs;
use sqlx::AssertSqlSafe;

use crate::catalog::Database;
use crate::keeper::beside;
use crate::sql::{Columns, args};
use crate::{Catalog, Result};

/// What a database keeps.
#[derive(Default)]
pub(crate) struct Reserve {
    /// In both files together; none if 0.
    size: AtomicU64,
    short: AtomicBool,
}

impl Catalog {
    /// So much room is to be kept from now on; none if 0.
    pub fn set_reserve(&self, size: Bytes) {
        self.inner.reserve.size.store(size.0, Ordering::SeqCst);
    }

    /// Looks how much room there is, and keeps what is to be kept. For now and then.
    pub async fn tend_reserve(&self) -> Result<()> {
        let (Database::Sqlite(path), reserve) = (&self.inner.database, &self.inner.reserve) else { return Ok(()) };
        let size = reserve.size.load(Ordering::SeqCst);
        reserve.look(&self.inner.database);
        if size > 0 && free(path) >= size.saturating_mul(2) && self.kept(path).await? < size / 4 {
            self.keep(size / 2).await?;
        }
        Ok(())
    }

    /// The disk is so full now that nothing new is to be made: only what is kept is left.
    pub fn is_short_of_room(&self) -> bool {
        self.inner.reserve.look(&self.inner.database)
    }

    /// Bytes in that of the files that has less of them.
    async fn kept(&self, path: &Path) -> Result<u64> {
        let sql = "SELECT freelist_count * page_size AS n FROM pragma_freelist_count, pragma_page_size";
        let pages = self.read().await?.row("look at free pages", sql, args![]).await?.int("n")?;
        let log = std::fs::metadata(beside(path, "-wal")).map_or(0, |log| log.len());
        Ok(log.min(u64::try_from(pages).unwrap_or(0)))
    }

    /// Writes so much, and deletes it: it has gone through the log to the database then.
    async fn keep(&self, size: u64) -> Result<()> {
        let sql = format!("INSERT OR REPLACE INTO settings (name, document) VALUES ('reserve', zeroblob({size}))");
        for sql in [sql, "DELETE FROM settings WHERE name = 'reserve'".to_owned()] {
            let mut tx = self.write().await?;
            tx.execute("keep room", AssertSqlSafe(sql), args![]).await?;
            tx.commit().await?;
        }
        Ok(())
    }
}

impl Reserve {
    /// Looks whether the disk is full, as before a transaction that writes.
    pub(crate) fn look(&self, database: &Database) -> bool {
        let (Database::Sqlite(path), size) = (database, self.size.load(Ordering::SeqCst)) else { return false };
        // More than it takes to be short, so that nobody is told now this and now that.
        let enough = if self.short.load(Ordering::SeqCst) { size } else { size / 4 };
        let short = free(path) < enough;
        if self.short.swap(short, Ordering::SeqCst) != short {
            if short {
                tracing::error!(catalog = %path.display(), "its disk is full");
            } else {
                tracing::info!(catalog = %path.display(), "its disk has room again");
            }
        }
        short
    }
}

/// Bytes that are free where the database is; very many if nobody says.
fn free(database: &Path) -> u64 {
    let folder = database.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    statvfs(folder).map_or(u64::MAX, |found| found.f_bavail.saturating_mul(found.f_frsize))
}
