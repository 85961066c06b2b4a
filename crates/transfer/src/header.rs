//! What the header of a qcow2 image says, before QEMU sees the image.
//!
//! An image may name other files: one below it, one that holds its data. QEMU would read those with the rights of whoever
//! runs it, and an image comes from anywhere, so those that name any are refused. The format is QEMU's
//! `docs/interop/qcow2.rst`; the names in comments are its field names.

use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, bail};

/// First bytes of a qcow2 image.
pub(super) const MAGIC: [u8; 4] = *b"QFI\xfb";
/// The part that all versions have.
const COMMON: usize = 72;
/// With the features of version 3.
const LENGTH: usize = 104;
/// `incompatible_features`: the data is in another file.
const EXTERNAL_DATA: u64 = 1 << 2;
/// The longest name of a backing file.
const LONGEST_NAME: u32 = 1023;
/// No version that anybody will ever make is beyond it: what says so is something else.
const MOST_PLAUSIBLE: u32 = 99;
const WAY_OUT: &str = "make one image of it first: qemu-img convert -O qcow2 IMAGE WHOLE";

/// The size of the disk in an image that stands for itself.
pub(super) fn virtual_size(file: &File) -> Result<u64> {
    let mut header = [0; LENGTH];
    let mut have = 0;
    while have < LENGTH {
        match file.read_at(&mut header[have..], have as u64).context("read its header")? {
            0 => break,
            read => have += read,
        }
    }
    if have < COMMON || header[..4] != MAGIC {
        bail!("it is not in qcow2 format");
    }
    let number = |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let long = |at: usize| u64::from(number(at)) << 32 | u64::from(number(at + 4));
    let incompatible = match number(4) {
        2 => 0,
        3 if have == LENGTH => long(72),
        3 => bail!("it is no valid qcow2 image: its header is cut off"),
        other @ (1 | 4..=MOST_PLAUSIBLE) => bail!("version {other} of the qcow2 format is not known"),
        _ => bail!("it is no valid qcow2 image, though it begins like one"),
    };
    // backing_file_offset and backing_file_size, crypt_method
    let (backing, length, encryption) = (long(8), number(16), number(32));
    if backing != 0 {
        let mut name = vec![0; length.min(LONGEST_NAME) as usize];
        file.read_exact_at(&mut name, backing).context("read the name of its backing file")?;
        bail!("it is the difference to {:?}, which is not followed; {WAY_OUT}", String::from_utf8_lossy(&name));
    }
    if incompatible & EXTERNAL_DATA != 0 {
        bail!("its data is in another file, which is not followed; {WAY_OUT}");
    }
    if encryption != 0 {
        bail!("it is encrypted; {WAY_OUT}");
    }
    Ok(long(24))
}
