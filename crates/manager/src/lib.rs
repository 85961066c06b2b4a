//! What can be done with machines, snapshots, clones and templates: the use cases, the jobs that carry them out, and the
//! reconciler that keeps the catalog equal to the hosts.
//!
//! No SQL (that is the catalog's), no HTTP serving (that is the API's), no rule of its own (those are the model's).

pub mod agent;
mod case;
mod compress;
mod error;
mod event;
pub mod job;
mod kind;
mod manager;
mod reconcile;
pub mod request;
mod space;
#[cfg(test)]
mod tests;

pub use agent::{AgentAddress, Console};
pub use error::{Error, ErrorKind, Result};
pub use event::EventStream;
pub use manager::{Config, Manager};
