//! Sparse files compared and copied by blocks; the fake's stupid idea of storage.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use rustix::io::Errno;

/// What is compared and counted.
pub(super) const BLOCK: u64 = 4096;

/// The stretches of a file that hold data, in whole blocks.
pub(super) fn data(file: &File) -> io::Result<Vec<Range<u64>>> {
    let size = file.metadata()?.len();
    let mut found: Vec<Range<u64>> = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        at = seek(file, SeekFrom::Hole(start))?.next_multiple_of(BLOCK).min(size);
        found.push(start - start % BLOCK..at);
    }
    Ok(found)
}

/// Calls with the offset and content of each block that is not all zero.
pub(super) fn each_block(path: &Path, mut visit: impl FnMut(u64, &[u8])) -> io::Result<()> {
    let file = File::open(path)?;
    let mut block = [0; BLOCK as usize];
    for range in data(&file)? {
        for offset in range.step_by(BLOCK as usize) {
            file.read_exact_at(&mut block, offset)?;
            if block.iter().any(|byte| *byte != 0) {
                visit(offset, &block);
            }
        }
    }
    Ok(())
}

/// A new file with the content and size of another, holes kept.
pub(super) fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let (from, to) = (File::open(from)?, File::create(to)?);
    to.set_len(from.metadata()?.len())?;
    let mut buffer = vec![0; 1 << 20];
    for range in data(&from)? {
        let mut at = range.start;
        while at < range.end {
            let piece = &mut buffer[..(range.end - at).min(1 << 20) as usize];
            from.read_exact_at(piece, at)?;
            to.write_all_at(piece, at)?;
            at += piece.len() as u64;
        }
    }
    Ok(())
}

/// Makes a range read as zeroes.
pub(super) fn clear(file: &File, offset: u64, len: u64) -> io::Result<()> {
    Ok(fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len)?)
}
