//! The cold form of an image: a zstd frame for each chunk, and an index of the frames.
//!
//! Each frame stands alone, so that the page server can serve a single page without unpacking what lies before it. The file
//! is replaced in one step; who has the old one open goes on reading it.

use std::path::Path;

use super::draft::Draft;
use super::layout::{self, FRAME, Form, HEADER, Header};
use super::{Chunk, Front, Image};
use crate::Progress;
use crate::error::{Error, ErrorKind, Result};
use crate::stream::RamBlock;

/// Beyond it zstd gains little on pages and costs much.
const LEVEL: i32 = 3;

/// What compressing brought.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Compressed {
    /// Bytes allocated to the file before.
    pub before: u64,
    /// Bytes allocated to the file now.
    pub after: u64,
}

/// Replaces an image by its compressed form. One that is compressed already stays as it is, and so does one of which `go_on`,
/// which is told now and then how far it is, says that enough is done: that is [`Cancelled`](ErrorKind::Cancelled).
pub fn compress(path: &Path, go_on: impl FnMut(Progress) -> bool) -> Result<Compressed> {
    let image = Image::open(path)?;
    let before = image.front().allocated()?;
    if image.front().is_compressed() {
        return Ok(Compressed { before, after: before });
    }
    let draft = Draft::start(path)?;
    let (frames, end) = write_frames(&image, &draft, go_on)?;
    let blocks: Vec<(RamBlock, u64)> = image.head().blocks.into_iter().map(|block| (block, 0)).collect();
    let sums: Vec<u8> = image.blocks().iter().flat_map(|b| &b.sums).flat_map(|sum| sum.to_le_bytes()).collect();
    let header = Header { form: Form::Compressed, ..image.front().header.clone() };
    let table = layout::encode_blocks(&blocks);
    let contents = [
        &table[..],
        image.front().metadata(),
        &image.front().configuration,
        &image.front().devices().bytes,
        &sums,
        &frames,
    ];
    draft.publish(header, contents, end)?;
    let after = Front::open(path)?.allocated()?;
    Ok(Compressed { before, after })
}

/// Writes a frame for every chunk that holds something; returns the index and where the frames end.
fn write_frames(image: &Image, draft: &Draft, mut go_on: impl FnMut(Progress) -> bool) -> Result<(Vec<u8>, u64)> {
    let chunks = image.blocks().last().map_or(0, |b| b.first_chunk + b.chunks());
    let mut index = vec![0; chunks * FRAME];
    let mut end = HEADER as u64;
    let mut packed = Vec::new();
    let mut pack = zstd::bulk::Compressor::new(LEVEL).map_err(|e| Error::io("prepare compression", e))?;
    image.for_each_chunk(|at, chunk: &Chunk, progress| {
        if !go_on(progress) {
            let message = format!("compressing {} was given up", image.front().path().display());
            return Err(Error::new(ErrorKind::Cancelled, message));
        }
        chunk.pack(&mut packed);
        let frame =
            pack.compress(&packed).map_err(|e| Error::io(format!("compress {}", image.front().path().display()), e))?;
        // A frame as long as its pages is the pages themselves.
        let frame = if frame.len() < packed.len() { &frame } else { &packed };
        draft.write(frame, end)?;
        let entry = (image.blocks()[at.block].first_chunk + at.index) * FRAME;
        index[entry..entry + 8].copy_from_slice(&end.to_le_bytes());
        index[entry + 8..entry + FRAME].copy_from_slice(&(frame.len() as u32).to_le_bytes());
        end += frame.len() as u64;
        Ok(())
    })?;
    Ok((index, end))
}
