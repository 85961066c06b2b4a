//! The folder of one run: removed when the run ends, by whatever path.
//!
//! Dropped, it removes itself; SIGINT, SIGTERM and SIGHUP remove it first; what a killed run left, the next one removes.
//! Mounts are made in a namespace of this process alone and end with it.
//! Child processes are ended by the kernel when this process ends ([`crate::tool`]).

use std::fs;
use std::io::Read;
use std::os::fd::IntoRawFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI32, Ordering};

use anyhow::{Context, Result};
use keyframe_lab::process::run_tool;
use keyframe_lab::scratch;

use crate::tool::tool;

const PREFIX: &str = "run-";
const MOUNT: &str = "mount";

/// A folder for one run.
pub(crate) struct Place {
    dir: PathBuf,
}

impl Place {
    pub(crate) fn make(base: &Path) -> Result<Place> {
        fs::create_dir_all(base).with_context(|| format!("create {}", base.display()))?;
        let base = fs::canonicalize(base)?;
        for entry in fs::read_dir(&base)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let dead = name.strip_prefix(PREFIX).is_some_and(|pid| !Path::new("/proc").join(pid).exists());
            if dead {
                fs::remove_dir_all(entry.path()).with_context(|| format!("remove {name}"))?;
            }
        }
        let dir = base.join(format!("{PREFIX}{}", std::process::id()));
        fs::create_dir(&dir).with_context(|| format!("create {}", dir.display()))?;
        if rustix::process::geteuid().is_root() {
            private_mounts()?;
        }
        remove_on_signal(dir.clone()).context("watch for signals")?;
        Ok(Place { dir })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Where a file system may be mounted.
    pub(crate) fn mount_point(&self) -> PathBuf {
        self.dir.join(MOUNT)
    }

    /// Removes what a measurement left.
    pub(crate) fn clear(&self) -> Result<()> {
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.with_context(|| format!("remove {}", path.display()))?;
        }
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(e) = fs::remove_dir_all(&self.dir) {
            eprintln!("cannot remove {}: {e}", self.dir.display());
        }
    }
}

/// From here on nobody else sees what this process mounts.
fn private_mounts() -> Result<()> {
    // SAFETY: takes no memory; it gives the calling thread, so far the only one, a mount namespace of its own.
    if unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
        return Err(std::io::Error::last_os_error()).context("unshare mounts");
    }
    run_tool(tool("mount").args(["--make-rprivate", "/"])).map(drop)
}

/// Where the handler tells of a signal.
static TOLD: AtomicI32 = AtomicI32::new(-1);

extern "C" fn tell(signal: libc::c_int) {
    let byte = signal as u8;
    // SAFETY: one byte of a live local; write is async-signal-safe, and a pipe that is not there yet is an error without effect.
    unsafe { libc::write(TOLD.load(Ordering::Relaxed), (&raw const byte).cast(), 1) };
}

/// Handlers rather than a blocked mask: programs that are started here begin with neither.
fn remove_on_signal(dir: PathBuf) -> std::io::Result<()> {
    let (mut told, teller) = std::io::pipe()?;
    TOLD.store(teller.into_raw_fd(), Ordering::Relaxed);
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: zero is a valid sigaction; the handler makes one system call and touches nothing but an atomic.
        let set = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = tell as extern "C" fn(libc::c_int) as usize;
            action.sa_flags = libc::SA_RESTART;
            libc::sigaction(signal, &action, std::ptr::null_mut())
        };
        if set != 0 {
            return Err(std::io::Error::last_os_error());
        }
    }
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        let mut signal = [0];
        if told.read_exact(&mut signal).is_ok() {
            end_machines(&dir);
            // Nothing is mounted there most of the time.
            rustix::mount::unmount(dir.join(MOUNT), rustix::mount::UnmountFlags::DETACH).ok();
            // Files that other threads still create meanwhile are left to the next run.
            fs::remove_dir_all(&dir).ok();
            // SAFETY: ends the process at once, as the signal would have; no destructor is owed anything any more.
            unsafe { libc::_exit(128 + i32::from(signal[0])) };
        }
    })?;
    Ok(())
}

/// Machines outlive the programs that start them, so they are found by the folders they work in.
fn end_machines(dir: &Path) {
    scratch::kill_those_of(dir);
    if let Ok(folder) = scratch::folder() {
        scratch::kill_those_of(&folder.join(format!("lab-{}-", std::process::id())));
    }
}
