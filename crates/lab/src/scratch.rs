//! The folder `.keyframe` of the checkout: everything in it may be deleted at any time.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

const WORK: &str = "lab-";

/// The checkout around the working directory, so that it may be moved after it was built.
pub fn checkout() -> Result<PathBuf> {
    let here = std::env::current_dir().context("find the working directory")?;
    here.ancestors()
        .find(|dir| dir.join("guest/build.sh").is_file())
        .map(Path::to_owned)
        .context("not inside a Keyframe checkout: no guest/build.sh here or above")
}

/// The program under test: the one beside the test that asks.
pub fn keyframe() -> Result<PathBuf> {
    if let Some(named) = std::env::var_os("KEYFRAME_UNDER_TEST") {
        return Ok(named.into());
    }
    let test = std::env::current_exe()?;
    Ok(test.parent().and_then(|deps| deps.parent()).context("where are we?")?.join("keyframe"))
}

/// The folder itself.
pub fn folder() -> Result<PathBuf> {
    let dir = checkout()?.join(".keyframe");
    fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    Ok(dir)
}

/// A folder for one run, removed when dropped. Runs that were killed could not remove theirs; this does.
pub fn work_folder() -> Result<TempDir> {
    let folder = folder()?;
    for entry in fs::read_dir(&folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix(WORK).and_then(|rest| rest.split('-').next());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            kill_those_of(&entry.path());
            match fs::remove_dir_all(entry.path()) {
                // Another run was faster.
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                done => done.with_context(|| format!("remove {name}"))?,
            }
        }
    }
    let prefix = format!("{WORK}{}-", std::process::id());
    Ok(tempfile::Builder::new().prefix(&prefix).tempdir_in(folder)?)
}

/// Kills every process that was given a path below `folder` on its command line, until there is none.
pub fn kill_those_of(folder: &Path) {
    let needle = folder.as_os_str().as_encoded_bytes();
    let speaks_of_it = |line: &[u8]| line.windows(needle.len()).any(|part| part == needle);
    let myself = std::process::id();
    let deadline = Instant::now() + Duration::from_secs(10);
    while Instant::now() < deadline {
        let mut found = false;
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let number = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok());
            let Some(pid) = number.filter(|pid| pid.unsigned_abs() != myself).and_then(Pid::from_raw) else { continue };
            // A process that ended since has no command line, and needs no killing.
            if fs::read(entry.path().join("cmdline")).is_ok_and(|line| speaks_of_it(&line)) {
                found = true;
                kill_process(pid, Signal::KILL).unwrap_or(());
            }
        }
        if !found {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
