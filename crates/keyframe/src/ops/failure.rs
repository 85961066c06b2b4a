//! A failed request as it crosses the control socket: a kind to match on and one line for people.

use keyframe_engine::ErrorKind;
use keyframe_transfer::Invalid;
use serde::{Deserialize, Serialize};

/// The `error` of a reply.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Failure {
    pub(crate) kind: String,
    /// The message and its causes, joined by colons.
    pub(crate) message: String,
}

impl Failure {
    /// The line that was sent is not a request.
    pub(crate) fn bad_request(message: impl Into<String>) -> Failure {
        Failure { kind: "bad-request".into(), message: message.into() }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// Whether what was asked for makes no sense, whoever found that: this process or a server.
pub(crate) fn is_invalid(error: &anyhow::Error) -> bool {
    let told = error.chain().find_map(|cause| cause.downcast_ref::<Failure>()).map(|failure| failure.kind.clone());
    told.unwrap_or_else(|| Failure::from(error).kind) == "invalid"
}

impl From<&anyhow::Error> for Failure {
    fn from(error: &anyhow::Error) -> Failure {
        let own = error.chain().any(|cause| cause.is::<Invalid>()).then_some("invalid");
        let kind = engine_kind(error).map(kind_name).or(own).unwrap_or("failed");
        Failure { kind: kind.into(), message: format!("{error:#}") }
    }
}

/// The kind of the first engine error among the causes.
fn engine_kind(error: &anyhow::Error) -> Option<ErrorKind> {
    error.chain().find_map(|cause| cause.downcast_ref::<keyframe_engine::Error>()).map(keyframe_engine::Error::kind)
}

/// The one table from engine failures to the control protocol.
fn kind_name(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::NotFound => "not-found",
        ErrorKind::Exists => "exists",
        ErrorKind::Invalid => "invalid",
        ErrorKind::InUse => "in-use",
        ErrorKind::Locked => "locked",
        ErrorKind::HasDependants => "has-dependants",
        ErrorKind::NoSpace => "no-space",
        ErrorKind::ReadOnly => "read-only",
        ErrorKind::OutOfBounds => "out-of-bounds",
        ErrorKind::NotAPool => "not-a-pool",
        ErrorKind::NewerFormat => "newer-format",
        ErrorKind::Corrupt => "corrupt",
        ErrorKind::Io => "io",
        ErrorKind::Poisoned => "poisoned",
    }
}
