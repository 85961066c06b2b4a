//! `keyframe pool …`

use std::path::PathBuf;

use clap::{Subcommand, ValueEnum, ValueHint};
use keyframe_engine::units::Bytes;

use crate::size::parse_size;

#[derive(Subcommand, Clone, Debug)]
pub(crate) enum PoolCommand {
    /// Make a pool in a new file or on a block device
    Create {
        /// Must not exist, unless it is a block device
        #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
        file: PathBuf,
        /// Size of the pool
        #[arg(long, value_parser = parse_size)]
        size: Bytes,
        /// How much of the file system's space is taken now
        #[arg(long, value_enum, default_value_t = PreallocationName::Falloc)]
        preallocation: PreallocationName,
    },
    /// Show a pool's size and what is in it
    Info,
    /// Enlarge the pool, online too
    Grow {
        /// New size; without it, the size that the file or device has by now
        #[arg(long, value_parser = parse_size)]
        size: Option<Bytes>,
    },
    /// Verify everything in a pool that no server holds
    Check {
        /// The pool
        #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
        file: PathBuf,
    },
    /// Verify everything in a pool while it is used
    Scrub,
    /// Show the pool's counters
    Stats,
}

#[derive(ValueEnum, Clone, Copy, Debug)]
pub(crate) enum PreallocationName {
    /// None: the file grows as it is filled
    Off,
    /// Reserve the space
    Falloc,
    /// Reserve the space and write it once
    Full,
}
