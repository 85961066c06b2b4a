//! Units as types.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

macro_rules! unit {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Serialize, Deserialize, ToSchema)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

unit!(
    /// A number of bytes.
    Bytes(u64)
);
unit!(
    /// A span of time in microseconds.
    Micros(u64)
);
unit!(
    /// A moment: microseconds since 1970-01-01T00:00:00Z.
    Timestamp(i64)
);
unit!(
    /// Counts the operations on one thing; who acts on an older one acts on something that has changed since.
    Generation(i64)
);

impl Bytes {
    /// Bytes in a mebibyte.
    pub const MIB: u64 = 1 << 20;

    /// So many mebibytes.
    pub const fn mib(count: u64) -> Bytes {
        Bytes(count * Bytes::MIB)
    }
}

impl std::ops::Add for Bytes {
    type Output = Bytes;

    fn add(self, other: Bytes) -> Bytes {
        Bytes(self.0 + other.0)
    }
}

impl std::iter::Sum for Bytes {
    fn sum<I: Iterator<Item = Bytes>>(all: I) -> Bytes {
        Bytes(all.map(|bytes| bytes.0).sum())
    }
}

impl Generation {
    /// The one after this.
    pub const fn next(self) -> Generation {
        Generation(self.0 + 1)
    }
}

impl From<Duration> for Micros {
    /// Saturates after half a million years.
    fn from(span: Duration) -> Micros {
        Micros(u64::try_from(span.as_micros()).unwrap_or(u64::MAX))
    }
}

impl From<Micros> for Duration {
    fn from(span: Micros) -> Duration {
        Duration::from_micros(span.0)
    }
}

impl Timestamp {
    /// This moment by the host's clock.
    pub fn now() -> Timestamp {
        SystemTime::now().into()
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Timestamp {
        let micros = |span: Duration| i64::try_from(span.as_micros()).unwrap_or(i64::MAX);
        Timestamp(match time.duration_since(UNIX_EPOCH) {
            Ok(since) => micros(since),
            Err(before) => -micros(before.duration()),
        })
    }
}
