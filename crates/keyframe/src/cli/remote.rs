//! What commands on machines have in common: where the manager is, and whether to wait.

use std::path::PathBuf;

use clap::{ArgAction, Args, ValueHint};

/// How the manager is reached.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Common options")]
pub(crate) struct RemoteArgs {
    /// The manager: a socket, or http://ADDRESS:PORT with a token in KEYFRAME_TOKEN [env: KEYFRAME_SERVER] [default: the
    /// socket that `keyframe up` makes]
    #[arg(long, global = true, value_name = "URL|SOCKET", value_hint = ValueHint::FilePath)]
    pub(crate) server: Option<String>,
    /// The data directory of `keyframe up`, whose manager is asked [env: KEYFRAME_DATA]
    #[arg(long, global = true, value_name = "DIR", value_hint = ValueHint::DirPath, conflicts_with = "server")]
    pub(crate) data: Option<PathBuf>,
}

/// Whether to wait for the job.
#[derive(Args, Clone, Copy, Debug, Default)]
pub(crate) struct WaitArgs {
    /// Wait until it is done (the default)
    #[arg(long, action = ArgAction::SetTrue, overrides_with = "no_wait")]
    pub(crate) wait: bool,
    /// Order it, and print the job instead of waiting for it
    #[arg(long, action = ArgAction::SetTrue)]
    pub(crate) no_wait: bool,
}

/// Which part of a long list.
#[derive(Args, Clone, Copy, Debug, Default)]
pub(crate) struct LimitArgs {
    /// At most so many
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<usize>,
}
