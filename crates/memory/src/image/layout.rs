//! Bytes of an image and what they mean, as pure functions. `docs/memory-format.md` is the home of the layout.

use crc32c::{crc32c, crc32c_append};

use crate::PAGE;
use crate::stream::{BLOCKS_MAX, CONFIGURATION_MAX, DEVICES_MAX, RAM_MAX, RamBlock, RamSection};

pub(crate) const MAGIC: [u8; 8] = *b"KFMEMORY";
pub(crate) const VERSION: u32 = 1;
/// Bytes of the header; RAM begins behind it.
pub(crate) const HEADER: usize = PAGE;
/// Bytes of the header that say something; their checksum follows.
const TOLD: usize = 216;
/// Pages of a chunk: what is read, checked, compressed and sent at once.
pub(crate) const CHUNK_PAGES: usize = 16;
/// Bytes of a chunk.
pub(crate) const CHUNK: usize = CHUNK_PAGES * PAGE;
/// Most bytes of the caller's metadata.
pub(crate) const METADATA_MAX: usize = 1 << 20;
/// Bytes of an entry of the frame index.
pub(crate) const FRAME: usize = 12;

/// How RAM is stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Form {
    /// Every page at its place, holes for zeros.
    Plain = 0,
    /// A frame for each chunk that holds something.
    Compressed = 1,
}

/// The parts of an image beside RAM, in the order of the header's directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Part {
    Blocks,
    Metadata,
    Configuration,
    Devices,
    Sums,
    Frames,
}

pub(crate) const PARTS: [Part; 6] =
    [Part::Blocks, Part::Metadata, Part::Configuration, Part::Devices, Part::Sums, Part::Frames];

impl Part {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Part::Blocks => "block table",
            Part::Metadata => "metadata",
            Part::Configuration => "configuration",
            Part::Devices => "device state",
            Part::Sums => "page checksums",
            Part::Frames => "frame index",
        }
    }

    /// More than this is refused before anything is read.
    pub(crate) fn limit(self) -> u64 {
        let pages = RAM_MAX / PAGE as u64;
        match self {
            Part::Blocks => (BLOCKS_MAX * 300) as u64,
            Part::Metadata => METADATA_MAX as u64,
            Part::Configuration => CONFIGURATION_MAX as u64,
            Part::Devices => DEVICES_MAX as u64,
            Part::Sums => pages * 4,
            Part::Frames => pages / CHUNK_PAGES as u64 * FRAME as u64 + (BLOCKS_MAX * FRAME) as u64,
        }
    }

    /// The checksum of a part carries whose part it is.
    pub(crate) fn checksum(self, uuid: &[u8; 16], bytes: &[u8]) -> u32 {
        let seed = crc32c_append(crc32c(uuid), &(self as u32).to_le_bytes());
        crc32c_append(seed, bytes)
    }
}

/// Where a part lies and what its checksum is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Extent {
    pub(crate) offset: u64,
    pub(crate) length: u64,
    pub(crate) checksum: u32,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Header {
    pub(crate) form: Form,
    pub(crate) uuid: [u8; 16],
    pub(crate) section: RamSection,
    /// How much of the device state is device sections.
    pub(crate) device_sections: u64,
    /// Pages that are not zero.
    pub(crate) pages: u64,
    pub(crate) parts: [Extent; PARTS.len()],
}

/// Why a header is none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum NoHeader {
    OtherFile,
    Newer(u32),
    Damaged,
}

struct Put(Vec<u8>);

impl Put {
    fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }
    fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }
}

/// Reads numbers off a slice; past its end there is nothing.
pub(crate) struct Get<'a>(pub(crate) &'a [u8]);

impl<'a> Get<'a> {
    pub(crate) fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(count)?;
        self.0 = tail;
        Some(head)
    }
    pub(crate) fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(*self.bytes(4)?.first_chunk()?))
    }
    pub(crate) fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(*self.bytes(8)?.first_chunk()?))
    }
}

