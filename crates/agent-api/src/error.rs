//! Errors on their way from an agent to a manager.

use serde::{Deserialize, Serialize};
use thiserror::Error;
use utoipa::ToSchema;

/// What a call failed with.
#[derive(Clone, PartialEq, Eq, Debug, Error, Serialize, Deserialize, ToSchema)]
#[error("{message}")]
pub struct Fault {
    /// For programs.
    pub kind: FaultKind,
    /// For people: the object, the act and the reason, with the way out where there is one.
    pub message: String,
}

impl Fault {
    /// A fault.
    pub fn new(kind: FaultKind, message: impl Into<String>) -> Fault {
        Fault { kind, message: message.into() }
    }
}

/// Why a call failed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum FaultKind {
    /// The request makes no sense, now or ever.
    Invalid,
    /// What it is about is not there.
    NotFound,
    /// What it would make is there, and different.
    Exists,
    /// The thing is in a state in which this cannot be done.
    Conflict,
    /// The agent has seen a newer generation.
    Stale,
    /// Something else is being done to the thing.
    Busy,
    /// This array, hypervisor or host cannot do it.
    Unsupported,
    /// An array or a file system is full.
    NoSpace,
    /// It took longer than allowed, and was given up; or a machine's process does not answer.
    Deadline,
    /// The guest, or its agent, refused or failed.
    Guest,
    /// Stored data failed its verification.
    Corrupt,
    /// An agent cannot be reached; whether the call was carried out is unknown.
    Unreachable,
    /// Something failed that should not.
    Internal,
}

impl FaultKind {
    /// Each of them.
    pub const ALL: [FaultKind; 13] = [
        FaultKind::Invalid,
        FaultKind::NotFound,
        FaultKind::Exists,
        FaultKind::Conflict,
        FaultKind::Stale,
        FaultKind::Busy,
        FaultKind::Unsupported,
        FaultKind::NoSpace,
        FaultKind::Deadline,
        FaultKind::Guest,
        FaultKind::Corrupt,
        FaultKind::Unreachable,
        FaultKind::Internal,
    ];

    /// The HTTP status it travels with.
    pub const fn status(self) -> u16 {
        match self {
            FaultKind::Invalid => 400,
            FaultKind::NotFound => 404,
            FaultKind::Exists | FaultKind::Conflict | FaultKind::Busy => 409,
            FaultKind::Stale => 412,
            FaultKind::Unsupported => 422,
            FaultKind::NoSpace => 507,
            FaultKind::Deadline => 504,
            FaultKind::Guest | FaultKind::Unreachable => 502,
            FaultKind::Corrupt | FaultKind::Internal => 500,
        }
    }
}
