//! Child processes that do not outlive the lab: ended when dropped, and by the kernel should the lab die first.
//!
//! Ended by process id only. Standard error goes to a file, so that an early death can be explained.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};

/// What a process is sent when it is to end.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// It has nothing to put in order.
    Kill,
    /// It is asked, and killed only when it does not listen.
    Ask,
}

/// A running child process.
pub struct Process {
    name: String,
    child: Child,
    ending: Ending,
    log: PathBuf,
}

/// How long a process that was asked to end may take.
const FAREWELL: Duration = Duration::from_secs(20);

impl Process {
    /// Starts `command`; its standard error goes to `log`.
    pub fn spawn(name: &str, command: &mut Command, ending: Ending, log: &Path) -> Result<Process> {
        let file = File::create(log).with_context(|| format!("create {}", log.display()))?;
        let signal = match ending {
            Ending::Kill => Signal::KILL,
            Ending::Ask => Signal::TERM,
        };
        command.stdin(Stdio::null()).stderr(file);
        // SAFETY: the closure runs between fork and exec and makes one system call; it neither allocates nor locks.
        unsafe { command.pre_exec(move || Ok(set_parent_process_death_signal(Some(signal))?)) };
        let child = command.spawn().with_context(|| format!("start {name} ({})", command.get_program().display()))?;
        Ok(Process { name: name.to_owned(), child, ending, log: log.to_owned() })
    }

    /// The process's standard output, once, if it was asked to be piped.
    pub fn take_output(&mut self) -> Option<impl Read + Send + use<>> {
        self.child.stdout.take()
    }

    /// Fails with what the process wrote last, unless it still runs.
    pub fn check_running(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{} ended ({status}): {}", self.name, self.last_words()),
        }
    }

    /// Waits until the process has ended by itself.
    pub fn wait(&mut self, patience: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!("{} still runs after {patience:?}", self.name);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends the process at once, without a chance to put anything in order.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Asks the process to end and waits for it; an exit code other than zero is an error.
    pub fn ask_to_end(&mut self) -> Result<()> {
        kill_process(self.pid(), Signal::TERM)?;
        let status = self.wait(FAREWELL)?;
        if !status.success() {
            bail!("{} ended badly ({status}): {}", self.name, self.last_words());
        }
        Ok(())
    }

    /// The end of what the process wrote to standard error.
    pub fn last_words(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_else(|e| format!("(no log: {e})"));
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(5)..].join(" | ")
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        let asked = self.ending == Ending::Ask && kill_process(self.pid(), Signal::TERM).is_ok();
        if !asked || self.wait(FAREWELL).is_err() {
            // Both fail only when the process is gone already, which is what is wanted.
            self.kill().ok();
        }
    }
}

/// Runs a tool to its end and returns its standard output; any other end than exit code 0 is an error.
pub fn run_tool(command: &mut Command) -> Result<String> {
    let line = format!("{command:?}");
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("start {line}"))?;
    if !output.status.success() {
        bail!("{line} failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
