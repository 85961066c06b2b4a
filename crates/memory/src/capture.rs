//! From a migration stream to an image, in one pass.
//!
//! Pages are gathered into runs and written to their places; zero pages are not written at all. While QEMU takes a
//! background snapshot, a guest that writes to a page waits until that page has been read from here, so nothing is synced
//! before the stream has ended.

use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::FallocateFlags;
use rustix::rand::{GetRandomFlags, getrandom};

use crate::error::{Error, ErrorKind, Result};
use crate::image::draft::Draft;
use crate::image::layout::{self, Extent, Form, HEADER, Header, METADATA_MAX, PARTS};
use crate::stream::{self, End, Head, RamBlock, Sink};
use crate::wire::answer;
use crate::{PAGE, PageAt, Progress};

/// Most bytes gathered before they are written.
const RUN: usize = 1 << 20;
/// How many pages pass between two reports.
const REPORT: u64 = 1024;

/// What was captured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Captured {
    /// The image's identity.
    pub uuid: [u8; 16],
    /// Bytes of RAM, zeros included.
    pub ram_bytes: u64,
    /// Pages of RAM that are not zero.
    pub stored_pages: u64,
    /// Bytes that the file system has given the file.
    pub allocated: u64,
}

/// Reads one migration stream to its end and makes an image of it at `target`.
///
/// `metadata` is kept as it is; it should say which QEMU and which machine type the image belongs to. After an error there
/// is no image, and an older one of that name is untouched. Two captures at once need two names. To give up, shut the
/// connection down: the stream is cut short then.
pub fn capture(stream: impl Read, target: &Path, metadata: &[u8], status: impl FnMut(Progress)) -> Result<Captured> {
    capture_as(identity()?, stream, End::Input, target, metadata, status)
}

/// [`capture`] of an ordinary migration of a guest that stands still, with a return path (QEMU's `return-path`).
///
/// When there is an image, QEMU is told that the migration has failed. That is what has it keep the machine as it was before,
/// so that it can go on, or be captured again; after one that has succeeded it refuses another.
pub fn capture_and_decline(
    mut stream: impl Read + Write,
    target: &Path,
    metadata: &[u8],
    status: impl FnMut(Progress),
) -> Result<Captured> {
    let captured = capture_as(identity()?, &mut stream, End::Description, target, metadata, status)?;
    let declined = [&answer::SHUT.to_be_bytes()[..], &4_u16.to_be_bytes(), &1_u32.to_be_bytes()].concat();
    stream.write_all(&declined).map_err(|e| Error::io("tell QEMU that its memory is stored", e))?;
    Ok(captured)
}

fn identity() -> Result<[u8; 16]> {
    let mut uuid = [0; 16];
    getrandom(&mut uuid, GetRandomFlags::empty()).map_err(|e| Error::io("draw an identity", e.into()))?;
    Ok(uuid)
}

/// [`capture`] with a given identity.
pub(crate) fn capture_as(
    uuid: [u8; 16],
    stream: impl Read,
    end: End,
    target: &Path,
    metadata: &[u8],
    status: impl FnMut(Progress),
) -> Result<Captured> {
    if metadata.len() > METADATA_MAX {
        let message =
            format!("{} bytes of metadata are more than the {METADATA_MAX} there is room for", metadata.len());
        return Err(Error::new(ErrorKind::Unsupported, message));
    }
    let draft = Draft::start(target)?;
    let mut ram = Ram { draft, uuid, blocks: Vec::new(), run: Run::default(), progress: Progress::default(), status };
    let (head, devices) = stream::read(stream, end, &mut ram)?;
    ram.flush()?;
    let Ram { draft, blocks, .. } = ram;
    let pages = blocks.iter().map(|b| b.sums.iter().filter(|sum| **sum != 0).count() as u64).sum();
    let sums: Vec<u8> = blocks.iter().flat_map(|b| &b.sums).flat_map(|sum| sum.to_le_bytes()).collect();
    let table: Vec<(RamBlock, u64)> = head.blocks.iter().cloned().zip(blocks.iter().map(|b| b.offset)).collect();
    let header = Header {
        form: Form::Plain,
        uuid,
        section: head.section,
        device_sections: devices.sections as u64,
        pages,
        parts: [Extent::default(); PARTS.len()],
    };
    let ram_bytes = head.blocks.iter().map(|b| b.length).sum();
    let table = layout::encode_blocks(&table);
    let contents = [&table[..], metadata, &head.configuration, &devices.bytes, &sums, &[]];
    let file = draft.publish(header, contents, HEADER as u64 + ram_bytes)?;
    let about = file.metadata().map_err(|e| Error::io(format!("look at {}", target.display()), e))?;
    Ok(Captured { uuid, ram_bytes, stored_pages: pages, allocated: about.blocks() * 512 })
}

/// RAM on its way into the file.
struct Ram<S> {
    draft: Draft,
    uuid: [u8; 16],
    blocks: Vec<Placed>,
    run: Run,
    progress: Progress,
    status: S,
}

/// Where a block lies, and what is known of its pages: their checksums, 0 for zeros.
struct Placed {
    offset: u64,
    sums: Vec<u32>,
}

/// Pages gathered, which follow each other in the file.
#[derive(Default)]
struct Run {
    offset: u64,
    bytes: Vec<u8>,
}

impl<S: FnMut(Progress)> Ram<S> {
    fn flush(&mut self) -> Result<()> {
        if !self.run.bytes.is_empty() {
            self.draft.write(&self.run.bytes, self.run.offset)?;
            self.run.bytes.clear();
        }
        Ok(())
    }

    fn count(&mut self) {
        self.progress.done += 1;
        if self.progress.done.is_multiple_of(REPORT) {
            (self.status)(self.progress);
        }
    }

    fn offset(&self, at: PageAt) -> u64 {
        self.blocks[at.block].offset + at.page * PAGE as u64
    }
}

impl<S: FnMut(Progress)> Sink for Ram<S> {
    fn start(&mut self, head: &Head) -> Result<()> {
        let mut offset = HEADER as u64;
        for block in &head.blocks {
            self.blocks.push(Placed { offset, sums: vec![0; block.pages() as usize] });
            offset += block.length;
            self.progress.total += block.pages();
        }
        Ok(())
    }

    fn page(&mut self, at: PageAt, data: &[u8; PAGE]) -> Result<()> {
        if data.iter().all(|b| *b == 0) {
            return self.zero(at);
        }
        let offset = self.offset(at);
        if self.run.bytes.len() >= RUN || offset != self.run.offset + self.run.bytes.len() as u64 {
            self.flush()?;
            self.run.offset = offset;
        }
        self.run.bytes.extend_from_slice(data);
        self.blocks[at.block].sums[at.page as usize] = layout::page_sum(&self.uuid, at.block, at.page, data);
        self.count();
        Ok(())
    }

    fn zero(&mut self, at: PageAt) -> Result<()> {
        let sum = std::mem::take(&mut self.blocks[at.block].sums[at.page as usize]);
        if sum != 0 {
            // It came with contents before, which an ordinary migration may do.
            self.flush()?;
            let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            let punched = rustix::fs::fallocate(self.draft.file(), how, self.offset(at), PAGE as u64);
            punched.map_err(|e| self.draft.failed("punch a hole into", e.into()))?;
        }
        self.count();
        Ok(())
    }
}
