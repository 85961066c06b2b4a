//! What a use case fails with: a kind for programs, a sentence for people, and the cause for the log.

use keyframe_model::agent::{Fault, FaultKind};
use keyframe_model::{Refusal, RefusalKind};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What a use case returns.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a use case failed. The message names the object, the reason, and the way out where there is one; internal detail is
/// in the source, which never leaves the process.
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
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorKind {
    /// The request makes no sense, whatever the state.
    Invalid,
    /// The caller may not.
    Forbidden,
    /// What it is about is not there.
    NotFound,
    /// The name, or the idempotency key, is taken by something else.
    Taken,
    /// Not in this state.
    State,
    /// Something else is being done to it.
    Busy,
    /// Somebody has locked it.
    Locked,
    /// It has changed since the caller looked.
    Stale,
    /// A limit is reached.
    Limit,
    /// This host, array or hypervisor cannot do it.
    Unsupported,
    /// An array or a file system is full.
    NoSpace,
    /// It took too long.
    Deadline,
    /// The guest refused or failed.
    Guest,
    /// Stored data failed its verification.
    Corrupt,
    /// A host cannot be reached.
    Unreachable,
    /// Somebody wished it undone.
    Cancelled,
    /// Something failed that should not.
    Internal,
}

impl Error {
    /// An error without a cause.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Error {
        Error { kind, message: message.into(), source: None }
    }

    /// Somebody wished it undone.
    pub fn cancelled() -> Error {
        Error::new(ErrorKind::Cancelled, "cancelled")
    }

    /// Something is not there; `keyframe LIST` shows what is.
    pub fn not_found(what: impl std::fmt::Display, list: impl std::fmt::Display) -> Error {
        Error::new(ErrorKind::NotFound, format!("{what} is not there; `keyframe {list}` shows what is"))
    }

    /// What looking something up came to: `missing` says better than the catalog what is not there.
    pub(crate) fn of_lookup(error: keyframe_catalog::Error, missing: impl FnOnce() -> Error) -> Error {
        if error.kind == keyframe_catalog::ErrorKind::NotFound { missing() } else { error.into() }
    }
}

impl ErrorKind {
    /// Each of them.
    pub const ALL: [ErrorKind; 17] = [
        ErrorKind::Invalid,
        ErrorKind::Forbidden,
        ErrorKind::NotFound,
        ErrorKind::Taken,
        ErrorKind::State,
        ErrorKind::Busy,
        ErrorKind::Locked,
        ErrorKind::Stale,
        ErrorKind::Limit,
        ErrorKind::Unsupported,
        ErrorKind::NoSpace,
        ErrorKind::Deadline,
        ErrorKind::Guest,
        ErrorKind::Corrupt,
        ErrorKind::Unreachable,
        ErrorKind::Cancelled,
        ErrorKind::Internal,
    ];
}

impl From<RefusalKind> for ErrorKind {
    fn from(kind: RefusalKind) -> ErrorKind {
        match kind {
            RefusalKind::Invalid => ErrorKind::Invalid,
            RefusalKind::State => ErrorKind::State,
            RefusalKind::Busy => ErrorKind::Busy,
            RefusalKind::Locked => ErrorKind::Locked,
            RefusalKind::Taken => ErrorKind::Taken,
            RefusalKind::Limit => ErrorKind::Limit,
        }
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Error {
        Error::new(refusal.kind.into(), refusal.message)
    }
}

impl From<FaultKind> for ErrorKind {
    fn from(kind: FaultKind) -> ErrorKind {
        match kind {
            FaultKind::Invalid => ErrorKind::Invalid,
            FaultKind::NotFound => ErrorKind::NotFound,
            FaultKind::Exists => ErrorKind::Taken,
            FaultKind::Conflict => ErrorKind::State,
            FaultKind::Stale => ErrorKind::Stale,
            FaultKind::Busy => ErrorKind::Busy,
            FaultKind::Unsupported => ErrorKind::Unsupported,
            FaultKind::NoSpace => ErrorKind::NoSpace,
            FaultKind::Deadline => ErrorKind::Deadline,
            FaultKind::Guest => ErrorKind::Guest,
            FaultKind::Corrupt => ErrorKind::Corrupt,
            FaultKind::Unreachable => ErrorKind::Unreachable,
            FaultKind::Internal => ErrorKind::Internal,
        }
    }
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Error {
        Error { kind: fault.kind.into(), message: fault.message.clone(), source: Some(Box::new(fault)) }
    }
}

impl From<keyframe_catalog::ErrorKind> for ErrorKind {
    fn from(kind: keyframe_catalog::ErrorKind) -> ErrorKind {
        use keyframe_catalog::ErrorKind as Catalog;
        match kind {
            Catalog::NotFound => ErrorKind::NotFound,
            Catalog::Stale => ErrorKind::Stale,
            Catalog::Taken => ErrorKind::Taken,
            Catalog::Busy => ErrorKind::Busy,
            Catalog::InUse => ErrorKind::State,
            // Worth trying again, whoever meets it: the database comes back, or the other manager's engine goes on.
            Catalog::Unavailable | Catalog::Fenced => ErrorKind::Unreachable,
            Catalog::Corrupt => ErrorKind::Corrupt,
            Catalog::Invalid => ErrorKind::Internal,
        }
    }
}

impl From<keyframe_catalog::Error> for Error {
    fn from(error: keyframe_catalog::Error) -> Error {
        Error { kind: error.kind.into(), message: error.message.clone(), source: Some(Box::new(error)) }
    }
}
