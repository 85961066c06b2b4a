//! The command line: nouns and verbs, in the manner of `zfs` and `qemu-img`. This folder only says what can be typed; what
//! it means is in [`crate::command`].

mod pool;
mod snapshot;
mod transfer;
mod tree;
mod volume;

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand, ValueHint};

pub(crate) use pool::{IoName, PoolArgs, PoolCommand, PreallocationName, ServeArgs};
pub(crate) use snapshot::VolumeSnapshotCommand;
pub(crate) use transfer::{ExportArgs, ImageFormat, ImportFormat};
pub(crate) use volume::{ListArgs, VolumeArgs, VolumeCommand};

const AFTER: &str = "\
Exit status: 0 success, 1 failure, 2 wrong usage.
Sizes are written 10G, 512M, 1.5T or as plain bytes; units are powers of 1024.";

/// Instant snapshots and clones of virtual machines
#[derive(Parser, Debug)]
#[command(name = "keyframe", version, after_help = AFTER, propagate_version = false, max_term_width = 100)]
#[command(arg_required_else_help = true, subcommand_required = true, disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) output: Output,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options that every command takes.
#[derive(Args, Debug)]
#[command(next_help_heading = "Common options")]
pub(crate) struct Output {
    /// Print the result as JSON
    #[arg(long, global = true, action = ArgAction::SetTrue)]
    pub(crate) json: bool,
    /// No progress and no remarks
    #[arg(long, short, global = true, action = ArgAction::SetTrue)]
    pub(crate) quiet: bool,
}

/// How commands on pools and volumes reach the pool.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Common options")]
pub(crate) struct ReachArgs {
    /// Work on this pool file directly; no server may hold it [env: KEYFRAME_POOL]
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) pool: Option<PathBuf>,
    /// The control socket of the server that holds the pool; preferred over the file when both come from the environment
    /// [env: KEYFRAME_CONTROL]
    #[arg(long, global = true, value_name = "SOCKET", value_hint = ValueHint::FilePath)]
    pub(crate) control: Option<PathBuf>,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Make, inspect, grow, verify and serve pools, without virtual machines
    Pool(PoolArgs),
    /// Volumes of a pool, their snapshots and clones, without virtual machines
    ///
    /// A TARGET is a volume (web) or a snapshot (web@before-upgrade).
    Volume(VolumeArgs),
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
