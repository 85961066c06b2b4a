//! `keyframe agent`: this process becomes the agent, or starts one in the background and waits until it serves.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use keyframe_agent::config::Config;
use keyframe_agent::paths::Paths;
use keyframe_agent::run::{self, HeldPool, RunOptions};
use keyframe_agent::{Fault, FaultKind};

use crate::cli::AgentArgs;
use crate::daemon;
use crate::serve::Beside;

/// The data directory that is meant.
pub(crate) fn data_dir(given: Option<&Path>) -> Result<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let user =
        || set("XDG_DATA_HOME").or_else(|| Some(set("HOME")?.join(".local/share"))).map(|dir| dir.join("keyframe"));
    let usual = || if rustix::process::geteuid().is_root() { Some("/var/lib/keyframe".into()) } else { user() };
    let chosen = given.map(Path::to_owned).or_else(|| set("KEYFRAME_DATA")).or_else(usual);
    let chosen = chosen.context("no data directory: give --data DIR or set KEYFRAME_DATA")?;
    std::path::absolute(&chosen).with_context(|| format!("cannot use the path {}", chosen.display()))
}

/// Runs an agent until it is told to stop, or starts one.
pub(crate) fn run(args: &AgentArgs) -> Result<()> {
    let data = data_dir(args.data.as_deref())?;
    if !args.foreground {
        let paths = Paths::of(&data);
        paths.make()?;
        let socket = paths.agent_socket();
        return daemon::start("agent", &data, &data.join("agent.log"), |pid| daemon::answers(&socket, pid));
    }
    let config = Config::load(&data, |name| std::env::var(name).ok())?;
    run::start_log(&config.log)?;
    let me = std::env::current_exe().context("find this program")?;
    let helper = vec![me.into(), "helper".into()];
    Ok(run::run(&RunOptions { data, config, helper }, serve_storage)?)
}

/// The storage commands work while the agent holds the pools, as they do with a server.
fn serve_storage(pools: &[HeldPool]) -> keyframe_agent::Result<Vec<Beside>> {
    let started = pools.iter().map(|held| Beside::start(&held.file, held.pool.clone())).collect::<Result<_>>();
    started.map_err(|error| Fault::new(FaultKind::Internal, format!("{error:#}")))
}
