//! The commands on the installation: jobs, hosts, tokens, events, search, the console, and starting and ending it all.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueHint};

use super::remote::{LimitArgs, RemoteArgs};
use crate::span::{Span, parse_span};

#[derive(Args, Clone, Debug)]
pub(crate) struct JobArgs {
    #[command(flatten)]
    pub(crate) remote: RemoteArgs,
    #[command(subcommand)]
    pub(crate) command: JobCommand,
}

#[derive(Subcommand, Clone, Debug)]
pub(crate) enum JobCommand {
    /// List jobs, newest first
    List {
        /// Only those that have not ended
        #[arg(long)]
        active: bool,
        /// Only those about this machine
        #[arg(long)]
        vm: Option<String>,
        /// Only those in this state
        #[arg(long, value_parser = ["queued", "running", "undoing", "succeeded", "failed", "cancelled"])]
        state: Option<String>,
        /// Only those of this kind, as snapshot-create or vm-start
        #[arg(long)]
        kind: Option<String>,
        #[command(flatten)]
        limit: LimitArgs,
    },
    /// Show one job
    Show {
        /// The job
        job: String,
    },
    /// Wait until a job has ended
    Wait {
        /// The job
        job: String,
    },
    /// Wish a job undone
    Cancel {
        /// The job
        job: String,
    },
}

#[derive(Args, Clone, Debug)]
pub(crate) struct HostArgs {
    #[command(flatten)]
    pub(crate) remote: RemoteArgs,
    #[command(subcommand)]
    pub(crate) command: HostCommand,
}

#[derive(Subcommand, Clone, Debug)]
pub(crate) enum HostCommand {
    /// List hosts
    List,
    /// Show one host: what runs guests there, and what stores their disks
    Show {
        /// The host
        host: String,
    },
}

#[derive(Args, Clone, Debug)]
pub(crate) struct TokenArgs {
    #[command(flatten)]
    pub(crate) remote: RemoteArgs,
    #[command(subcommand)]
    pub(crate) command: TokenCommand,
}

#[derive(Subcommand, Clone, Debug)]
pub(crate) enum TokenCommand {
    /// Make a token and print it; it cannot be shown again
    Create {
        /// Says what it is for
        name: String,
        /// How long it is good for, as 30d [default: for ever]
        #[arg(long, value_name = "TIME", value_parser = parse_span)]
        valid_for: Option<Span>,
    },
    /// List tokens
    List,
    /// Delete a token; who holds it can do nothing with it any more
    Delete {
        /// Its name
        name: String,
    },
}

#[derive(Args, Clone, Debug)]
pub(crate) struct ConsoleArgs {
    /// The machine
    pub(crate) vm: String,
    /// Take the console over from the session that has it, which ends
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) remote: RemoteArgs,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct EventsArgs {
    /// Begin after the event of this number instead of now
    #[arg(long, value_name = "N")]
    pub(crate) after: Option<i64>,
    /// Only about things of this kind: vm, snapshot, template, job, host or token
    #[arg(long)]
    pub(crate) kind: Option<String>,
    /// Only about this machine
    #[arg(long)]
    pub(crate) vm: Option<String>,
    #[command(flatten)]
    pub(crate) remote: RemoteArgs,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct SearchArgs {
    /// The word
    pub(crate) word: String,
    #[command(flatten)]
    pub(crate) remote: RemoteArgs,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct UpArgs {
    /// Where everything is kept [env: KEYFRAME_DATA] [default: /var/lib/keyframe, for others than root
    /// ~/.local/share/keyframe]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) data: Option<PathBuf>,
    /// Stay here and write the logs to the terminal, instead of going into the background
    #[arg(long)]
    pub(crate) foreground: bool,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct DownArgs {
    /// Where everything is kept [env: KEYFRAME_DATA]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) data: Option<PathBuf>,
    /// Stop the machines too; otherwise they go on running
    #[arg(long)]
    pub(crate) vms: bool,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct ManagerArgs {
    /// Where everything is kept [env: KEYFRAME_DATA]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) data: Option<PathBuf>,
    /// Stay here and write the log to the terminal, instead of going into the background
    #[arg(long)]
    pub(crate) foreground: bool,
}
