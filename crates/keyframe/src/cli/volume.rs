//! `keyframe volume …`

use clap::{Args, Subcommand};
use keyframe_engine::units::Bytes;

use super::ReachArgs;
use super::transfer::{ExportArgs, ImportArgs};
use super::tree::{CloneArgs, DiffArgs, RevertArgs, SpaceArgs, TreeArgs};
use super::volume_snapshot::VolumeSnapshotCommand;
use crate::size::parse_size;

#[derive(Args, Clone, Debug)]
pub(crate) struct VolumeArgs {
    #[command(flatten)]
    pub(crate) reach: ReachArgs,
    #[command(subcommand)]
    pub(crate) command: VolumeCommand,
}

#[derive(Subcommand, Clone, Debug)]
pub(crate) enum VolumeCommand {
    /// Make an empty volume
    Create {
        /// Name of the volume
        name: String,
        /// Its size, a multiple of 4 KiB
        #[arg(value_parser = parse_size)]
        size: Bytes,
    },
    /// List volumes, oldest first
    List(ListArgs),
    /// Show one volume
    Show {
        /// Name of the volume
        name: String,
    },
    /// Enlarge or shrink a volume; its snapshots keep their sizes
    Resize {
        /// Name of the volume
        name: String,
        /// The new size, a multiple of 4 KiB
        #[arg(value_parser = parse_size)]
        size: Bytes,
    },
    /// Give a volume another name
    Rename {
        /// Name of the volume
        name: String,
        /// The new name
        new: String,
    },
    /// Delete a volume; clones made from it stay
    Delete {
        /// Name of the volume
        name: String,
        /// Delete its snapshots too
        #[arg(long)]
        snapshots: bool,
    },
    /// Take, list, rename and delete snapshots
    #[command(subcommand)]
    Snapshot(VolumeSnapshotCommand),
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
}

/// Which part of a long list.
#[derive(Args, Debug, Clone)]
pub(crate) struct ListArgs {
    /// Only what comes after this name
    #[arg(long, value_name = "NAME")]
    pub(crate) after: Option<String>,
    /// At most so many
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<usize>,
}
