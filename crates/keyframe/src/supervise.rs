//! `keyframe up --foreground`: keeps an agent and a manager running until it is told to stop. One that ends is started again,
//! ever more slowly. It ends the manager first, so that no job meets an agent that is gone.

use std::path::Path;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use keyframe_agent::paths::Paths;
use keyframe_agent::say::say;
use rustix::process::{Pid, Signal};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::daemon;

/// One that ends so soon at the very beginning will not do better later.
const STILLBORN: Duration = Duration::from_secs(5);
/// The first pause before a restart, and the longest.
const PAUSES: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(30)];
/// Who ran so long starts over with the first pause.
const HEALTHY: Duration = Duration::from_secs(60);
/// How long one may take to end when asked.
const GRACE: Duration = Duration::from_secs(60);

/// Runs until SIGTERM, SIGINT, or a child that cannot even be started.
pub(crate) fn run(data: &Path) -> Result<()> {
    // One thread: the kernel ties children to the thread that made them.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a runtime")?;
    runtime.block_on(async {
        let (agent_stop, manager_stop) = (CancellationToken::new(), CancellationToken::new());
        let agent = keep("agent", data, agent_stop.clone());
        let manager = keep("manager", data, manager_stop.clone());
        let (mut term, mut interrupt) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt()).context("wait for signals")?);
        tokio::pin!(agent, manager);
        let first = tokio::select! {
            _ = term.recv() => Ok(()),
            _ = interrupt.recv() => Ok(()),
            ended = &mut agent => { manager_stop.cancel(); manager.await?; return ended; }
            ended = &mut manager => ended,
        };
        if first.is_ok() {
            manager_stop.cancel();
            (&mut manager).await?;
        }
        agent_stop.cancel();
        agent.await.and(first)
    })
}

/// Keeps one process running until `stop`.
async fn keep(noun: &str, data: &Path, stop: CancellationToken) -> Result<()> {
    let mut pause = PAUSES[0];
    let mut ever = false;
    daemon::wait_for_orphan(&Paths::of(data).run.join(format!("{noun}.pid"))).await;
    loop {
        let began = Instant::now();
        let mut child = spawn(noun, data)?;
        let status = tokio::select! {
            status = child.wait() => status.with_context(|| format!("wait for the {noun}"))?,
            () = stop.cancelled() => return end(noun, child).await,
        };
        let ran = began.elapsed();
        // One that was killed could have been.
        if !ever && ran < STILLBORN && status.code().is_some() {
            bail!("the {noun} cannot be started ({status}); the reason is above");
        }
        ever = true;
        pause = if ran >= HEALTHY { PAUSES[0] } else { (pause * 2).min(PAUSES[1]) };
        say(format_args!("keyframe: the {noun} ended ({status}) and is started again in {pause:?}"));
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => return Ok(()),
        }
    }
}

fn spawn(noun: &str, data: &Path) -> Result<Child> {
    let mut command = Command::new(std::env::current_exe().context("find this program")?);
    command.args([noun, "--foreground", "--data"]).arg(data).stdin(std::process::Stdio::null());
    daemon::tied(&mut command);
    command.spawn().with_context(|| format!("cannot start the {noun}"))
}

async fn end(noun: &str, mut child: Child) -> Result<()> {
    if let Some(pid) = child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?)) {
        // It may have ended by itself in this moment.
        rustix::process::kill_process(pid, Signal::TERM).unwrap_or(());
    }
    let status: ExitStatus = match tokio::time::timeout(GRACE, child.wait()).await {
        Ok(status) => status.with_context(|| format!("wait for the {noun}"))?,
        Err(_) => {
            child.kill().await.with_context(|| format!("kill the {noun}"))?;
            bail!("the {noun} did not end within {GRACE:?} and was killed");
        }
    };
    if !status.success() {
        say(format_args!("keyframe: the {noun} did not end well ({status})"));
    }
    Ok(())
}
