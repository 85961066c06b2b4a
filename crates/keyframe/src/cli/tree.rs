//! Commands on the version tree: `keyframe volume clone`, `revert`, `tree`, `space`, `diff`.

use clap::Args;

use super::volume_snapshot::SnapshotTarget;

#[derive(Args, Clone, Debug)]
pub(crate) struct CloneArgs {
    /// What to clone: a snapshot, or a volume as it is now
    #[arg(value_name = "TARGET")]
    pub(crate) source: String,
    /// Name of the new volume
    #[arg(value_name = "NEW")]
    pub(crate) name: String,
    /// Name of the snapshot that a live volume is cloned through [default: clone-NEW]
    #[arg(long, value_name = "NAME")]
    pub(crate) via: Option<String>,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct RevertArgs {
    /// The snapshot to go back to
    #[arg(value_name = "VOLUME@NAME")]
    pub(crate) target: SnapshotTarget,
    /// Keep what the volume holds now as a snapshot of this name; without it, that is lost
    #[arg(long, value_name = "NAME")]
    pub(crate) keep: Option<String>,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct TreeArgs {
    /// Any volume of the family
    pub(crate) volume: String,
    /// Show what each node holds alone (walks the maps)
    #[arg(long)]
    pub(crate) space: bool,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct SpaceArgs {
    /// Volumes and snapshots; of several, also what deleting all of them would free
    #[arg(value_name = "TARGET", required = true)]
    pub(crate) targets: Vec<String>,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct DiffArgs {
    /// The older target, or `-` for nothing: then all that TO stores is listed
    #[arg(value_name = "FROM")]
    pub(crate) from: String,
    /// The newer target
    #[arg(value_name = "TO")]
    pub(crate) to: String,
}
