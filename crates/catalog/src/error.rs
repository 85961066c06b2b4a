//! What the catalog fails with.

/// What the catalog returns.
pub type Result<T> = std::result::Result<T, Error>;

/// A failure: nothing of the transaction is kept once it is dropped. The message names the thing; detail is in the source.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// For programs.
    pub kind: ErrorKind,
    /// For people.
    pub message: String,
    /// What it came from.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// What kind of failure.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ErrorKind {
    /// What it is about is not there.
    NotFound,
    /// It has changed since the caller read it.
    Stale,
    /// The name or key is taken.
    Taken,
    /// A job holds a lock on it.
    Busy,
    /// Another manager has taken over this catalog; this one must not write any more.
    Fenced,
    /// Another manager is at work on this catalog.
    InUse,
    /// The database cannot be reached, or is too slow. Whether a commit that failed so was carried out is unknown.
    Unavailable,
    /// What is stored cannot be understood.
    Corrupt,
    /// The caller asks for something that makes no sense, such as writing in a transaction for reading.
    Invalid,
}

impl Error {
    /// A failure without a cause.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Error {
        Error { kind, message: message.into(), source: None }
    }

    pub(crate) fn caused(
        kind: ErrorKind,
        message: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Error {
        Error { kind, message: message.into(), source: Some(source.into()) }
    }

    pub(crate) fn corrupt(
        what: impl std::fmt::Display,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Error {
        Error::caused(ErrorKind::Corrupt, format!("the catalog's record of {what} cannot be understood"), source)
    }

    /// A failure of the database while it was at `act`.
    pub(crate) fn database(act: &str, error: sqlx::Error) -> Error {
        let (kind, message) = match &error {
            sqlx::Error::Database(e) if e.is_unique_violation() => {
                (ErrorKind::Taken, format!("cannot {act}: it exists"))
            }
            sqlx::Error::Database(e) if e.is_foreign_key_violation() => {
                (ErrorKind::NotFound, format!("cannot {act}: what it belongs to is not there"))
            }
            sqlx::Error::ColumnDecode { .. } | sqlx::Error::ColumnNotFound(_) | sqlx::Error::Decode(_) => {
                (ErrorKind::Corrupt, format!("cannot {act}: the catalog holds something unexpected"))
            }
            sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut => {
                (ErrorKind::Unavailable, format!("cannot {act}: the catalog's database does not answer; does it run?"))
            }
            // PostgreSQL's class of errors for a server that starts or stops.
            sqlx::Error::Database(e) if e.code().is_some_and(|code| code.starts_with("57P")) => {
                (ErrorKind::Unavailable, format!("cannot {act}: the catalog's database is starting or stopping"))
            }
            // SQLITE_FULL, and PostgreSQL's `disk_full`.
            sqlx::Error::Database(e) if e.code().is_some_and(|code| code == "13" || code == "53100") => (
                ErrorKind::Unavailable,
                format!("cannot {act}: the disk that the catalog is on is full; make room there"),
            ),
            _ => (ErrorKind::Unavailable, format!("cannot {act}: the catalog's database failed")),
        };
        Error::caused(kind, message, error)
    }

    /// The same failure, but if something is taken, with this sentence.
    pub(crate) fn taken(self, message: impl FnOnce() -> String) -> Error {
        match self.kind {
            ErrorKind::Taken => Error { message: message(), ..self },
            _ => self,
        }
    }
}

#[cfg(test)]
mod tests {
    use sqlx::{Connection, Executor};

    use super::*;

    #[tokio::test]
    async fn a_full_disk_is_called_that() {
        let mut database = sqlx::SqliteConnection::connect("sqlite::memory:").await.expect("SQLite is built in");
        database.execute("PRAGMA max_page_count = 2; CREATE TABLE t (x)").await.expect("there is room");
        let full = database.execute("INSERT INTO t VALUES (zeroblob(100000))").await.expect_err("there is none");
        let error = Error::database("add a machine", full);
        assert!(error.message.ends_with("is full; make room there"), "{error}");
    }
}
