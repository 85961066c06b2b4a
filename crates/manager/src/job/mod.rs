//! Jobs: long work in steps, each of which can be taken back, until a step that commits.
//!
//! ```text
//!  begin (one transaction: checks, machine busy, locks, job)
//!    └► step 0 ──► step 1 ──► … ──► finish (one transaction: result, machine at rest, job ended)
//!         │ fails, or somebody cancels        ▲
//!         └► undo step n ──► … ──► undo step 0 ─┘
//! ```
//!
//! - The intent of a step is durable before it is begun, and that of its undoing before that is. After a restart a step that was
//!   begun is probed, then run again, taken as done, or undone; so all of them can be repeated, under the same key.
//! - The step that failed is undone too: what it did before it failed is unknown.
//! - From the moment that a step which commits is begun, the job only goes forward.
//! - What fails is tried again for a while, then given up: a job always ends, and says what it left behind.
//! - What only clears up is no condition of success: if it fails, what is left is deleted later, and so is what was left by a step
//!   that could not be undone.
//! - The catalog's state and the job's end are written together, so they never disagree.
//!
//! A job of n steps costs n + 2 transactions, because the end of a step and the intent of the next are one.

#[cfg(debug_assertions)]
mod breakpoint;
mod context;
mod drive;
mod engine;
mod kind;
#[cfg(any(test, feature = "kit"))]
pub mod kit;
mod record;
mod registry;
mod step;
mod tap;
#[cfg(test)]
mod tests;
mod words;

pub use context::{Context, Outputs};
pub(crate) use engine::FULL;
pub use engine::{Engine, Limits};
pub use kind::{Begun, Ending, Kind, Outcome};
pub use registry::Registry;
pub use step::{Probe, Step};
pub(crate) use words::named;
