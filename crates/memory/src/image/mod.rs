//! A memory image that is complete: opened, checked, and read chunk by chunk.
//!
//! Opening reads everything but RAM and checks it. RAM is checked when it is read, page by page: a page comes out as it was
//! captured, or not at all. An open image stays readable when its file is deleted or replaced.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};
use crate::stream::{DeviceState, Head, RamBlock};
use crate::{PAGE, PageAt, Progress};

mod chunk;
pub(crate) mod compress;
pub(crate) mod draft;
#[cfg(test)]
mod golden;
pub(crate) mod layout;

pub(crate) use chunk::{Chunk, ChunkAt};
use layout::{CHUNK_PAGES, FRAME, Form, Get, HEADER, Header, NoHeader, PARTS, Part};

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
    file: File,
    path: PathBuf,
    header: Header,
    blocks: Vec<Block>,
    metadata: Vec<u8>,
    configuration: Vec<u8>,
    devices: DeviceState,
    frames: Vec<u8>,
}

impl Image {
    /// Opens an image and checks everything but RAM.
    pub fn open(path: &Path) -> Result<Image> {
        let file = File::open(path).map_err(|e| Error::io(format!("open {}", path.display()), e))?;
        Image::from_file(file, path)
    }

    fn from_file(file: File, path: &Path) -> Result<Image> {
        let length = file.metadata().map_err(|e| Error::io(format!("look at {}", path.display()), e))?.len();
        let not = |kind, what: &str| Error::new(kind, format!("{} {what}", path.display()));
        if length < HEADER as u64 {
            return Err(not(ErrorKind::NotAnImage, "is no memory image"));
        }
        let mut bytes = [0; HEADER];
        file.read_exact_at(&mut bytes, 0).map_err(|e| Error::io(format!("read {}", path.display()), e))?;
        let header = Header::decode(&bytes).map_err(|why| match why {
            NoHeader::OtherFile => not(ErrorKind::NotAnImage, "is no memory image"),
            NoHeader::Newer(v) => not(ErrorKind::NewerFormat, &format!("has the newer format {v} of memory images")),
            NoHeader::Damaged => not(ErrorKind::Corrupt, "has a damaged header"),
        })?;
        let mut parts = Vec::with_capacity(PARTS.len());
        for part in PARTS {
            parts.push(read_part(&file, path, &header, part, length)?);
        }
        let [blocks, metadata, configuration, devices, sums, frames] =
            <[Vec<u8>; PARTS.len()]>::try_from(parts).expect("one for each part");
        let contradicts = |part: Part| not(ErrorKind::Corrupt, &format!("has a {} that contradicts it", part.name()));
        let table = layout::decode_blocks(&blocks).ok_or_else(|| contradicts(Part::Blocks))?;
        let blocks = with_sums(table, &sums).ok_or_else(|| contradicts(Part::Sums))?;
        let stored: u64 = blocks.iter().map(|b| b.sums.iter().filter(|sum| **sum != 0).count() as u64).sum();
        if stored != header.pages {
            return Err(contradicts(Part::Sums));
        }
        let chunks = blocks.last().map_or(0, |b| b.first_chunk + b.chunks());
        if frames.len() != if header.form == Form::Compressed { chunks * FRAME } else { 0 } {
            return Err(contradicts(Part::Frames));
        }
        let sections = usize::try_from(header.device_sections).unwrap_or(usize::MAX);
        if sections > devices.len() {
            return Err(contradicts(Part::Devices));
        }
        let devices = DeviceState { bytes: devices, sections };
        Ok(Image { file, path: path.to_owned(), header, blocks, metadata, configuration, devices, frames })
    }

    /// The image's own identity; compressing keeps it.
    pub fn uuid(&self) -> [u8; 16] {
        self.header.uuid
    }

    /// What the caller of [`crate::capture`] wanted to be kept.
    pub fn metadata(&self) -> &[u8] {
        &self.metadata
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
        self.header.pages
    }

