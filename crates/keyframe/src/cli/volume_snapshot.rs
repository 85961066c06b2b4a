//! `keyframe volume snapshot …`

use std::str::FromStr;

use clap::Subcommand;

use super::volume::ListArgs;

/// `VOLUME@NAME`. Whether the parts are good names is the engine's to say.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct SnapshotTarget {
    pub(crate) volume: String,
    pub(crate) snapshot: String,
}

impl FromStr for SnapshotTarget {
    type Err = String;

    fn from_str(text: &str) -> Result<SnapshotTarget, String> {
        match text.split_once('@') {
            Some((volume, snapshot)) => Ok(SnapshotTarget { volume: volume.into(), snapshot: snapshot.into() }),
            None => Err("a snapshot is written VOLUME@NAME".into()),
        }
    }
}

impl std::fmt::Display for SnapshotTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{}", self.volume, self.snapshot)
    }
}

#[derive(Subcommand, Clone, Debug)]
pub(crate) enum VolumeSnapshotCommand {
    /// Take snapshots of one or more volumes, all at one instant
    Create {
        /// Volume and name of each snapshot
        #[arg(value_name = "VOLUME@NAME", required = true)]
        targets: Vec<SnapshotTarget>,
    },
    /// List a volume's snapshots, oldest first
    List {
        /// Name of the volume
        volume: String,
        #[command(flatten)]
        part: ListArgs,
    },
    /// Show one snapshot
    Show {
        /// The snapshot
        #[arg(value_name = "VOLUME@NAME")]
        target: SnapshotTarget,
    },
    /// Give a snapshot another name
    Rename {
        /// The snapshot
        #[arg(value_name = "VOLUME@NAME")]
        target: SnapshotTarget,
        /// The new name, without the volume
        new: String,
    },
    /// Delete a snapshot; what was taken after it and cloned from it stays
    Delete {
        /// The snapshot
        #[arg(value_name = "VOLUME@NAME")]
        target: SnapshotTarget,
        /// Delete all snapshots of the volume that descend from it too; the volume itself and clones stay
        #[arg(long)]
        subtree: bool,
        /// Only say what would be deleted and freed
        #[arg(long)]
        dry_run: bool,
    },
}
