//! `keyframe agent`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{ArgAction, Args, ValueHint};

#[derive(Args, Debug)]
pub(crate) struct AgentArgs {
    /// Everything of this host is below it [env: KEYFRAME_DATA] [default: /var/lib/keyframe for root, otherwise
    /// keyframe in the user's data directory]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) data: Option<PathBuf>,
    /// Stay here and log to standard error, instead of going to the background and logging to agent.log in the data
    /// directory
    #[arg(long, action = ArgAction::SetTrue)]
    pub(crate) foreground: bool,
}

/// A process that the agent starts beside a machine.
#[derive(Args, Debug)]
pub(crate) struct HelperArgs {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) args: Vec<OsString>,
}
