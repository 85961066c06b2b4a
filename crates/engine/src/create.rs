//! Making a pool: what is reserved, what is refused, and what is left behind when it fails (nothing).

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::device::{Device, FileDevice};
use crate::disk::layout;
use crate::error::{Error, ErrorKind, Result};
use crate::pool::Pool;
use crate::recovery;
use crate::units::{BLOCK, Bytes};

/// How much of a new pool's file is reserved at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Preallocation {
    /// Nothing: a sparse file that may meet a full file system later.
    Off,
    /// Space is reserved.
    #[default]
    Falloc,
    /// Space is reserved and written, so that later writes change no file metadata.
    Full,
}

/// A new pool.
#[derive(Clone, Debug)]
pub struct CreateOptions {
    /// Its size; 0 takes all of a block device.
    pub size: Bytes,
    /// What to reserve.
    pub preallocation: Preallocation,
}

/// Seconds since the Unix epoch.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

pub(crate) fn check_pool_size(what: &str, blocks: u64) -> Result<()> {
    let refuse = |why: String| Err(Error::new(ErrorKind::Invalid, format!("size of pool {what}: {why}")));
    if blocks < layout::MIN_POOL_BLOCKS {
        return refuse(format!(
            "{} is less than the smallest pool of {}",
            Bytes(blocks * BLOCK),
            Bytes(layout::MIN_POOL_BLOCKS * BLOCK)
        ));
    }
    if blocks > layout::MAX_POOL_BLOCKS {
        return refuse(format!(
            "{} is more than the largest pool of {}",
            Bytes(blocks * BLOCK),
            Bytes(layout::MAX_POOL_BLOCKS * BLOCK)
        ));
    }
    Ok(())
}

impl Pool {
    /// Makes an empty pool in a new file or on a block device. A file that could not be completed is removed.
    pub fn create(path: &Path, options: &CreateOptions) -> Result<()> {
        let is_device = std::fs::metadata(path).is_ok_and(|m| !m.is_file());
        if !is_device {
            check_pool_size(&path.display().to_string(), options.size.0 / BLOCK)?;
        }
        let device = FileDevice::create(path)?;
        let made = Self::fill_new(&device, path, options, is_device);
        if made.is_err()
            && !is_device
            && let Err(e) = std::fs::remove_file(path)
        {
            return Err(Error::io(format!("cannot remove the incomplete pool {}", path.display()), e));
        }
        made
    }

    fn fill_new(device: &FileDevice, path: &Path, options: &CreateOptions, is_device: bool) -> Result<()> {
        let fail = |e| Error::io(format!("cannot reserve {} for pool {}", options.size, path.display()), e);
        let mut blocks = options.size.0 / BLOCK;
        if is_device {
            // Only what certainly is no pool is overwritten: not a damaged one, nor a newer one.
            match recovery::read_superblock(device) {
                Err(e) if e.kind() == ErrorKind::NotAPool => {}
                found => {
                    let what = found.map_or_else(|e| e.to_string(), |_| "it holds a pool already".into());
                    let why = format!("cannot make a pool on {}: {what}; wipe it first", path.display());
                    return Err(Error::new(ErrorKind::Exists, why));
                }
            }
            let available = device.len().map_err(fail)? / BLOCK;
            blocks = if blocks == 0 { available } else { blocks };
            if blocks > available {
                return Err(Error::new(
                    ErrorKind::Invalid,
                    format!("{} is smaller than {}", path.display(), options.size),
                ));
            }
            check_pool_size(&path.display().to_string(), blocks)?;
        } else {
            device.extend(blocks * BLOCK).map_err(fail)?;
            if options.preallocation != Preallocation::Off {
                device.preallocate(blocks * BLOCK, options.preallocation == Preallocation::Full).map_err(fail)?;
            }
        }
        recovery::format(device, blocks, now())?;
        // The new name must survive a crash too.
        if let Some(parent) = path.parent().filter(|_| !is_device) {
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            std::fs::File::open(parent)
                .and_then(|dir| dir.sync_all())
                .map_err(|e| Error::io(format!("cannot sync directory {}", parent.display()), e))?;
        }
        Ok(())
    }

    /// Makes an empty pool on any device.
    pub fn format(device: &dyn Device, blocks: u64) -> Result<()> {
        check_pool_size(&device.name(), blocks)?;
        recovery::format(device, blocks, now())
    }
}