impl Header {
    pub(crate) fn encode(&self) -> [u8; HEADER] {
        let mut out = Put(MAGIC.to_vec());
        out.u32(VERSION);
        out.u32(self.form as u32);
        out.0.extend_from_slice(&self.uuid);
        out.u32(PAGE as u32);
        out.u32(CHUNK_PAGES as u32);
        out.u32(self.section.id);
        out.u32(self.section.instance);
        out.u32(self.section.version);
        out.u32(0);
        out.u64(self.device_sections);
        out.u64(self.pages);
        for part in &self.parts {
            out.u64(part.offset);
            out.u64(part.length);
            out.u32(part.checksum);
            out.u32(0);
        }
        debug_assert_eq!(out.0.len(), TOLD);
        let checksum = crc32c(&out.0);
        out.u32(checksum);
        let mut page = [0; HEADER];
        page[..out.0.len()].copy_from_slice(&out.0);
        page
    }

    pub(crate) fn decode(bytes: &[u8; HEADER]) -> Result<Header, NoHeader> {
        if bytes[..8] != MAGIC {
            return Err(NoHeader::OtherFile);
        }
        let mut get = Get(&bytes[8..]);
        let version = get.u32().ok_or(NoHeader::Damaged)?;
        if version > VERSION {
            return Err(NoHeader::Newer(version));
        }
        let stored = Get(&bytes[TOLD..]).u32();
        let padding = bytes[TOLD + 4..].iter().all(|b| *b == 0);
        if version == 0 || stored != Some(crc32c(&bytes[..TOLD])) || !padding {
            return Err(NoHeader::Damaged);
        }
        Header::fields(&mut get).ok_or(NoHeader::Damaged)
    }

    fn fields(get: &mut Get<'_>) -> Option<Header> {
        let form = match get.u32()? {
            0 => Form::Plain,
            1 => Form::Compressed,
            _ => return None,
        };
        let uuid = *get.bytes(16)?.first_chunk()?;
        if get.u32()? != PAGE as u32 || get.u32()? != CHUNK_PAGES as u32 {
            return None;
        }
        let section = RamSection { id: get.u32()?, instance: get.u32()?, version: get.u32()? };
        get.u32()?;
        let (device_sections, pages) = (get.u64()?, get.u64()?);
        let mut parts = [Extent::default(); PARTS.len()];
        for part in &mut parts {
            *part = Extent { offset: get.u64()?, length: get.u64()?, checksum: get.u32()? };
            get.u32()?;
        }
        Some(Header { form, uuid, section, device_sections, pages, parts })
    }
}

/// The block table: for each block the offset of its RAM in the file, its length, and its name.
pub(crate) fn encode_blocks(blocks: &[(RamBlock, u64)]) -> Vec<u8> {
    let mut out = Put(Vec::new());
    for (block, offset) in blocks {
        out.u64(*offset);
        out.u64(block.length);
        out.u32(block.name.len() as u32);
        out.0.extend_from_slice(block.name.as_bytes());
    }
    out.0
}

/// `None` if the bytes are no table of blocks that could be in an image.
pub(crate) fn decode_blocks(bytes: &[u8]) -> Option<Vec<(RamBlock, u64)>> {
    let (mut get, mut out, mut total) = (Get(bytes), Vec::new(), 0u64);
    while !get.0.is_empty() {
        let (offset, length, name) = (get.u64()?, get.u64()?, get.u32()? as usize);
        let name = std::str::from_utf8(get.bytes(name)?).ok()?.to_owned();
        total = total.checked_add(length)?;
        let aligned = offset.is_multiple_of(PAGE as u64) && length.is_multiple_of(PAGE as u64);
        if !aligned || length == 0 || name.len() > 255 || total > RAM_MAX || offset > RAM_MAX + HEADER as u64 {
            return None;
        }
        out.push((RamBlock { name, length }, offset));
    }
    (!out.is_empty() && out.len() <= BLOCKS_MAX).then_some(out)
}

/// The checksum of a page that is not zero; it carries where the page belongs. 0 stands for a page of zeros, so a page
/// whose checksum happens to be 0 gets 1.
pub(crate) fn page_sum(uuid: &[u8; 16], block: usize, page: u64, data: &[u8]) -> u32 {
    let mut identity = [0; 28];
    identity[..16].copy_from_slice(uuid);
    identity[16..20].copy_from_slice(&(block as u32).to_le_bytes());
    identity[20..].copy_from_slice(&page.to_le_bytes());
    crc32c_append(crc32c(&identity), data).max(1)
}
