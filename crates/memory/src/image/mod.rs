//! A memory image that is complete: opened, checked, and read chunk by chunk.
//!
//! Opening reads everything but RAM and checks it. RAM is checked when it is read, page by page: a page comes out as it was
//! captured, or not at all. An open image stays readable when its file is deleted or replaced.

use std::path::Path;

use crate::error::{Error, ErrorKind, Result};
use crate::stream::{Head, RamBlock};
use crate::{PAGE, PageAt, Progress};

mod chunk;
pub(crate) mod compress;
pub(crate) mod draft;
mod front;
#[cfg(test)]
mod golden;
pub(crate) mod layout;

pub(crate) use chunk::{Chunk, ChunkAt};
pub use front::Front;
use layout::{CHUNK_PAGES, FRAME, Get, Part};

/// A block of RAM in an image.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Block {
    /// QEMU's name for it.
    pub name: String,
    /// Its bytes.
    pub length: u64,
    /// Where it begins in the file, in the plain form.
    pub(crate) offset: u64,
    /// How many chunks the blocks before it have.
    pub(crate) first_chunk: usize,
    /// A checksum for each page; 0 for a page of zeros.
    pub(crate) sums: Vec<u32>,
}

/// An image, opened for reading.
#[derive(Debug)]
pub struct Image {
    front: Front,
    blocks: Vec<Block>,
    frames: Vec<u8>,
}

impl Image {
    /// Opens an image and checks everything but RAM. Takes the longer the more RAM there is: a checksum for each page is read.
    pub fn open(path: &Path) -> Result<Image> {
        let front = Front::open(path)?;
        let [sums, frames] = [front.part(Part::Sums)?, front.part(Part::Frames)?];
        let blocks = with_sums(&front.table, &sums).ok_or_else(|| front.contradicted(Part::Sums))?;
        let stored: u64 = blocks.iter().map(|b| b.sums.iter().filter(|sum| **sum != 0).count() as u64).sum();
        if stored != front.header.pages {
            return Err(front.contradicted(Part::Sums));
        }
        let chunks = blocks.last().map_or(0, |b| b.first_chunk + b.chunks());
        if frames.len() != if front.is_compressed() { chunks * FRAME } else { 0 } {
            return Err(front.contradicted(Part::Frames));
        }
        Ok(Image { front, blocks, frames })
    }

    /// What stands beside RAM.
    pub fn front(&self) -> &Front {
        &self.front
    }

    /// The blocks of RAM.
    pub fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// Bytes of RAM, zeros included.
    pub fn ram_bytes(&self) -> u64 {
        self.blocks.iter().map(|b| b.length).sum()
    }

    /// Pages of RAM that are not zero.
    pub fn stored_pages(&self) -> u64 {
        self.front.header.pages
    }

    /// What a stream of this image says before its pages.
    pub fn head(&self) -> Head {
        let blocks = self.blocks.iter().map(|b| RamBlock { name: b.name.clone(), length: b.length });
        let (configuration, section) = (self.front.configuration.clone(), self.front.header.section);
        Head { configuration, section, blocks: blocks.collect() }
    }

    /// Reads all of RAM and checks it. `go_on` hears how far it is, and ends it by saying no.
    pub fn verify(&self, mut go_on: impl FnMut(Progress) -> bool) -> Result<()> {
        self.for_each_chunk(|_, _, progress| {
            if go_on(progress) {
                return Ok(());
            }
            let message = format!("verifying {} was given up", self.front.path.display());
            Err(Error::new(ErrorKind::Cancelled, message))
        })
    }

    /// Calls `each` with every chunk that holds something, in order.
    pub(crate) fn for_each_chunk(&self, mut each: impl FnMut(ChunkAt, &Chunk, Progress) -> Result<()>) -> Result<()> {
        let mut chunk = Chunk::new();
        let mut progress = Progress { total: self.front.header.pages, ..Progress::default() };
        for (block, about) in self.blocks.iter().enumerate() {
            for index in 0..about.chunks() {
                let at = ChunkAt { block, index };
                let held = self.chunk_sums(at).iter().filter(|sum| **sum != 0).count() as u64;
                if held > 0 {
                    self.read_chunk(at, &mut chunk)?;
                    progress.done += held;
                    each(at, &chunk, progress)?;
                }
            }
        }
        Ok(())
    }

    /// Tells the kernel that the file is about to be read from front to back.
    pub(crate) fn expect_reading(&self) {
        // Advice: if it is not taken, reading is slower and nothing else.
        rustix::fs::fadvise(&self.front.file, 0, None, rustix::fs::Advice::Sequential).ok();
    }

    fn corrupt(&self, at: PageAt, what: &str) -> Error {
        let name = &self.blocks[at.block].name;
        let offset = at.page * PAGE as u64;
        let message = format!("{} is damaged: block {name} at {offset:#x}: {what}", self.front.path.display());
        Error::new(ErrorKind::Corrupt, message)
    }
}

impl Block {
    /// How many chunks the block has; the last one may be shorter.
    pub(crate) fn chunks(&self) -> usize {
        self.sums.len().div_ceil(CHUNK_PAGES)
    }
}

/// Gives each block its checksums; `None` if there are not exactly as many as pages.
fn with_sums(table: &[(RamBlock, u64)], sums: &[u8]) -> Option<Vec<Block>> {
    let (mut get, mut out, mut first_chunk) = (Get(sums), Vec::with_capacity(table.len()), 0);
    for (about, offset) in table {
        let pages = usize::try_from(about.pages()).ok()?;
        let bytes = get.bytes(pages.checked_mul(4)?)?;
        let sums: Vec<u32> = bytes.as_chunks::<4>().0.iter().map(|sum| u32::from_le_bytes(*sum)).collect();
        let block = Block { name: about.name.clone(), length: about.length, offset: *offset, first_chunk, sums };
        first_chunk += block.chunks();
        out.push(block);
    }
    get.0.is_empty().then_some(out)
}
