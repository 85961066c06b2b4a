//! The folder `.keyframe` of the checkout: everything in it may be deleted at any time.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
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
