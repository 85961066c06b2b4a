//! Child processes: they get the signals that this process blocks, and end with it.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::process::{Signal, set_parent_process_death_signal};

/// A command to run.
pub(crate) fn tool(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    // SAFETY: the closure runs between fork and exec and only makes system calls; it neither allocates nor locks. The set is
    // initialised by sigemptyset before it is used.
    unsafe {
        command.pre_exec(|| {
            let mut set = std::mem::zeroed();
            libc::sigemptyset(&mut set);
            libc::pthread_sigmask(libc::SIG_SETMASK, &set, std::ptr::null_mut());
            Ok(set_parent_process_death_signal(Some(Signal::KILL))?)
        });
    }
    command
}
