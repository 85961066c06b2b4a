//! Errors of the layers below as faults: one table for each.

use std::io;

use keyframe_agent_api::{Fault, FaultKind};
use keyframe_engine::ErrorKind;
use keyframe_nbd::gate::GateError;

/// A fault about something with a name.
pub(crate) fn fault(kind: FaultKind, message: impl Into<String>) -> Fault {
    Fault::new(kind, message)
}

/// What an engine's failure is to a caller.
pub(crate) fn of_engine(error: &keyframe_engine::Error) -> Fault {
    let kind = match error.kind() {
        ErrorKind::NotFound => FaultKind::NotFound,
        ErrorKind::Exists => FaultKind::Exists,
        ErrorKind::Invalid | ErrorKind::OutOfBounds => FaultKind::Invalid,
        ErrorKind::InUse | ErrorKind::Locked => FaultKind::Busy,
        ErrorKind::HasDependants | ErrorKind::ReadOnly => FaultKind::Conflict,
        ErrorKind::NoSpace => FaultKind::NoSpace,
        ErrorKind::Corrupt => FaultKind::Corrupt,
        ErrorKind::NotAPool | ErrorKind::NewerFormat | ErrorKind::Io | ErrorKind::Poisoned => FaultKind::Internal,
    };
    Fault::new(kind, chain(error))
}

/// A copy of an image that failed.
pub(crate) fn of_copy(error: &anyhow::Error) -> Fault {
    let engine = error.chain().find_map(|cause| cause.downcast_ref::<keyframe_engine::Error>());
    let file = error.chain().find_map(|cause| cause.downcast_ref::<io::Error>());
    let kind = match (engine, file) {
        (Some(engine), _) => of_engine(engine).kind,
        (None, Some(file)) => of_io_kind(file),
        (None, None) => FaultKind::Invalid,
    };
    Fault::new(kind, format!("{error:#}"))
}

fn of_io_kind(error: &io::Error) -> FaultKind {
    match error.kind() {
        io::ErrorKind::NotFound => FaultKind::NotFound,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => FaultKind::NoSpace,
        _ => FaultKind::Internal,
    }
}

/// A file that could not be worked with; says what was to be done.
pub(crate) fn of_io(act: impl std::fmt::Display, error: &io::Error) -> Fault {
    let kind = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => FaultKind::NoSpace,
        _ => FaultKind::Internal,
    };
    Fault::new(kind, format!("cannot {act}: {error}"))
}

/// A gate that could not hold.
pub(crate) fn of_gate(error: &GateError) -> Fault {
    let kind = match error {
        GateError::Busy { .. } => FaultKind::Busy,
        GateError::Lost | GateError::Unresponsive | GateError::InFlight => FaultKind::Deadline,
    };
    Fault::new(kind, format!("the instant was given up: {}", chain(error)))
}

/// An error with its causes, joined by colons.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
