//! The folder of one run: removed when the run ends, by whatever path.
//!
//! Dropped, it removes itself; SIGINT, SIGTERM and SIGHUP remove it first; what a killed run left, the next one removes.
//! Mounts are made in a namespace of this process alone and end with it.
//! Child processes are ended by the kernel when this process ends ([`crate::tool`]).

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use keyframe_lab::process::run_tool;

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

/// Must run before any other thread exists, so that all of them inherit the blocked signals.
fn remove_on_signal(dir: PathBuf) -> std::io::Result<()> {
    const SIGNALS: [i32; 3] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];
    // SAFETY: the set is initialised by sigemptyset before anything reads it; all pointers are to live locals.
    let set = unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for signal in SIGNALS {
            libc::sigaddset(&mut set, signal);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
        set
    };
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        let mut signal = 0;
        // SAFETY: the set is initialised and the result goes to a live local.
        if unsafe { libc::sigwait(&set, &mut signal) } == 0 {
            // Nothing is mounted there most of the time.
            rustix::mount::unmount(dir.join(MOUNT), rustix::mount::UnmountFlags::DETACH).ok();
            // Files that other threads still create meanwhile are left to the next run.
            fs::remove_dir_all(&dir).ok();
            // SAFETY: ends the process at once, as the signal would have; no destructor is owed anything any more.
            unsafe { libc::_exit(128 + signal) };
        }
    })?;
    Ok(())
}
