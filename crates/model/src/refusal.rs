//! Why something may not be done.

use thiserror::Error;

/// A refusal: nothing was changed.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("{message}")]
pub struct Refusal {
    /// For programs.
    pub kind: RefusalKind,
    /// For people: the object by its name, the reason, and the way out.
    pub message: String,
}

/// What kind of refusal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RefusalKind {
    /// The wish makes no sense, whatever the state.
    Invalid,
    /// Not in this state.
    State,
    /// Something else is being done to it.
    Busy,
    /// Somebody has locked it.
    Locked,
    /// The name is taken.
    Taken,
    /// A limit is reached.
    Limit,
}

impl Refusal {
    /// A refusal.
    pub fn new(kind: RefusalKind, message: impl Into<String>) -> Refusal {
        Refusal { kind, message: message.into() }
    }
}
