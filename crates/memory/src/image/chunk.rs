//! Reading one chunk: from its place or from its frame, and checking every page of it.

use std::os::unix::fs::FileExt;

use super::Image;
use super::layout::{self, CHUNK, CHUNK_PAGES, FRAME, Form, Get};
use crate::error::{Error, Result};
use crate::{PAGE, PageAt};

/// Which chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ChunkAt {
    pub(crate) block: usize,
    pub(crate) index: usize,
}

impl ChunkAt {
    pub(crate) fn of(at: PageAt) -> ChunkAt {
        ChunkAt { block: at.block, index: at.page as usize / CHUNK_PAGES }
    }

    /// The chunk's page number `i`.
    pub(crate) fn page(self, i: usize) -> PageAt {
        PageAt { block: self.block, page: (self.index * CHUNK_PAGES + i) as u64 }
    }
}

/// Room for a chunk, used again and again.
pub(crate) struct Chunk {
    data: Box<[u8]>,
    held: [bool; CHUNK_PAGES],
    packed: Vec<u8>,
    frame: Vec<u8>,
    unpack: Option<zstd::bulk::Decompressor<'static>>,
}

impl Chunk {
    pub(crate) fn new() -> Chunk {
        Chunk {
            data: vec![0; CHUNK].into_boxed_slice(),
            held: [false; CHUNK_PAGES],
            packed: Vec::new(),
            frame: Vec::new(),
            unpack: None,
        }
    }

    /// The contents of page number `i`; nothing if it is zero.
    pub(crate) fn page(&self, i: usize) -> Option<&[u8]> {
        self.held[i].then(|| &self.data[i * PAGE..(i + 1) * PAGE])
    }

    /// The pages that are not zero, one after the other.
    pub(crate) fn pack(&self, out: &mut Vec<u8>) {
        out.clear();
        (0..CHUNK_PAGES).filter_map(|i| self.page(i)).for_each(|page| out.extend_from_slice(page));
    }
}

impl Image {
    /// The checksums of a chunk's pages.
    pub(crate) fn chunk_sums(&self, at: ChunkAt) -> &[u32] {
        let sums = &self.blocks[at.block].sums;
        let from = at.index * CHUNK_PAGES;
        &sums[from..sums.len().min(from + CHUNK_PAGES)]
    }

    /// Reads a chunk; a page that is not what was captured is an error.
    pub(crate) fn read_chunk(&self, at: ChunkAt, chunk: &mut Chunk) -> Result<()> {
        let sums = self.chunk_sums(at);
        chunk.held = [false; CHUNK_PAGES];
        for (held, sum) in chunk.held.iter_mut().zip(sums) {
            *held = *sum != 0;
        }
        match self.front.header.form {
            Form::Plain => self.read_plain(at, chunk)?,
            Form::Compressed => self.read_frame(at, chunk)?,
        }
        for (i, sum) in sums.iter().enumerate() {
            let Some(page) = chunk.page(i) else { continue };
            let at = at.page(i);
            if layout::page_sum(&self.front.header.uuid, at.block, at.page, page) != *sum {
                return Err(self.corrupt(at, "the checksum does not match"));
            }
        }
        Ok(())
    }

    /// From the first page that holds something to the last one, in one read.
    fn read_plain(&self, at: ChunkAt, chunk: &mut Chunk) -> Result<()> {
        let Some(first) = chunk.held.iter().position(|held| *held) else { return Ok(()) };
        let end = CHUNK_PAGES - chunk.held.iter().rev().take_while(|held| !**held).count();
        let from = self.blocks[at.block].offset + (at.index * CHUNK + first * PAGE) as u64;
        let room = &mut chunk.data[first * PAGE..end * PAGE];
        self.front.file.read_exact_at(room, from).map_err(|e| self.unreadable(at.page(first), e))
    }

    fn read_frame(&self, at: ChunkAt, chunk: &mut Chunk) -> Result<()> {
        let bytes = chunk.held.iter().filter(|held| **held).count() * PAGE;
        if bytes == 0 {
            return Ok(());
        }
        let damaged = || self.corrupt(at.page(0), "its frame cannot be unpacked");
        let entry = (self.blocks[at.block].first_chunk + at.index) * FRAME;
        let mut get = Get(&self.frames[entry..entry + FRAME]);
        let (Some(offset), Some(length)) = (get.u64(), get.u32()) else { return Err(damaged()) };
        let length = length as usize;
        if length == 0 || length > bytes {
            return Err(damaged());
        }
        chunk.frame.resize(length, 0);
        self.front.file.read_exact_at(&mut chunk.frame, offset).map_err(|e| self.unreadable(at.page(0), e))?;
        let source = if length == bytes {
            &chunk.frame
        } else {
            let unpack = match &mut chunk.unpack {
                Some(unpack) => unpack,
                none => none.insert(zstd::bulk::Decompressor::new().map_err(|_| damaged())?),
            };
            chunk.packed.resize(bytes, 0);
            if unpack.decompress_to_buffer(&chunk.frame, &mut chunk.packed[..]).ok() != Some(bytes) {
                return Err(damaged());
            }
            &chunk.packed
        };
        let pages = chunk.held.iter().enumerate().filter_map(|(i, held)| held.then_some(i));
        for (i, page) in pages.zip(source.chunks_exact(PAGE)) {
            chunk.data[i * PAGE..(i + 1) * PAGE].copy_from_slice(page);
        }
        Ok(())
    }

    fn unreadable(&self, at: PageAt, e: std::io::Error) -> Error {
        if e.kind() == std::io::ErrorKind::UnexpectedEof {
            return self.corrupt(at, "the file ends before it");
        }
        let name = &self.blocks[at.block].name;
        let offset = at.page * PAGE as u64;
        Error::io(format!("read {}, block {name} at {offset:#x}", self.front.path.display()), e)
    }
}
