//! Processes of ours in the background: one of a kind for each data directory, in sessions of their own.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal};

/// How long one may take until it is ready; a large journal is replayed in that time.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between looks.
const LOOK: Duration = Duration::from_millis(20);
/// Set for a process that is to leave its starter's session.
const DETACH: &str = "KEYFRAME_DETACH";
/// Set for a process that is to end with the one that started it: its process id.
const PARENT: &str = "KEYFRAME_SUPERVISOR";

/// Holds a process id file as long as the result lives.
pub(crate) fn lock(path: &Path, what: &str) -> Result<File> {
    let file = OpenOptions::new().create(true).truncate(false).write(true).read(true).mode(0o600).open(path);
    let mut file = file.with_context(|| format!("cannot write {}", path.display()))?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        bail!("another {what} uses this data directory ({} is locked); stop it first", path.display());
    }
    let written = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()));
    written.with_context(|| format!("cannot write {}", path.display()))?;
    Ok(file)
}

/// The process that holds a process id file; a number that a dead one left is none.
pub(crate) fn holder(path: &Path) -> Option<Pid> {
    let mut file = File::open(path).ok()?;
    if flock(&file, FlockOperation::NonBlockingLockShared).is_ok() {
        return None;
    }
    let mut text = String::new();
    file.read_to_string(&mut text).ok()?;
    Pid::from_raw(text.trim().parse().ok()?)
}

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

/// Starts `keyframe NOUN --foreground` in the background; returns when it is ready.
pub(crate) fn start(noun: &str, data: &Path, log: &Path, ready: impl Fn() -> bool) -> Result<()> {
    let from = std::fs::metadata(log).map_or(0, |found| found.len());
    let out = OpenOptions::new().create(true).append(true).mode(0o600).open(log);
    let out = out.with_context(|| format!("cannot write {}", log.display()))?;
    let mut command = Command::new(std::env::current_exe().context("find this program")?);
    command.args([noun, "--foreground", "--data"]).arg(data).env(DETACH, "1");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(out);
    let child = command.spawn().with_context(|| format!("cannot start keyframe {noun}"))?;
    wait_until(noun, child, log, from, ready)
}

fn wait_until(noun: &str, mut child: Child, log: &Path, from: u64, ready: impl Fn() -> bool) -> Result<()> {
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        if let Some(status) = child.try_wait().with_context(|| format!("wait for keyframe {noun}"))? {
            let words = last_words(log, from);
            bail!("keyframe {noun} ended ({status}): {words}; its log is {}", log.display());
        }
        if ready() {
            return Ok(());
        }
        std::thread::sleep(LOOK);
    }
    bail!("keyframe {noun} is not ready after {PATIENCE:?}; its log is {}", log.display())
}

/// The last thing that was said since `from`.
fn last_words(log: &Path, from: u64) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = File::open(log)?;
        file.seek(std::io::SeekFrom::Start(from))?;
        let mut bytes = Vec::new();
        file.take(1 << 20).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    let complaint = text.lines().rev().find(|line| line.starts_with("keyframe: "));
    let last = complaint.or(text.lines().last()).unwrap_or("it said nothing");
    last.trim_start_matches("keyframe: ").to_owned()
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

/// Prepares a child that ends with this process, and does not pass these wishes on to its own.
pub(crate) fn tied(command: &mut tokio::process::Command) {
    command.env_remove(DETACH).env(PARENT, std::process::id().to_string()).process_group(0);
}
