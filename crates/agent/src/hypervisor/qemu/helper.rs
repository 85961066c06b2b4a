//! Small processes beside a machine that outlive the agent, and what they do.
//!
//! | helper | does | ends |
//! |---|---|---|
//! | `memory-server` | gives a resumed machine its memory, page by page, once it is told that QEMU listens | when all is in, or QEMU is gone |
//! | `freezer` | freezes a guest's file systems, and thaws them | after the thaw, which comes when told, when the agent is gone, or when time is up |
//! | `hub` | passes frames between the machines of an isolated network | when its socket has been taken away |
//!
//! They are the same program as the agent, so nothing else has to be installed.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Read};
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use keyframe_agent_api::FaultKind;
use keyframe_memory::Progress;
use keyframe_memory::serve::Ready;

use super::process::Process;
use super::{QemuConfig, guest, hub, load};
use crate::say::say;

/// What a page server is told when QEMU listens. It holds its image open by then.
pub(super) const GO: &[u8] = b"go\n";
/// How often a page server says how far it is.
const REPORT: Duration = Duration::from_millis(50);

/// Runs the helper that `arguments` name; for the program behind [`QemuConfig::helper`].
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let words: Vec<OsString> = arguments.into_iter().collect();
    let words: Vec<&OsStr> = words.iter().map(OsString::as_os_str).collect();
    let done = match words[..] {
        [name, image, socket, pending, damage, how] if name == "memory-server" => {
            let place = Reports { pending: pending.as_ref(), damage: damage.as_ref() };
            memory_server(image.as_ref(), socket.as_ref(), &place, how == "recover")
        }
        [name, socket, deadline, hold] if name == "freezer" => match (millis(deadline), millis(hold)) {
            (Some(deadline), Some(hold)) => guest::freezer::run(socket.as_ref(), deadline, hold),
            _ => Err("not a time".into()),
        },
        [name, socket] if name == "hub" => hub::run(socket.as_ref()).map_err(|e| e.to_string()),
        _ => Err("no such helper".into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            say(format_args!("keyframe helper: {why}"));
            ExitCode::FAILURE
        }
    }
}

fn millis(text: &OsStr) -> Option<Duration> {
    text.to_str()?.parse().ok().map(Duration::from_millis)
}

/// The command of a helper.
pub(super) fn command(config: &QemuConfig, name: &str) -> io::Result<Command> {
    let mut words = config.helper.iter();
    let program = words.next().ok_or_else(|| io::Error::other("no helper program is configured"))?;
    let mut command = Command::new(program);
    command.args(words).arg(name);
    Ok(command)
}

/// Starts a helper on its own; what it says goes to `log`.
pub(super) fn spawn(
    config: &QemuConfig,
    name: &str,
    arguments: impl IntoIterator<Item = OsString>,
    log: &Path,
) -> io::Result<Process> {
    let mut command = command(config, name)?;
    command.args(arguments);
    Process::spawn(command, log)
}

/// Where a page server says how it goes.
struct Reports<'a> {
    pending: &'a Path,
    damage: &'a Path,
}

fn memory_server(image: &Path, socket: &Path, reports: &Reports<'_>, recover: bool) -> Result<(), String> {
    let mut said: Option<Instant> = None;
    let report = |progress: Progress| {
        if said.is_none_or(|at| at.elapsed() > REPORT) {
            said = Some(Instant::now());
            // Only a figure for people; nothing depends on it.
            if let Err(e) = fs::write(reports.pending, format!("{} {}\n", progress.done, progress.total)) {
                say(format_args!("write {}: {e}", reports.pending.display()));
            }
        }
    };
    let ready = Ready::open(image);
    // Without that word the agent is gone, and the machine with it.
    if !recover && !told() {
        return Ok(());
    }
    let served =
        ready.and_then(|ready| if recover { ready.recover(socket, report) } else { ready.run(socket, report) });
    served.map(drop).map_err(|e| {
        let why = load::chain(&e);
        // Another server would find the same.
        if matches!(load::kind(&e), FaultKind::Corrupt | FaultKind::Unsupported)
            && let Err(e) = fs::write(reports.damage, &why)
        {
            say(format_args!("write {}: {e}", reports.damage.display()));
        }
        format!("page server of {}: {why}", image.display())
    })
}

/// Waits for [`GO`]; says whether it came.
fn told() -> bool {
    let mut word = [0; GO.len()];
    io::stdin().read_exact(&mut word).is_ok() && word == GO
}
