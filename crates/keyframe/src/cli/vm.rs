//! `keyframe vm …`

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum, ValueHint};
use keyframe_engine::units::Bytes;

use super::remote::{LimitArgs, RemoteArgs, WaitArgs};
use super::spec::{DiskText, NicText};
use crate::size::parse_size;
use crate::span::{Span, parse_span};

#[derive(Args, Clone, Debug)]
pub(crate) struct VmArgs {
    #[command(flatten)]
    pub(crate) remote: RemoteArgs,
    #[command(subcommand)]
    pub(crate) command: VmCommand,
}

#[derive(Subcommand, Clone, Debug)]
pub(crate) enum VmCommand {
    /// Make a machine: empty, from an image, from a template, or from a snapshot
    Create(Box<VmCreateArgs>),
    /// List machines
    List(VmListArgs),
    /// Show one machine
    Show {
        /// The machine
        vm: String,
    },
    /// Start machines
    Start {
        /// The machines
        #[arg(value_name = "VM", required = true)]
        vms: Vec<String>,
        /// Leave their processors standing still
        #[arg(long)]
        paused: bool,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Stop machines: ask the guest, and pull the plug when it does not obey
    Stop {
        /// The machines
        #[arg(value_name = "VM", required = true)]
        vms: Vec<String>,
        /// Pull the plug at once
        #[arg(long, conflicts_with_all = ["deadline", "never_hard"])]
        hard: bool,
        /// How long the guest may take, as 30s or 2m [default: 60s]
        #[arg(long, value_name = "TIME", value_parser = parse_span)]
        deadline: Option<Span>,
        /// Fail after the deadline rather than pull the plug
        #[arg(long)]
        never_hard: bool,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Press the reset button of machines
    Reset(VmsArgs),
    /// Let the processors of machines stand still
    Pause(VmsArgs),
    /// Let the processors of machines go on
    Resume(VmsArgs),
    /// Give a machine another name
    Rename {
        /// The machine
        vm: String,
        /// The new name
        new: String,
    },
    /// Change a machine's description, processors or memory
    Set {
        /// The machine
        vm: String,
        /// For people
        #[arg(long, value_name = "TEXT")]
        description: Option<String>,
        /// Virtual processors; the machine must be stopped
        #[arg(long, value_name = "N")]
        cpus: Option<u32>,
        /// RAM; the machine must be stopped
        #[arg(long, value_name = "SIZE", value_parser = parse_size)]
        memory: Option<Bytes>,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Delete machines with their disks and snapshots; clones made of them stay whole
    Delete {
        /// The machines
        #[arg(value_name = "VM", required = true)]
        vms: Vec<String>,
        /// Also one that runs: pull its plug first
        #[arg(long)]
        force: bool,
        /// Only say what would be deleted and freed
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        wait: WaitArgs,
    },
}

/// Some machines, all treated alike.
#[derive(Args, Clone, Debug)]
pub(crate) struct VmsArgs {
    /// The machines
    #[arg(value_name = "VM", required = true)]
    pub(crate) vms: Vec<String>,
    #[command(flatten)]
    pub(crate) wait: WaitArgs,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct VmListArgs {
    /// Only those in this state: stopped, running, paused, busy or error
    #[arg(long)]
    pub(crate) state: Option<String>,
    /// Only those with this word in name or description
    #[arg(long, value_name = "WORD")]
    pub(crate) search: Option<String>,
    /// Show what each takes (walks the maps)
    #[arg(long)]
    pub(crate) space: bool,
    #[command(flatten)]
    pub(crate) limit: LimitArgs,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct VmCreateArgs {
    /// The machine's name
    pub(crate) name: String,
    /// Make its first disk from this image of the manager's host: raw or qcow2
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with_all = ["template", "snapshot"])]
    pub(crate) image: Option<PathBuf>,
    /// Make it of this template
    #[arg(long, conflicts_with = "snapshot")]
    pub(crate) template: Option<String>,
    /// Make it of this snapshot's disks
    #[arg(long, value_name = "VM@SNAPSHOT")]
    pub(crate) snapshot: Option<String>,
    /// A disk more: a size (20G), or size=20G,image=FILE,name=NAME,array=NAME,read-only; may be repeated. A comma in a value
    /// is written twice
    #[arg(long = "disk", value_name = "SPEC")]
    pub(crate) disks: Vec<DiskText>,
    /// A network interface: user, none, bridge=NAME[,vlan=ID] or isolated=NAME, with mac=ADDRESS and down if wanted; may be
    /// repeated [default: user]
    #[arg(long = "nic", value_name = "SPEC")]
    pub(crate) nics: Vec<NicText>,
    /// Virtual processors [default: 1]
    #[arg(long, value_name = "N")]
    pub(crate) cpus: Option<u32>,
    /// RAM [default: 512M]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) memory: Option<Bytes>,
    /// What starts first [default: bios]
    #[arg(long, value_enum)]
    pub(crate) firmware: Option<FirmwareName>,
    /// For people
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub(crate) description: String,
    /// Cloud-init's user-data, from this file
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) user_data: Option<PathBuf>,
    /// Cloud-init's meta-data, from this file [default: made of the machine's name]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) meta_data: Option<PathBuf>,
    /// Cloud-init's network-config, from this file
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) network_config: Option<PathBuf>,
    /// Start this kernel of the manager's host instead of what is on the disks
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) kernel: Option<PathBuf>,
    /// The kernel's initial RAM disk
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, requires = "kernel")]
    pub(crate) initrd: Option<PathBuf>,
    /// The kernel's command line
    #[arg(long, value_name = "TEXT", requires = "kernel", default_value = "")]
    pub(crate) append: String,
    /// Start it when it is made
    #[arg(long)]
    pub(crate) start: bool,
    #[command(flatten)]
    pub(crate) wait: WaitArgs,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum FirmwareName {
    /// SeaBIOS
    Bios,
    /// OVMF, with a variable store of the machine's own
    Uefi,
}
