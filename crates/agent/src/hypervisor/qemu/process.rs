//! Processes that outlive the agent: started in a session of their own, found again by their command line, watched and
//! killed through a descriptor that cannot mean another process.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, Signal, pidfd_getfd, pidfd_open, pidfd_send_signal};

/// A process that may have ended already.
#[derive(Debug)]
pub(super) struct Process {
    pid: u32,
    handle: OwnedFd,
}

/// Detaches a command from this process: nothing that ends the agent's session ends it.
pub(super) fn detach(command: &mut Command) {
    // SAFETY: the closure runs between fork and exec and makes one system call; it neither allocates nor locks.
    unsafe {
        command.pre_exec(|| {
            rustix::process::setsid()?;
            Ok(())
        })
    };
}

impl Process {
    /// Starts a command detached; what it says goes to the end of `log`. It is reaped when it ends before the agent.
    pub(super) fn spawn(command: Command, log: &Path) -> io::Result<Process> {
        Process::spawn_with(command, log, Stdio::null()).map(|(process, _)| process)
    }

    /// The same for one that can be told something.
    pub(super) fn spawn_told(command: Command, log: &Path) -> io::Result<(Process, ChildStdin)> {
        let (process, input) = Process::spawn_with(command, log, Stdio::piped())?;
        Ok((process, input.ok_or(io::ErrorKind::BrokenPipe)?))
    }

    fn spawn_with(mut command: Command, log: &Path, input: Stdio) -> io::Result<(Process, Option<ChildStdin>)> {
        let out = File::options().create(true).append(true).open(log)?;
        command.stdin(input).stdout(out.try_clone()?).stderr(out);
        detach(&mut command);
        let mut child = command.spawn()?;
        let input = child.stdin.take();
        let process = match Process::open(child.id()) {
            Ok(process) => process,
            Err(e) => return Err(child.kill().err().unwrap_or(e)),
        };
        let reap = move || {
            if let Err(e) = child.wait() {
                tracing::warn!("wait for process {}: {e}", child.id());
            }
        };
        match std::thread::Builder::new().name("reaper".into()).stack_size(64 << 10).spawn(reap) {
            Ok(_) => Ok((process, input)),
            Err(e) => {
                process.kill();
                Err(e)
            }
        }
    }

    fn open(pid: u32) -> io::Result<Process> {
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(Process { pid, handle: pidfd_open(raw, PidfdFlags::empty())? })
    }

    /// Another handle of the same process.
    pub(super) fn try_clone(&self) -> io::Result<Process> {
        Ok(Process { pid: self.pid, handle: self.handle.try_clone()? })
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// A file of the process's own, shared with it.
    pub(super) fn take_file(&self, number: i32) -> io::Result<OwnedFd> {
        Ok(pidfd_getfd(&self.handle, number, PidfdGetfdFlags::empty())?)
    }

    /// Moves a piece of its memory into huge pages.
    pub(super) fn gather_pages(&self, start: u64, length: u64) -> rustix::io::Result<()> {
        let piece = libc::iovec { iov_base: start as *mut libc::c_void, iov_len: length as usize };
        let handle = self.handle.as_raw_fd();
        // SAFETY: the address is the other process's and never used here, and what is advised changes no byte of its memory.
        let done =
            unsafe { libc::syscall(libc::SYS_process_madvise, handle, &raw const piece, 1, libc::MADV_COLLAPSE, 0) };
        if done < 0 {
            Err(rustix::io::Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(rustix::io::Errno::IO))
        } else {
            Ok(())
        }
    }

    /// Waits for its end; says whether it has ended.
    pub(super) fn wait(&self, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let timeout = Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(left.subsec_nanos()),
            };
            let mut fds = [PollFd::new(&self.handle, PollFlags::IN)];
            match poll(&mut fds, Some(&timeout)) {
                Ok(n) => return n > 0,
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => {
                    tracing::warn!("watch process {}: {e}", self.pid);
                    return false;
                }
            }
        }
    }

    pub(super) fn has_ended(&self) -> bool {
        self.wait(Duration::ZERO)
    }

    /// Ends it at once: from now on it runs no more, and what is left is the kernel's to clear away.
    pub(super) fn end(&self) -> io::Result<()> {
        match pidfd_send_signal(&self.handle, Signal::KILL) {
            Err(rustix::io::Errno::SRCH) => Ok(()),
            sent => Ok(sent?),
        }
    }

    /// Ends it, and waits until it is gone.
    pub(super) fn kill(&self) -> bool {
        if let Err(e) = self.end() {
            tracing::warn!("kill process {}: {e}", self.pid);
        }
        self.wait(KILL)
    }
}

/// Even a process in the middle of I/O is gone by then, unless a disk of the host hangs.
const KILL: Duration = Duration::from_secs(30);

/// The running processes that have a given option, by the value of that option.
pub(super) fn with_option(option: &str) -> io::Result<HashMap<PathBuf, Process>> {
    let mut found = HashMap::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let Some(value) = option_of(pid, option) else { continue };
        // Opened first and read again: a number that has come to mean another process is found out.
        let Ok(process) = Process::open(pid) else { continue };
        if option_of(pid, option).as_ref() == Some(&value) && !process.has_ended() {
            found.insert(PathBuf::from(value), process);
        }
    }
    Ok(found)
}

fn option_of(pid: u32, option: &str) -> Option<OsString> {
    // Anybody can start a process with these words; only our own are meant.
    if fs::metadata(format!("/proc/{pid}")).ok()?.uid() != rustix::process::geteuid().as_raw() {
        return None;
    }
    // Processes end while one looks at them.
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let mut words = line.split(|byte| *byte == 0).skip_while(|word| *word != option.as_bytes());
    words.next()?;
    words.next().map(|word| OsString::from_vec(word.to_vec()))
}

/// Enough for four lines.
const LAST_WORDS: u64 = 2000;

/// The last lines of a log, for messages.
pub(super) fn last_words(log: &Path) -> String {
    let text = tail(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    if lines.is_empty() { "it left no message".into() } else { lines[lines.len().saturating_sub(4)..].join(" | ") }
}

fn tail(log: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(log)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LAST_WORDS)))?;
    let mut text = Vec::new();
    file.take(LAST_WORDS).read_to_end(&mut text)?;
    Ok(text)
}

/// A command in a scope of its own where systemd runs, so that stopping the agent's unit does not stop the machine.
pub(super) fn in_scope(unit: &str, program: &OsStr) -> Command {
    if Path::new("/run/systemd/system").is_dir() {
        scoped(unit, program, rustix::process::geteuid().is_root())
    } else {
        Command::new(program)
    }
}

fn scoped(unit: &str, program: &OsStr, system: bool) -> Command {
    let mut command = Command::new("systemd-run");
    if !system {
        command.arg("--user");
    }
    command.args(["--scope", "--quiet", "--collect", "--unit", unit, "--"]).arg(program);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What systemd-run(1) calls them; the program takes the place of `systemd-run` itself, with the same process id.
    #[test]
    fn a_scope_belongs_to_the_system_or_to_its_user() {
        let line = |system| {
            let command = scoped("keyframe-vm-1", OsStr::new("/opt/qemu"), system);
            let words = std::iter::once(command.get_program()).chain(command.get_args());
            words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(line(true), "systemd-run --scope --quiet --collect --unit keyframe-vm-1 -- /opt/qemu");
        assert_eq!(line(false), "systemd-run --user --scope --quiet --collect --unit keyframe-vm-1 -- /opt/qemu");
    }
}
