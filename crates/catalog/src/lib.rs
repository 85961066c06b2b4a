//! What is known of machines, snapshots, templates, disks and jobs, in SQLite or PostgreSQL; the only place with SQL.
//!
//! - Everything happens in a [`Transaction`]. One that writes is alone: it waits for the one before, in this process and in any
//!   other. So no statement meets a conflict, nothing is ever tried again, and the events are in the order of the commits.
//! - Things that change have a generation. An update names the one that its author has read, and is refused if there is a newer.
//! - One manager writes. Another one can take over when the first has gone; should the first come back, it is fenced out.
//! - Every change appends an event in the same transaction.
//!
//! A transaction that writes costs one sync of the disk. It must not be held while something outside is awaited.

mod catalog;
mod dump;
mod error;
mod event;
mod host;
mod job;
mod keeper;
mod leftover;
mod lock;
mod page;
mod request;
mod reserve;
mod setting;
mod snapshot;
mod sql;
mod step;
mod template;
mod token;
mod transaction;
mod vm;
mod volume;

pub use catalog::Catalog;
pub use error::{Error, ErrorKind, Result};
pub use event::{Change, Event, EventKind};
pub use host::Host;
pub use job::{Job, JobFailure, JobFilter};
pub use leftover::Leftover;
pub use lock::{Mode, Resource};
pub use page::{Page, PageOf};
pub use request::Request;
pub use snapshot::{SnapshotFilter, SnapshotLine, SnapshotPhase};
pub use step::{JobStep, StepState};
pub use template::TemplateFilter;
pub use token::{Token, TokenHash};
pub use transaction::Transaction;
pub use vm::{VmFilter, VmPhase};
pub use volume::Owner;
