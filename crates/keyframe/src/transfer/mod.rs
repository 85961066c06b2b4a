//! Disk images in and out. The copy runs in the process that holds the pool; a server streams its progress.

mod export;
mod import;
mod percent;
mod qcow2;
mod qemu;
mod raw;
mod zero;

pub(crate) use export::export;
pub(crate) use import::import;

/// Bytes moved by one read or write.
const CHUNK: u64 = 1 << 20;
