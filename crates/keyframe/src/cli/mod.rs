//! The command line: nouns and verbs, in the manner of `zfs` and `qemu-img`. This folder only says what can be typed; what
//! it means is in [`crate::command`].

mod agent;
mod clone;
mod device;
mod pool;
mod remote;
mod snapshot;
mod spec;
mod system;
mod transfer;
mod tree;
mod vm;
mod volume;
mod volume_snapshot;

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand, ValueHint};

pub(crate) use agent::{AgentArgs, HelperArgs};
pub(crate) use clone::{TemplateArgs, TemplateCommand, VmCloneArgs};
pub(crate) use device::{DiskArgs, DiskCommand, NicArgs, NicCommand};
pub(crate) use pool::{IoName, PoolArgs, PoolCommand, PreallocationName, ServeArgs};
pub(crate) use remote::{RemoteArgs, WaitArgs};
pub(crate) use snapshot::{
    ApplyArgs, QuiesceName, SnapshotArgs, SnapshotCommand, SnapshotCreateArgs, SnapshotListArgs,
};
pub(crate) use spec::{Cable, DiskText, NicPolicyText, NicText};
pub(crate) use system::{
    ConsoleArgs, DownArgs, EventsArgs, HostArgs, HostCommand, JobArgs, JobCommand, ManagerArgs, SearchArgs, TokenArgs,
    TokenCommand, UpArgs,
};
pub(crate) use transfer::{ExportArgs, ImageFormat, ImportFormat};
pub(crate) use vm::{FirmwareName, VmArgs, VmCommand, VmCreateArgs, VmListArgs, VmsArgs};
pub(crate) use volume::{ListArgs, VolumeArgs, VolumeCommand};
pub(crate) use volume_snapshot::VolumeSnapshotCommand;

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
    /// Print the result as JSON, and a failure as JSON on standard error; a command on many targets prints a line for each
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
    /// Start everything on this machine: an agent and a manager, in the background
    Up(UpArgs),
    /// End what `keyframe up` started; machines go on running unless --vms
    Down(DownArgs),
    /// Make, list, start, stop, change and delete machines
    Vm(VmArgs),
    /// Snapshots of machines: take, list, draw, apply, delete
    Snapshot(SnapshotArgs),
    /// Make machines of a snapshot, a template or a running machine, thinly; with --memory they go on where it was
    Clone(VmCloneArgs),
    /// Templates: frozen machines, to be cloned only
    Template(TemplateArgs),
    /// Disks of machines
    Disk(DiskArgs),
    /// Network interfaces of machines
    Nic(NicArgs),
    /// Join a machine's console; Ctrl-] ends that
    Console(ConsoleArgs),
    /// Long work: list, watch, cancel
    Job(JobArgs),
    /// Hosts and what they can do
    Host(HostArgs),
    /// Tokens, with which others may ask
    Token(TokenArgs),
    /// Find machines, snapshots and templates by a word
    Search(SearchArgs),
    /// Watch changes as they happen
    Events(EventsArgs),
    /// Make, inspect, grow, verify and serve pools, without virtual machines
    Pool(PoolArgs),
    /// Volumes of a pool, their snapshots and clones, without virtual machines
    ///
    /// A TARGET is a volume (web) or a snapshot (web@before-upgrade).
    Volume(VolumeArgs),
    /// Run the manager: jobs, what is known, and the REST interface
    Manager(ManagerArgs),
    /// Run the agent of this host: its machines, volumes and exports
    Agent(AgentArgs),
    /// What the agent starts beside a machine
    #[command(hide = true)]
    Helper(HelperArgs),
    /// What a shell asks for
    #[command(name = "__complete", hide = true)]
    Complete {
        /// The words so far, the last of which is incomplete
        #[arg(allow_hyphen_values = true, trailing_var_arg = true)]
        words: Vec<String>,
    },
    /// Print a completion script for a shell; in bash, zsh and fish names of machines, snapshots and the like are completed too
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
