//! The command line: nouns and verbs, in the manner of `zfs` and `qemu-img`. This folder only says what can be typed; what
//! it means is in [`crate::command`].

mod pool;
mod snapshot;
mod transfer;
mod tree;
mod volume;

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand, ValueHint};

pub(crate) use pool::{PoolCommand, PreallocationName};
pub(crate) use snapshot::SnapshotCommand;
pub(crate) use transfer::{ExportArgs, ImageFormat, ImportArgs, ImportFormat};
pub(crate) use tree::{CloneArgs, DiffArgs, RevertArgs, SpaceArgs, TreeArgs};
pub(crate) use volume::{ListArgs, VolumeCommand};

const AFTER: &str = "\
Exit status: 0 success, 1 failure, 2 wrong usage.
Sizes are written 10G, 512M, 1.5T or as plain bytes; units are powers of 1024.
A TARGET is a volume (web) or a snapshot (web@before-upgrade).";

/// Instant snapshots and clones of virtual machine disks
#[derive(Parser, Debug)]
#[command(name = "keyframe", version, after_help = AFTER, propagate_version = false, max_term_width = 100)]
#[command(arg_required_else_help = true, subcommand_required = true, disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options that every command takes.
#[derive(Args, Debug)]
#[command(next_help_heading = "Common options")]
pub(crate) struct Global {
    /// Work on this pool file directly; no server may hold it [env: KEYFRAME_POOL]
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) pool: Option<PathBuf>,
    /// Ask the server with this control socket; preferred over --pool when both come from the environment
    /// [env: KEYFRAME_CONTROL]
    #[arg(long, global = true, value_name = "SOCKET", value_hint = ValueHint::FilePath, conflicts_with = "pool")]
    pub(crate) server: Option<PathBuf>,
    /// Print the result as JSON
    #[arg(long, global = true, action = ArgAction::SetTrue)]
    pub(crate) json: bool,
    /// No progress and no remarks
    #[arg(long, short, global = true, action = ArgAction::SetTrue)]
    pub(crate) quiet: bool,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Make, inspect, grow and verify pools
    #[command(subcommand)]
    Pool(PoolCommand),
    /// Make, list, resize, rename and delete volumes
    #[command(subcommand)]
    Volume(VolumeCommand),
    /// Take, list, rename and delete snapshots
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// List volumes (short for `volume list`)
    List(ListArgs),
    /// Make a volume from a snapshot or from a live volume, at no cost in space
    Clone(CloneArgs),
    /// Put a volume back to one of its snapshots; every other snapshot stays
    Revert(RevertArgs),
    /// Draw a volume's whole family: snapshots, clones and their clones
    Tree(TreeArgs),
    /// Say what targets hold, share, and would free
    Space(SpaceArgs),
    /// List the ranges that differ between two targets
    Diff(DiffArgs),
    /// Copy a disk image into a new volume
    Import(ImportArgs),
    /// Copy a volume, a snapshot or the difference between two into a disk image
    Export(ExportArgs),
    /// Serve a pool: every volume and snapshot over NBD, commands over the control socket
    Serve(ServeArgs),
    /// Print a completion script for a shell
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the manual pages into a folder
    Man {
        /// Made if it does not exist
        #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
        dir: PathBuf,
    },
}

/// `keyframe serve`; the pool is the common option `--pool`.
#[derive(Args, Debug)]
pub(crate) struct ServeArgs {
    /// Where commands are taken; mode 0600 [default: the pool's path with `.control` appended]
    #[arg(long, value_name = "SOCKET", value_hint = ValueHint::FilePath)]
    pub(crate) control: Option<PathBuf>,
    /// Where NBD is served: unix:PATH or tcp:ADDRESS:PORT; may be repeated. There is no authentication: TCP belongs on
    /// the loopback device or a network of your own
    #[arg(long, value_name = "ADDRESS", value_parser = crate::serve::address::parse)]
    pub(crate) nbd: Vec<keyframe_nbd::Address>,
    /// Memory for the pool's map
    #[arg(long, value_name = "SIZE", value_parser = crate::size::parse_size, default_value = "256M")]
    pub(crate) cache: keyframe_engine::units::Bytes,
    /// How the pool file is read and written
    #[arg(long, value_enum, default_value_t = IoName::Auto)]
    pub(crate) io: IoName,
}

#[derive(clap::ValueEnum, Clone, Copy, Debug)]
pub(crate) enum IoName {
    /// io_uring where the kernel allows it, otherwise threads
    Auto,
    /// io_uring
    Uring,
    /// A pool of threads
    Threads,
}
