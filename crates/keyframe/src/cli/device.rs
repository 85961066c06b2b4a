//! `keyframe disk …` and `keyframe nic …`

use clap::{Args, Subcommand};
use keyframe_engine::units::Bytes;

use super::remote::{RemoteArgs, WaitArgs};
use super::spec::{DiskText, NicText};
use crate::size::parse_size;

#[derive(Args, Clone, Debug)]
pub(crate) struct DiskArgs {
    #[command(flatten)]
    pub(crate) remote: RemoteArgs,
    #[command(subcommand)]
    pub(crate) command: DiskCommand,
}

#[derive(Subcommand, Clone, Debug)]
pub(crate) enum DiskCommand {
    /// List a machine's disks: those in it, and those that only its snapshots hold
    List {
        /// The machine
        vm: String,
    },
    /// Add a disk to a machine, also while it runs
    Attach {
        /// The machine
        vm: String,
        /// The disk: a size (20G), or size=20G,image=FILE,name=NAME,array=NAME,read-only; a comma in a value is written
        /// twice
        #[arg(value_name = "SPEC")]
        disk: DiskText,
        /// Its place, 0 to 23 [default: the first free one]
        #[arg(long, value_name = "N")]
        slot: Option<u8>,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Take a disk out of a machine; it goes for good unless a snapshot holds it
    Detach {
        /// The machine
        vm: String,
        /// The disk
        disk: String,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Enlarge a disk, also while its machine runs, or shrink it
    Resize {
        /// The machine
        vm: String,
        /// The disk
        disk: String,
        /// The new size, a multiple of 4 KiB
        #[arg(value_parser = parse_size)]
        size: Bytes,
        /// Shrinking is meant: what lies beyond the new end is lost
        #[arg(long)]
        shrink: bool,
        #[command(flatten)]
        wait: WaitArgs,
    },
}

#[derive(Args, Clone, Debug)]
pub(crate) struct NicArgs {
    #[command(flatten)]
    pub(crate) remote: RemoteArgs,
    #[command(subcommand)]
    pub(crate) command: NicCommand,
}

#[derive(Subcommand, Clone, Debug)]
pub(crate) enum NicCommand {
    /// List a machine's network interfaces
    List {
        /// The machine
        vm: String,
    },
    /// Add a network interface to a stopped machine
    Add {
        /// The machine
        vm: String,
        /// user, none, bridge=NAME[,vlan=ID] or isolated=NAME, with mac=ADDRESS and down if wanted
        #[arg(value_name = "SPEC")]
        nic: NicText,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Take a network interface out of a stopped machine
    Remove {
        /// The machine
        vm: String,
        /// The interface: its place or its address
        nic: String,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Plug a cable in
    Plug {
        /// The machine
        vm: String,
        /// The interface: its place or its address
        nic: String,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Pull a cable out
    Unplug {
        /// The machine
        vm: String,
        /// The interface: its place or its address
        nic: String,
        #[command(flatten)]
        wait: WaitArgs,
    },
}
