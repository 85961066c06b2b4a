//! Which manager writes.
//!
//! Two things together: a lock that ends with whoever holds it (a file's lock beside SQLite, a session's lock in PostgreSQL),
//! so that a manager that was killed is in nobody's way; and an epoch in the catalog, raised by everyone who gets the lock. A
//! transaction that writes begins by looking at the epoch, and because writers are alone, it cannot change before the commit.
//! A manager that lost its lock without noticing, with its connection or because its machine slept, is stopped by that.

use std::ffi::OsString;
use std::fs::{File, TryLockError};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use keyframe_agent_api::Timestamp;
use sqlx::{AnyConnection, Connection, Row};
use tokio::time::Instant;

use crate::catalog::Database;
use crate::sql::{Columns, args};
use crate::{Catalog, Error, ErrorKind, Result, Transaction};

/// How often a manager that waits looks again.
const LOOK: Duration = Duration::from_millis(100);

/// What ends with whoever holds it.
pub(crate) enum Hold {
    File(File),
    Session(AnyConnection),
}

impl Catalog {
    /// Becomes the one manager of this catalog, waiting at most `wait` for another to go; `holder` says to others who this is.
    /// From then on every transaction that writes is refused as [`Fenced`](ErrorKind::Fenced) once somebody else has become it.
    pub async fn claim(&self, holder: &str, wait: Duration) -> Result<()> {
        let give_up = Instant::now() + wait;
        let mut held = self.inner.hold.lock().await;
        if held.is_some() {
            return Ok(());
        }
        let hold = loop {
            if let Some(hold) = self.try_hold().await? {
                break hold;
            }
            if Instant::now() >= give_up {
                let (other, since) = self.read().await?.keeper().await?;
                let seconds = (Timestamp::now().0 - since.0) / 1_000_000;
                let message = format!("the catalog is in use by {other} since {seconds} s; stop that manager first");
                return Err(Error::new(ErrorKind::InUse, message));
            }
            tokio::time::sleep(LOOK).await;
        };
        // Before this is committed the old epoch must not fence this process itself.
        self.inner.epoch.store(0, Ordering::SeqCst);
        let mut tx = self.write().await?;
        let epoch = tx.raise_epoch(holder).await?;
        tx.commit().await?;
        self.inner.epoch.store(epoch, Ordering::SeqCst);
        *held = Some(hold);
        Ok(())
    }

    /// Lets another one become the manager.
    pub async fn release(&self) {
        match self.inner.hold.lock().await.take() {
            // The lock ends with the connection, whether or not the server hears the farewell.
            Some(Hold::Session(connection)) => drop(connection.close().await),
            Some(Hold::File(file)) => drop(file),
            None => {}
        }
    }

    async fn try_hold(&self) -> Result<Option<Hold>> {
        match &self.inner.database {
            Database::Sqlite(path) => {
                let path = beside(path, "-lock");
                let fail = |e| Error::caused(ErrorKind::Unavailable, format!("cannot lock {}", path.display()), e);
                let file = lock_file(&path).map_err(fail)?;
                match file.try_lock() {
                    Ok(()) => Ok(Some(Hold::File(file))),
                    Err(TryLockError::WouldBlock) => Ok(None),
                    Err(TryLockError::Error(e)) => Err(fail(e)),
                }
            }
            Database::Postgres(url) => {
                let fail = |e| Error::database("lock the catalog", e);
                let mut connection = AnyConnection::connect(url).await.map_err(fail)?;
                // A host that vanished is noticed after this long; the server's default is two hours.
                for setting in KEEPALIVE {
                    sqlx::query(setting).execute(&mut connection).await.map_err(fail)?;
                }
                let sql = "SELECT CASE WHEN pg_try_advisory_lock(7308895) THEN 1 ELSE 0 END";
                let row = sqlx::query(sql).fetch_one(&mut connection).await.map_err(fail)?;
                let got: i32 = row.try_get(0).map_err(fail)?;
                if got == 1 { Ok(Some(Hold::Session(connection))) } else { Ok(None) }
            }
        }
    }
}

const KEEPALIVE: [&str; 3] =
    ["SET tcp_keepalives_idle = 5", "SET tcp_keepalives_interval = 2", "SET tcp_keepalives_count = 3"];

/// A file beside the database. A lock on the database's own file would be SQLite's.
pub(crate) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

pub(crate) fn lock_file(path: &Path) -> std::io::Result<File> {
    File::options().create(true).append(true).mode(0o600).open(path)
}

impl Transaction {
    /// Who the manager is or was, and since when.
    pub async fn keeper(&mut self) -> Result<(String, Timestamp)> {
        let row = self.row("ask who manages", "SELECT holder, since FROM keeper", args![]).await?;
        Ok((row.text("holder")?, Timestamp(row.int("since")?)))
    }

    async fn raise_epoch(&mut self, holder: &str) -> Result<i64> {
        let sql = "UPDATE keeper SET epoch = epoch + 1, holder = $1, since = $2 RETURNING epoch";
        self.row("become the manager", sql, args![holder, Timestamp::now()]).await?.int("epoch")
    }

    /// Fails if somebody else has become the manager.
    pub(crate) async fn fence(&mut self, epoch: i64) -> Result<()> {
        let row = self.row("ask who manages", "SELECT epoch, holder FROM keeper", args![]).await?;
        if row.int("epoch")? == epoch {
            return Ok(());
        }
        let message = format!("{} has taken over the catalog; this manager must stop", row.text("holder")?);
        Err(Error::new(ErrorKind::Fenced, message))
    }
}
