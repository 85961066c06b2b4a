//! `keyframe volume …`

use clap::{Args, Subcommand};
use keyframe_engine::units::Bytes;

use crate::size::parse_size;

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
