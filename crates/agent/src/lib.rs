//! The agent of one host: it runs the machines and holds their volumes.
//!
//! `array` is the seam to what stores volumes, `hypervisor` the seam to what runs machines. Both are called from threads
//! that may wait, never from the runtime's. The agent keeps nothing of its own that it could not find again: processes,
//! sockets and array snapshots are looked for when it starts.

pub mod array;
pub mod hypervisor;

/// What calls fail with.
pub type Result<T> = std::result::Result<T, keyframe_agent_api::Fault>;
