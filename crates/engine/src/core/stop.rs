//! Why a step of the core could not finish now.
//!
//! A step changes nothing before everything it needs is in memory. It stops with a *miss*, the caller reads the named page and
//! runs the step again; or with a *wait*, and runs again when something has moved on; or it fails for good.

use crate::disk::entry::{Entry, Identity};
use crate::disk::layout::{GroupNo, TableNo};
use crate::error::{Error, ErrorKind};
use crate::units::{PoolBlock, Sector};

/// A page that must be read before the step can run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Miss {
    /// `era` is the count of checkpoints when the page was missed: a later era may have another page at that address.
    Page {
        at: Sector,
        identity: Identity,
        crc: u32,
        era: u64,
    },
    Table {
        number: TableNo,
        at: PoolBlock,
        crc: u32,
    },
    Group {
        number: GroupNo,
        at: PoolBlock,
        crc: u32,
    },
}

impl Miss {
    pub(crate) fn page(entry: Entry, identity: Identity, crc: u32, era: u64) -> Miss {
        Miss::Page { at: entry.at, identity, crc, era }
    }

    /// The block to read.
    pub(crate) fn block(self) -> PoolBlock {
        match self {
            Miss::Page { at, .. } => at.block(),
            Miss::Table { at, .. } | Miss::Group { at, .. } => at,
        }
    }
}

/// What has to happen before the step can run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// A checkpoint must make room in the journal or the cache.
    Checkpoint,
    /// Freed blocks must become usable.
    Space,
    /// An overlapping request must finish.
    Range,
}

/// Why a step stopped.
#[derive(Debug)]
pub(crate) enum Stop {
    Miss(Miss),
    Wait(Wait),
    Fail(Error),
}

impl Stop {
    /// A broken invariant of the engine itself.
    pub(crate) fn bug(what: &str) -> Stop {
        Stop::Fail(Error::new(ErrorKind::Corrupt, format!("internal error: {what}")))
    }
}

impl From<Error> for Stop {
    fn from(e: Error) -> Stop {
        Stop::Fail(e)
    }
}

/// Result of a step.
pub(crate) type Step<T> = Result<T, Stop>;