    /// Whether RAM is compressed.
    pub fn is_compressed(&self) -> bool {
        self.header.form == Form::Compressed
    }

    /// Bytes that the file system has given the file.
    pub fn allocated(&self) -> Result<u64> {
        let about = self.file.metadata().map_err(|e| Error::io(format!("look at {}", self.path.display()), e))?;
        Ok(about.blocks() * 512)
    }

    /// The device state, as it was captured.
    pub fn devices(&self) -> &DeviceState {
        &self.devices
    }

    /// The file the image was opened from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What a stream of this image says before its pages.
    pub fn head(&self) -> Head {
        let blocks = self.blocks.iter().map(|b| RamBlock { name: b.name.clone(), length: b.length });
        Head { configuration: self.configuration.clone(), section: self.header.section, blocks: blocks.collect() }
    }

    /// Reads all of RAM and checks it.
    pub fn verify(&self, mut status: impl FnMut(Progress)) -> Result<()> {
        self.for_each_chunk(|_, _, progress| {
            status(progress);
            Ok(())
        })
    }

    /// Calls `each` with every chunk that holds something, in order.
    pub(crate) fn for_each_chunk(&self, mut each: impl FnMut(ChunkAt, &Chunk, Progress) -> Result<()>) -> Result<()> {
        let mut chunk = Chunk::new();
        let mut progress = Progress { total: self.header.pages, ..Progress::default() };
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

    pub(crate) fn header(&self) -> &Header {
        &self.header
    }

    /// Tells the kernel that the file is about to be read from front to back.
    pub(crate) fn expect_reading(&self) {
        // Advice: if it is not taken, reading is slower and nothing else.
        rustix::fs::fadvise(&self.file, 0, None, rustix::fs::Advice::Sequential).ok();
    }

    fn corrupt(&self, at: PageAt, what: &str) -> Error {
        let name = &self.blocks[at.block].name;
        let offset = at.page * PAGE as u64;
        let message = format!("{} is damaged: block {name} at {offset:#x}: {what}", self.path.display());
        Error::new(ErrorKind::Corrupt, message)
    }
}

impl Block {
    /// How many chunks the block has; the last one may be shorter.
    pub(crate) fn chunks(&self) -> usize {
        self.sums.len().div_ceil(CHUNK_PAGES)
    }
}

fn read_part(file: &File, path: &Path, header: &Header, part: Part, length: u64) -> Result<Vec<u8>> {
    let extent = header.parts[part as usize];
    let damaged = || Error::new(ErrorKind::Corrupt, format!("{} has a damaged {}", path.display(), part.name()));
    let end = extent.offset.checked_add(extent.length);
    if extent.length > part.limit() || end.is_none_or(|end| end > length) {
        return Err(damaged());
    }
    let mut bytes = vec![0; usize::try_from(extent.length).map_err(|_| damaged())?];
    let read = file.read_exact_at(&mut bytes, extent.offset);
    read.map_err(|e| Error::io(format!("read the {} of {}", part.name(), path.display()), e))?;
    if part.checksum(&header.uuid, &bytes) != extent.checksum {
        return Err(damaged());
    }
    Ok(bytes)
}

/// Gives each block its checksums; `None` if there are not exactly as many as pages.
fn with_sums(table: Vec<(RamBlock, u64)>, sums: &[u8]) -> Option<Vec<Block>> {
    let (mut get, mut out, mut first_chunk) = (Get(sums), Vec::with_capacity(table.len()), 0);
    for (about, offset) in table {
        let pages = usize::try_from(about.pages()).ok()?;
        let bytes = get.bytes(pages.checked_mul(4)?)?;
        let sums: Vec<u32> = bytes.as_chunks::<4>().0.iter().map(|sum| u32::from_le_bytes(*sum)).collect();
        let block = Block { name: about.name, length: about.length, offset, first_chunk, sums };
        first_chunk += block.chunks();
        out.push(block);
    }
    get.0.is_empty().then_some(out)
}
