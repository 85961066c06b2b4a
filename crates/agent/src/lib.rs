//! The agent of one host: it runs the machines and holds their volumes.
//!
//! `array` is the seam to what stores volumes, `hypervisor` the seam to what runs machines. Both are called from threads
//! that may wait, never from the runtime's. The agent keeps nothing of its own that it could not find again: processes,
//! sockets and array snapshots are looked for when it starts.

#![deny(clippy::print_stderr)]

pub mod agent;
pub mod array;
pub mod config;
pub mod consoles;
mod durable;
pub mod exports;
mod fault;
mod fs;
pub mod http;
pub mod hypervisor;
pub mod images;
pub mod instant;
pub mod life;
pub mod machines;
pub mod paths;
pub mod pid_file;
mod room;
pub mod run;
pub mod say;
#[doc(hidden)]
pub mod testing;
pub mod turns;
pub mod volumes;
pub mod work;

pub use keyframe_agent_api::{Fault, FaultKind};

/// What calls fail with.
pub type Result<T> = std::result::Result<T, keyframe_agent_api::Fault>;
