//! Opening a catalog: which database, how it is set, and the tables in it.

use std::fmt::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use sqlx::any::AnyPoolOptions;
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::{Any, AssertSqlSafe, Connection, Pool, SqlSafeStr};
use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, sleep};

use crate::keeper::Hold;
use crate::reserve::Reserve;
use crate::{Error, ErrorKind, Result, Transaction};

/// Most connections: one writes, the others read.
const CONNECTIONS: u32 = 8;
/// How long a database that is away, because it is restarted for example, is waited for before a transaction fails. What is in
/// the middle of one fails at once: only its caller knows whether it can begin anew.
const AWAY: Duration = Duration::from_secs(5);
/// Between two tries.
const AGAIN: Duration = Duration::from_millis(50);

/// A catalog. Clones are the same one.
#[derive(Clone)]
pub struct Catalog {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) pool: Pool<Any>,
    pub(crate) database: Database,
    /// Makes writers of this process queue fairly, before they queue at the database.
    pub(crate) writer: Arc<Mutex<()>>,
    /// What this process was given when it became the manager; 0 if it has not.
    pub(crate) epoch: AtomicI64,
    pub(crate) hold: Mutex<Option<Hold>>,
    pub(crate) newest: watch::Sender<i64>,
    pub(crate) statements: AtomicU64,
    pub(crate) rows: AtomicU64,
    pub(crate) reserve: Reserve,
}

/// Which database.
#[derive(Clone, Debug)]
pub(crate) enum Database {
    Sqlite(PathBuf),
    Postgres(String),
}

impl Catalog {
    /// Opens a catalog, makes it if it is not there, and brings its tables up to date. `url` is a path, a path after `sqlite:`,
    /// or `postgres://…` (for a Unix socket: `postgres://user@/database?host=/directory`).
    pub async fn open(url: &str) -> Result<Catalog> {
        sqlx::any::install_default_drivers();
        let database = Database::parse(url);
        let connect = database.url()?;
        let sqlite = matches!(database, Database::Sqlite(_));
        let pool = AnyPoolOptions::new()
            .max_connections(CONNECTIONS)
            .acquire_timeout(AWAY)
            .after_connect(move |connection, _| {
                Box::pin(async move {
                    for setting in if sqlite { &SQLITE[..] } else { &POSTGRES[..] } {
                        sqlx::query(*setting).execute(&mut *connection).await?;
                    }
                    Ok(())
                })
            })
            // A commit that failed, on a full disk for example, may have left its transaction open: that one is closed.
            .before_acquire(|connection, _| Box::pin(async move { Ok(!connection.is_in_transaction()) }))
            .connect(&connect)
            .await
            .map_err(|e| Error::caused(ErrorKind::Unavailable, format!("cannot open the catalog {database}"), e))?;
        migrate(&pool, &database).await?;
        let (newest, _) = watch::channel(0);
        let inner = Inner {
            pool,
            database,
            writer: Arc::default(),
            epoch: AtomicI64::new(0),
            hold: Mutex::new(None),
            newest,
            statements: AtomicU64::new(0),
            rows: AtomicU64::new(0),
            reserve: Reserve::default(),
        };
        let catalog = Catalog { inner: Arc::new(inner) };
        let newest = catalog.read().await?.last_event().await?;
        catalog.inner.newest.send_replace(newest);
        Ok(catalog)
    }

    /// Begins a transaction that sees one state of everything and changes nothing.
    pub async fn read(&self) -> Result<Transaction> {
        patiently(|| Transaction::read(&self.inner)).await
    }

    /// Begins a transaction that can change things, when the one before has ended.
    pub async fn write(&self) -> Result<Transaction> {
        patiently(|| Transaction::write(&self.inner)).await
    }

    /// The number of the newest event that this process has committed; changes with every commit.
    pub fn changes(&self) -> watch::Receiver<i64> {
        self.inner.newest.subscribe()
    }

    /// How many statements have been run so far, and how many rows they have returned: what a call costs, whatever the clock
    /// says.
    pub fn work(&self) -> (u64, u64) {
        (self.inner.statements.load(Ordering::Relaxed), self.inner.rows.load(Ordering::Relaxed))
    }

    /// Waits for what is under way and closes all connections.
    pub async fn close(&self) {
        self.release().await;
        self.inner.pool.close().await;
    }
}

