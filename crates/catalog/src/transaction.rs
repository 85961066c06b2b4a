//! One transaction: how it begins and ends, and how statements are run in it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use sqlx::any::AnyRow;
use sqlx::{Any, SqlSafeStr};
use tokio::sync::OwnedMutexGuard;

use crate::catalog::{Database, Inner};
use crate::event::Event;
use crate::sql::Arg;
use crate::{Error, ErrorKind, Result};

/// A transaction: sees one state, and changes all or nothing. Dropped without [`commit`](Transaction::commit) it has changed
/// nothing.
pub struct Transaction {
    inner: sqlx::Transaction<'static, Any>,
    catalog: Arc<Inner>,
    /// Present if it can write. Declared after `inner`, so that the next writer begins when this one has rolled back.
    turn: Option<OwnedMutexGuard<()>>,
    pub(crate) events: Vec<Event>,
}

impl Transaction {
    pub(crate) async fn read(catalog: &Arc<Inner>) -> Result<Transaction> {
        let begin = match catalog.database {
            Database::Sqlite(_) => "BEGIN",
            Database::Postgres(_) => "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
        };
        Transaction::begin(catalog, begin, None).await
    }

    pub(crate) async fn write(catalog: &Arc<Inner>) -> Result<Transaction> {
        let turn = catalog.writer.clone().lock_owned().await;
        catalog.reserve.look(&catalog.database);
        let begin = match catalog.database {
            Database::Sqlite(_) => "BEGIN IMMEDIATE",
            // Each statement sees all that was committed before it; with the lock below, that is all there is.
            Database::Postgres(_) => "BEGIN ISOLATION LEVEL READ COMMITTED",
        };
        let mut tx = Transaction::begin(catalog, begin, Some(turn)).await?;
        if let Database::Postgres(_) = catalog.database {
            let sql = "SELECT CASE WHEN pg_advisory_xact_lock(7308896) IS NULL THEN 1 ELSE 0 END";
            tx.rows("wait for the writer before", sql, Vec::new()).await?;
        }
        match catalog.epoch.load(Ordering::SeqCst) {
            0 => {}
            epoch => tx.fence(epoch).await?,
        }
        Ok(tx)
    }

    async fn begin(
        catalog: &Arc<Inner>,
        begin: &'static str,
        turn: Option<OwnedMutexGuard<()>>,
    ) -> Result<Transaction> {
        let inner = catalog.pool.begin_with(begin).await.map_err(|e| Error::database("begin a transaction", e))?;
        Ok(Transaction { inner, catalog: catalog.clone(), turn, events: Vec::new() })
    }

    /// Keeps what was changed. After a failure that is [`Unavailable`](ErrorKind::Unavailable) it is unknown whether it was.
    pub async fn commit(mut self) -> Result<()> {
        let newest = self.write_events().await?;
        let Transaction { inner, catalog, turn, .. } = self;
        inner.commit().await.map_err(|e| Error::database("commit", e))?;
        if let Some(newest) = newest {
            catalog.newest.send_replace(newest);
        }
        drop(turn);
        Ok(())
    }

    /// Runs a statement that changes something, and says how many rows.
    pub(crate) async fn execute(&mut self, act: &str, sql: impl SqlSafeStr + Send, args: Vec<Arg>) -> Result<u64> {
        self.writing()?;
        let query = args.into_iter().fold(sqlx::query(sql), |query, arg| arg.bind(query));
        self.catalog.statements.fetch_add(1, Ordering::Relaxed);
        let done = query.execute(&mut *self.inner).await.map_err(|e| Error::database(act, e))?;
        Ok(done.rows_affected())
    }

    /// All rows.
    pub(crate) async fn rows(&mut self, act: &str, sql: impl SqlSafeStr + Send, args: Vec<Arg>) -> Result<Vec<AnyRow>> {
        let query = args.into_iter().fold(sqlx::query(sql), |query, arg| arg.bind(query));
        self.catalog.statements.fetch_add(1, Ordering::Relaxed);
        let rows = query.fetch_all(&mut *self.inner).await.map_err(|e| Error::database(act, e))?;
        self.catalog.rows.fetch_add(u64::try_from(rows.len()).unwrap_or(u64::MAX), Ordering::Relaxed);
        Ok(rows)
    }

    /// The first row, if there is one.
    pub(crate) async fn row_if_any(
        &mut self,
        act: &str,
        sql: impl SqlSafeStr + Send,
        args: Vec<Arg>,
    ) -> Result<Option<AnyRow>> {
        let query = args.into_iter().fold(sqlx::query(sql), |query, arg| arg.bind(query));
        self.catalog.statements.fetch_add(1, Ordering::Relaxed);
        let row = query.fetch_optional(&mut *self.inner).await.map_err(|e| Error::database(act, e))?;
        self.catalog.rows.fetch_add(u64::from(row.is_some()), Ordering::Relaxed);
        Ok(row)
    }

    /// The one row that there must be.
    pub(crate) async fn row(&mut self, act: &str, sql: impl SqlSafeStr + Send, args: Vec<Arg>) -> Result<AnyRow> {
        let row = self.row_if_any(act, sql, args).await?;
        row.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("cannot {act}: it is not there")))
    }

    /// Whether it can change things.
    pub(crate) fn writing(&self) -> Result<()> {
        match self.turn {
            Some(_) => Ok(()),
            None => Err(Error::new(ErrorKind::Invalid, "this transaction is for reading only")),
        }
    }
}
