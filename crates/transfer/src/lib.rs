//! Disk images into and out of a pool of the engine, and the pool's volumes as NBD exports. Shared by the storage command
//! line and the agent.
//!
//! A copy runs in the process that holds the pool and tells how far it is; an error from whoever listens ends it. Copies
//! that fail leave nothing. What went wrong is a chain of causes, in which an engine's error or [`Invalid`] can be found.

#![deny(clippy::print_stderr)]

mod export;
mod exports;
mod header;
mod image;
mod import;
mod percent;
mod qcow2;
mod qemu;
mod raw;
mod zero;

pub use export::export;
pub use exports::{Attached, Exports, Lane};
pub use image::{Copied, Image, Invalid, Overlay};
pub use import::{Source, import};

/// Told (done, total) now and then; the units are the copy's own. An error from it ends the copy.
pub type Progress<'a> = dyn FnMut(u64, u64) -> anyhow::Result<()> + 'a;

/// Bytes moved by one read or write.
const CHUNK: u64 = 1 << 20;