/// Begins a transaction, also when the database is away for a moment.
async fn patiently<F: Future<Output = Result<Transaction>>>(begin: impl Fn() -> F) -> Result<Transaction> {
    let give_up = Instant::now() + AWAY;
    loop {
        match begin().await {
            Err(e) if e.kind == ErrorKind::Unavailable && Instant::now() < give_up => sleep(AGAIN).await,
            other => return other,
        }
    }
}

/// A commit is on the disk when it returns: a job's intent must outlive a power failure if what it intended does. Readers see
/// the state at their beginning and hold up nobody.
const SQLITE: [&str; 4] = [
    "PRAGMA busy_timeout = 20000",
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA foreign_keys = ON",
];

/// A statement that waits longer than this for another manager fails instead of waiting for ever.
const POSTGRES: [&str; 2] = ["SET lock_timeout = 20000", "SET synchronous_commit = on"];

impl Database {
    fn parse(url: &str) -> Database {
        if url.starts_with("postgres://") || url.starts_with("postgresql://") {
            return Database::Postgres(url.to_owned());
        }
        Database::Sqlite(url.strip_prefix("sqlite:").unwrap_or(url).into())
    }

    /// For the driver. Makes the file, readable by its owner only, because there are hashes of tokens in it.
    fn url(&self) -> Result<String> {
        let path = match self {
            Database::Postgres(url) => return Ok(url.clone()),
            Database::Sqlite(path) => path,
        };
        let fail = |e: std::io::Error| {
            Error::caused(ErrorKind::Unavailable, format!("cannot make the catalog {}", path.display()), e)
        };
        std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path).map_err(fail)?;
        Ok(format!("sqlite://{}", percent(&path.canonicalize().map_err(fail)?)))
    }
}

impl std::fmt::Display for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Database::Sqlite(path) => write!(f, "{}", path.display()),
            // The URL may hold a password.
            Database::Postgres(_) => f.write_str("on PostgreSQL"),
        }
    }
}

/// A path as part of a URL (RFC 3986, section 2.1).
fn percent(path: &Path) -> String {
    let mut out = String::new();
    for &byte in path.as_os_str().as_encoded_bytes() {
        if byte.is_ascii_alphanumeric() || b"/-_.~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            write!(out, "%{byte:02X}").unwrap_or_default();
        }
    }
    out
}

const MEMORIES: &str = include_str!("../migrations/0002_memories.sql");
const REMARKS: &str = include_str!("../migrations/0003_remarks.sql");

async fn migrate(pool: &Pool<Any>, database: &Database) -> Result<()> {
    let fail = |e: Box<dyn std::error::Error + Send + Sync>| {
        let message = format!("the tables of the catalog {database} cannot be brought up to date");
        Error::caused(ErrorKind::Unavailable, message, e)
    };
    let base = include_str!("../migrations/0001_base.sql");
    let fill = match database {
        Database::Sqlite(_) => "COALESCE(json_extract(document, '$.report.memory.stored'), 0)",
        Database::Postgres(_) => "COALESCE((document::json #>> '{report,memory,stored}')::BIGINT, 0)",
    };
    let memories = format!("{};\nUPDATE snapshots SET stored = {fill};\n", MEMORIES.trim_end().trim_end_matches(';'));
    let migration = |version, name: &'static str, sql| {
        Migration::new(version, name.into(), MigrationType::Simple, AssertSqlSafe(sql).into_sql_str(), false)
    };
    let leftovers = include_str!("../migrations/0004_leftovers.sql").to_owned();
    let migrations = vec![
        migration(1, "base", base.to_owned()),
        migration(2, "memories", memories),
        migration(3, "remarks", REMARKS.to_owned()),
        migration(4, "leftovers", leftovers),
    ];
    let migrator = Migrator::with_migrations(migrations);
    // PostgreSQL's driver lets one process at a time do this. SQLite's does not, so a file's lock does.
    let _turn = match database {
        Database::Postgres(_) => None,
        Database::Sqlite(path) => {
            let path = crate::keeper::beside(path, "-migrate");
            let take = move || crate::keeper::lock_file(&path).and_then(|file| file.lock().map(|()| file));
            let taken = tokio::task::spawn_blocking(take).await.map_err(|e| fail(e.into()))?;
            Some(taken.map_err(|e| fail(e.into()))?)
        }
    };
    migrator.run(pool).await.map_err(|e| fail(e.into()))
}
