//! `keyframe snapshot …`

use clap::{Args, Subcommand, ValueEnum};

use super::remote::{LimitArgs, RemoteArgs, WaitArgs};
use crate::span::{Span, parse_span};

#[derive(Args, Clone, Debug)]
pub(crate) struct SnapshotArgs {
    #[command(flatten)]
    pub(crate) remote: RemoteArgs,
    #[command(subcommand)]
    pub(crate) command: SnapshotCommand,
}

#[derive(Subcommand, Clone, Debug)]
pub(crate) enum SnapshotCommand {
    /// Take a snapshot of a machine: all its disks at one instant, with --memory its memory too
    Create(SnapshotCreateArgs),
    /// List a machine's snapshots, or those of all machines
    List(SnapshotListArgs),
    /// Show one snapshot: how consistent it is, how it was taken, what it takes
    Show {
        /// The snapshot
        #[arg(value_name = "VM@SNAPSHOT")]
        snapshot: String,
    },
    /// Draw a machine's snapshots as a tree
    Tree {
        /// The machine
        vm: String,
        /// Show what each takes (walks the maps)
        #[arg(long)]
        space: bool,
    },
    /// Give a snapshot another name
    Rename {
        /// The snapshot
        #[arg(value_name = "VM@SNAPSHOT")]
        snapshot: String,
        /// The new name, without the machine
        new: String,
    },
    /// Describe a snapshot
    Describe {
        /// The snapshot
        #[arg(value_name = "VM@SNAPSHOT")]
        snapshot: String,
        /// For people
        text: String,
    },
    /// Add and remove tags of a snapshot
    Tag {
        /// The snapshot
        #[arg(value_name = "VM@SNAPSHOT")]
        snapshot: String,
        /// Tags to add
        #[arg(value_name = "TAG")]
        add: Vec<String>,
        /// A tag to remove; may be repeated
        #[arg(long, value_name = "TAG")]
        remove: Vec<String>,
    },
    /// Lock a snapshot: nobody and no policy deletes it until it is unlocked
    Lock {
        /// The snapshot
        #[arg(value_name = "VM@SNAPSHOT")]
        snapshot: String,
    },
    /// Unlock a snapshot
    Unlock {
        /// The snapshot
        #[arg(value_name = "VM@SNAPSHOT")]
        snapshot: String,
    },
    /// Keep an automatic snapshot for good: it no longer expires
    Keep {
        /// The snapshot
        #[arg(value_name = "VM@SNAPSHOT")]
        snapshot: String,
    },
    /// Take a machine to any of its snapshots; the others stay, and so does the state given up, with the guest's memory
    Apply {
        /// The snapshot
        #[arg(value_name = "VM@SNAPSHOT")]
        snapshot: String,
        #[command(flatten)]
        how: ApplyArgs,
    },
    /// Take a machine to the snapshot last taken or applied
    Revert {
        /// The machine
        vm: String,
        #[command(flatten)]
        how: ApplyArgs,
    },
    /// Delete a snapshot; its children stay and move up
    Delete {
        /// The snapshot; with --all the machine
        #[arg(value_name = "VM@SNAPSHOT")]
        snapshot: String,
        /// And all that descend from it
        #[arg(long, conflicts_with = "all")]
        subtree: bool,
        /// All snapshots of the machine
        #[arg(long)]
        all: bool,
        /// Only say what would be deleted and freed
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Say what differs between the disks of two snapshots of a machine
    Diff {
        /// What to compare with
        #[arg(value_name = "VM@SNAPSHOT")]
        from: String,
        /// The snapshot
        #[arg(value_name = "VM@SNAPSHOT")]
        snapshot: String,
    },
    /// Compress a snapshot's memory now; by itself that happens when it is an hour old
    Compress {
        /// The snapshot
        #[arg(value_name = "VM@SNAPSHOT")]
        snapshot: String,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Verify that all of a snapshot is there, and every page of its memory
    Verify {
        /// The snapshot
        #[arg(value_name = "VM@SNAPSHOT")]
        snapshot: String,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Find snapshots by a word in name, description or tags
    Search {
        /// The word
        word: String,
        #[command(flatten)]
        limit: LimitArgs,
    },
    /// Say what a machine's snapshots take, and what deleting each would free
    Space {
        /// The machine
        vm: String,
    },
}

#[derive(Args, Clone, Debug)]
pub(crate) struct SnapshotCreateArgs {
    /// The machine, and if wanted the snapshot's name
    #[arg(value_name = "VM[@NAME]")]
    pub(crate) target: String,
    /// With the memory, so that the guest goes on where it was
    #[arg(long)]
    pub(crate) memory: bool,
    /// Have the guest agent make the file systems clean first
    #[arg(long, value_enum, num_args = 0..=1, default_value = "no", default_missing_value = "required")]
    pub(crate) quiesce: QuiesceName,
    /// How long the guest agent may take, 10ms to 60s; writes are held no longer, and never for more than 10s [default: 5s]
    #[arg(long, value_name = "TIME", value_parser = parse_span)]
    pub(crate) deadline: Option<Span>,
    /// For people
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub(crate) description: String,
    /// A tag; may be repeated
    #[arg(long = "tag", value_name = "TAG")]
    pub(crate) tags: Vec<String>,
    /// Lock it: nobody deletes it until it is unlocked
    #[arg(long)]
    pub(crate) lock: bool,
    #[command(flatten)]
    pub(crate) wait: WaitArgs,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct SnapshotListArgs {
    /// The machine
    pub(crate) vm: Option<String>,
    /// Only those with this tag
    #[arg(long)]
    pub(crate) tag: Option<String>,
    /// Only those with this word in name, description or tags
    #[arg(long, value_name = "WORD")]
    pub(crate) search: Option<String>,
    /// Only those of this kind
    #[arg(long, value_parser = ["disk", "disk+memory"])]
    pub(crate) kind: Option<String>,
    /// Only those in this state
    #[arg(long, value_parser = ["creating", "ready", "deleting", "error"])]
    pub(crate) state: Option<String>,
    /// Only those that Keyframe has made by itself
    #[arg(long)]
    pub(crate) automatic: bool,
    #[command(flatten)]
    pub(crate) limit: LimitArgs,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct ApplyArgs {
    /// Keep nothing of the state given up, neither disks nor memory
    #[arg(long, conflicts_with_all = ["keep_name", "keep_for", "keep_memory", "no_keep_memory"])]
    pub(crate) discard_current: bool,
    /// Name of the automatic snapshot of the state given up
    #[arg(long, value_name = "NAME")]
    pub(crate) keep_name: Option<String>,
    /// How long the automatic snapshot is kept [default: 7d]
    #[arg(long, value_name = "TIME", value_parser = parse_span)]
    pub(crate) keep_for: Option<Span>,
    /// Keep the memory of a running or paused guest too, so that going back goes on where it was (the default)
    #[arg(long, overrides_with = "no_keep_memory")]
    pub(crate) keep_memory: bool,
    /// Keep the disks only: quicker, but the guest's memory is lost, and if the apply fails the guest may start anew
    #[arg(long)]
    pub(crate) no_keep_memory: bool,
    /// Start the machine afterwards, if the snapshot has no memory
    #[arg(long)]
    pub(crate) start: bool,
    /// Use the disks only
    #[arg(long)]
    pub(crate) without_memory: bool,
    /// Only say what would happen
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) wait: WaitArgs,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum QuiesceName {
    /// Leave the guest alone; the snapshot is like a power failure
    No,
    /// If the guest agent does it in time
    Preferred,
    /// Or take no snapshot
    Required,
}
