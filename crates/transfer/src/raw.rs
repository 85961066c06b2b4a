//! Raw images: their size, their holes, and copying one into a volume without storing zeroes.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, bail};
use keyframe_engine::Volume;
use keyframe_engine::units::BLOCK;
use rustix::fs::SeekFrom as Sparse;
use rustix::io::Errno;

use super::CHUNK;
use super::zero::each_run;
use crate::Progress;

/// Bytes in the image; block devices have no length but an end.
pub(super) fn size(mut file: &File) -> Result<u64> {
    file.seek(SeekFrom::End(0)).context("cannot be sought in: import needs a file or a block device")
}

/// The first stretch of data at or after `from`. File systems that know no holes say that all is data.
fn next_data(file: &File, from: u64, size: u64) -> Result<Option<Range<u64>>> {
    if from >= size {
        return Ok(None);
    }
    let start = match rustix::fs::seek(file, Sparse::Data(from)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some(from..size)),
        Err(error) => return Err(error).context("find data"),
    };
    let end = match rustix::fs::seek(file, Sparse::Hole(start)) {
        Ok(end) => end.min(size),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => size,
        Err(error) => return Err(error).context("find holes"),
    };
    Ok((start < end).then_some(start..end))
}

/// Copies the image into a volume that is still empty. Returns the bytes stored.
pub(super) fn copy_in(file: &File, size: u64, volume: &Volume, progress: &mut Progress<'_>) -> Result<u64> {
    let mut buffer = vec![0; CHUNK as usize];
    let mut stored = 0;
    let mut at = 0;
    while let Some(data) = next_data(file, at, size)? {
        // A block that lies in a hole by part is data.
        let mut offset = data.start - data.start % BLOCK;
        while offset < data.end {
            let len = (data.end - offset).min(CHUNK) as usize;
            read_exact(file, &mut buffer[..len], offset)?;
            let padded = len.next_multiple_of(BLOCK as usize);
            buffer[len..padded].fill(0);
            each_run(&buffer[..padded], BLOCK as usize, |run| {
                stored += run.len() as u64;
                volume.write_at(&buffer[run.clone()], offset + run.start as u64)
            })?;
            offset += padded as u64;
            progress(offset.min(size), size)?;
        }
        at = offset;
    }
    progress(size, size)?;
    Ok(stored)
}

fn read_exact(file: &File, buffer: &mut [u8], offset: u64) -> Result<()> {
    match file.read_exact_at(buffer, offset) {
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            bail!("the file became shorter while it was copied")
        }
        result => result.with_context(|| format!("read {} bytes at {offset}", buffer.len())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_found_between_holes() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(&[1], 32 << 20).unwrap();
        let found = next_data(&file, 0, 64 << 20).unwrap().unwrap();
        assert!(found.contains(&(32 << 20)), "{found:?}");
        assert_eq!(next_data(&file, found.end, 64 << 20).unwrap(), None);
        assert_eq!(next_data(&file, 64 << 20, 64 << 20).unwrap(), None);
    }
}
