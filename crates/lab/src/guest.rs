//! The test guest's files.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::scratch;

/// Kernel, initial RAM disk and disk images of the test guest.
pub struct Guest {
    /// The kernel.
    pub kernel: PathBuf,
    /// The initial RAM disk.
    pub initrd: PathBuf,
    /// Image of the root disk (raw, ext4, last MiB for stamps).
    pub root_image: PathBuf,
    /// Image of the data disk (raw, ext4, last MiB for stamps).
    pub data_image: PathBuf,
}

impl Guest {
    /// Builds the guest unless it is there already.
    pub fn prepare() -> Result<Guest> {
        let script = scratch::checkout()?.join("guest/build.sh");
        let dir = scratch::folder()?.join("guest");
        let status = Command::new(&script).arg(&dir).stdin(Stdio::null()).status();
        let status = status.with_context(|| format!("start {}", script.display()))?;
        if !status.success() {
            bail!("guest/build.sh failed ({status})");
        }
        Ok(Guest {
            kernel: dir.join("vmlinuz"),
            initrd: dir.join("initrd.gz"),
            root_image: dir.join("root.img"),
            data_image: dir.join("data.img"),
        })
    }
}
