//! `keyframe pool …`

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum, ValueHint};
use keyframe_engine::units::Bytes;

use super::ReachArgs;
use crate::size::parse_size;

#[derive(Args, Clone, Debug)]
pub(crate) struct PoolArgs {
    #[command(flatten)]
    pub(crate) reach: ReachArgs,
    #[command(subcommand)]
    pub(crate) command: PoolCommand,
}

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
    /// Serve a pool: every volume and snapshot over NBD, commands over the control socket
    ///
    /// Commands are taken at --control, of mode 0600; without it at the pool's path with `.control` appended.
    Serve(ServeArgs),
}

/// `keyframe pool serve`; the pool and the control socket are the common options.
#[derive(Args, Clone, Debug)]
pub(crate) struct ServeArgs {
    /// Where NBD is served: unix:PATH or tcp:ADDRESS:PORT; may be repeated. There is no authentication: TCP belongs on
    /// the loopback device or a network of your own
    #[arg(long, value_name = "ADDRESS", value_parser = crate::serve::address::parse)]
    pub(crate) nbd: Vec<keyframe_nbd::Address>,
    /// Memory for the pool's map
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "256M")]
    pub(crate) cache: Bytes,
    /// How the pool file is read and written
    #[arg(long, value_enum, default_value_t = IoName::Auto)]
    pub(crate) io: IoName,
}

#[derive(ValueEnum, Clone, Copy, Debug)]
pub(crate) enum IoName {
    /// io_uring where the kernel allows it, otherwise threads
    Auto,
    /// io_uring
    Uring,
    /// A pool of threads
    Threads,
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
