//! Processes of ours in the background: one of a kind for each data directory, in sessions of their own.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use keyframe_agent::pid_file::holder;
use rustix::net::sockopt::socket_peercred;
use rustix::process::{Pid, Signal};

/// How long one may take until it is ready; a large journal is replayed in that time.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between looks.
const LOOK: Duration = Duration::from_millis(20);
/// Set for a process that is to leave its starter's session.
const DETACH: &str = "KEYFRAME_DETACH";
/// Set for a process that is to end with the one that started it: its process id.
const PARENT: &str = "KEYFRAME_SUPERVISOR";

/// Asks the holder of a process id file to end, and waits until it has. `false` if there is none.
pub(crate) fn end(path: &Path) -> Result<bool> {
    let Some(pid) = holder(path) else { return Ok(false) };
    rustix::process::kill_process(pid, Signal::TERM)
        .with_context(|| format!("cannot end process {}", pid.as_raw_nonzero()))?;
    let until = Instant::now() + PATIENCE;
    while holder(path) == Some(pid) {
        if Instant::now() > until {
            bail!("process {} was asked to end and has not yet", pid.as_raw_nonzero());
        }
        std::thread::sleep(LOOK);
    }
    Ok(true)
}

/// Starts `keyframe NOUN --foreground` in the background; returns when it is ready. `ready` is told who is to be, for one that
/// is about to end may still answer.
pub(crate) fn start(noun: &str, data: &Path, log: &Path, ready: impl Fn(Pid) -> bool) -> Result<()> {
    let from = std::fs::metadata(log).map_or(0, |found| found.len());
    let out = OpenOptions::new().create(true).append(true).mode(0o600).open(log);
    let out = out.with_context(|| format!("cannot write {}", log.display()))?;
    let mut command = Command::new(std::env::current_exe().context("find this program")?);
    command.args([noun, "--foreground", "--data"]).arg(data).env(DETACH, "1");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(out);
    let child = command.spawn().with_context(|| format!("cannot start keyframe {noun}"))?;
    wait_until(noun, child, log, from, ready)
}

fn wait_until(noun: &str, mut child: Child, log: &Path, from: u64, ready: impl Fn(Pid) -> bool) -> Result<()> {
    let pid = Pid::from_child(&child);
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        if let Some(status) = child.try_wait().with_context(|| format!("wait for keyframe {noun}"))? {
            let words = complaint(log, from);
            bail!("keyframe {noun} ended ({status}): {words}; its log is {}", log.display());
        }
        if ready(pid) {
            return Ok(());
        }
        std::thread::sleep(LOOK);
    }
    bail!("keyframe {noun} is not ready after {PATIENCE:?}; its log is {}", log.display())
}

/// Whether it is that process which answers on a socket, or a child of it.
pub(crate) fn answers(socket: &Path, who: Pid) -> bool {
    let peer = || UnixStream::connect(socket).ok().and_then(|stream| socket_peercred(&stream).ok());
    peer().is_some_and(|peer| peer.pid == who || parent(peer.pid) == Some(who))
}

fn parent(pid: Pid) -> Option<Pid> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    // The name before may hold anything; behind it are the state and the parent (proc_pid_stat(5)).
    Pid::from_raw(stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?)
}

/// The first complaint since `from`: what follows it are its results. Without one, the last line.
fn complaint(log: &Path, from: u64) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = File::open(log)?;
        file.seek(std::io::SeekFrom::Start(from))?;
        let mut bytes = Vec::new();
        file.take(1 << 20).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    let first = text.lines().find(|line| line.starts_with("keyframe: "));
    let words = first.or(text.lines().last()).unwrap_or("it said nothing");
    words.trim_start_matches("keyframe: ").to_owned()
}

/// What a process does first that was started by [`start`] or by the supervisor.
pub(crate) fn settle() -> Result<()> {
    if std::env::var_os(DETACH).is_some() {
        rustix::process::setsid().context("leave the terminal")?;
    }
    if let Ok(parent) = std::env::var(PARENT) {
        rustix::process::set_parent_process_death_signal(Some(Signal::TERM)).context("tie to the supervisor")?;
        // It may have ended before this was set.
        let now = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().to_string());
        if now.as_ref() != Some(&parent) {
            bail!("the supervisor has ended");
        }
    }
    Ok(())
}

/// Waits until a process is gone that another supervisor of this data directory, which is no more, has left behind: it was
/// told to end by that supervisor's death.
pub(crate) async fn wait_for_orphan(pid_file: &Path) {
    let until = Instant::now() + PATIENCE;
    while holder(pid_file).is_some_and(is_orphan) && Instant::now() < until {
        tokio::time::sleep(LOOK).await;
    }
}

/// Whether a supervisor started it. One that cannot be looked into, or is gone, is none.
fn is_orphan(pid: Pid) -> bool {
    let words = std::fs::read(format!("/proc/{}/environ", pid.as_raw_nonzero())).unwrap_or_default();
    words.split(|byte| *byte == 0).any(|word| word.starts_with(PARENT.as_bytes()))
}

/// Prepares a child that ends with this process, and does not pass these wishes on to its own.
pub(crate) fn tied(command: &mut tokio::process::Command) {
    command.env_remove(DETACH).env(PARENT, std::process::id().to_string()).process_group(0);
}
