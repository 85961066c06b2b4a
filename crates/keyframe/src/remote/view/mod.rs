//! Resources as people read them.

pub(super) mod device;
pub(crate) mod host;
pub(super) mod job;
pub(super) mod plan;
pub(super) mod snapshot;
pub(super) mod template;
pub(super) mod tree;
pub(super) mod vm;

use keyframe_model::agent::{Bytes, Micros, Timestamp};

pub(super) use crate::ops::human;
pub(super) use crate::show::lines::fields;
pub(super) use crate::show::table::print;

/// A size for people.
pub(super) fn size(bytes: Bytes) -> String {
    human(bytes.0)
}

/// A moment for people, in UTC.
pub(super) fn moment(at: Timestamp) -> String {
    u64::try_from(at.0 / 1_000_000).map_or_else(|_| "-".into(), crate::clock::utc)
}

/// A short span for people.
pub(super) fn span(span: Micros) -> String {
    match span.0 {
        us @ 0..10_000_000 => format!("{}.{:02} ms", us / 1000, us % 1000 / 10),
        us => format!("{}.{} s", us / 1_000_000, us % 1_000_000 / 100_000),
    }
}

/// A word of a serialised enum.
pub(super) fn word(value: impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => "-".into(),
    }
}

/// What is not there, in a table.
pub(super) fn or_dash(text: Option<String>) -> String {
    text.unwrap_or_else(|| "-".into())
}
