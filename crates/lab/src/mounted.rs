//! Small file systems in memory.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::process::run_tool;

/// A file system of that size over a folder, unmounted when dropped.
pub struct Mounted<'a>(&'a Path);

impl<'a> Mounted<'a> {
    /// Mounts it; `size` as in `48m`. `None` for whoever is not root, who may not.
    pub fn over(folder: &'a Path, size: &str) -> Result<Option<Mounted<'a>>> {
        if !rustix::process::geteuid().is_root() {
            println!("SKIPPED: a small file system can be mounted by root only");
            return Ok(None);
        }
        std::fs::create_dir_all(folder)?;
        let size = format!("size={size}");
        run_tool(Command::new("mount").args(["-t", "tmpfs", "-o", &size, "kf-lab"]).arg(folder))?;
        Ok(Some(Mounted(folder)))
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        if let Err(e) = run_tool(Command::new("umount").arg("--lazy").arg(self.0)) {
            eprintln!("{e:#}");
        }
    }
}
