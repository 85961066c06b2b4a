//! What every call carries, and pages of long lists.

use keyframe_model::agent::Generation;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::JobRef;

/// Who asks. Authentication has happened; authorization asks this.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Caller {
    /// For the log and for jobs' records.
    pub name: String,
    /// May do everything.
    pub admin: bool,
}

/// A call that changes something.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Call {
    /// Who asks.
    pub caller: Caller,
    /// The same call with the same key again is answered with the first one's job, a different one with it is refused.
    pub key: Option<Key>,
    /// The generation of the thing that the caller has seen; refused if it has changed since.
    pub expected: Option<Generation>,
}

/// What makes a call one that can be repeated.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Key {
    /// Of the caller's choice.
    pub word: String,
    /// What the caller said, before anything was looked up for it; tells a repetition from another call.
    pub said: String,
}

impl Caller {
    /// Whoever owns the process or its socket.
    pub fn admin(name: impl Into<String>) -> Caller {
        Caller { name: name.into(), admin: true }
    }
}

impl Call {
    /// A call without a key and without expectations.
    pub fn by(caller: Caller) -> Call {
        Call { caller, key: None, expected: None }
    }
}

/// Which part of a list.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct PageRequest {
    /// Where to go on: the `next` of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// Most items; 1 to 1000, by default 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

/// A part of a list.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Page<T> {
    /// In a fixed order.
    pub items: Vec<T>,
    /// Where to go on; absent at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// What came of a change that may need a job.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome<T> {
    /// It is done.
    Done(T),
    /// A job is at it.
    Job(JobRef),
}
