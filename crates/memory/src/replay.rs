//! From an image back to the plain stream it was made of: QEMU loads all of it before the guest runs.
//!
//! Pages come in the order of their addresses. Zero pages of large blocks do not come at all: the guest's own memory is empty
//! in a QEMU that waits for a migration (`rom_reset` in `hw/core/loader.c` leaves it alone then). Small blocks may be ROMs,
//! which have contents from the start, so their zeros are sent.

use std::io::Write;

use crate::error::{Error, Result};
use crate::image::layout::CHUNK_PAGES;
use crate::image::{Chunk, ChunkAt, Image};
use crate::stream::Head;
use crate::wire::{self, flag, section};
use crate::{PAGE, PageAt};

/// A block up to this size may be a ROM.
const ROM_MAX: u64 = 64 << 20;

/// Writes the stream. The receiver knows it has everything when QEMU says `completed`.
pub fn replay(image: &Image, mut out: impl Write) -> Result<()> {
    image.expect_reading();
    let head = image.head();
    let mut bytes = wire::HEADER.to_vec();
    put_head(&mut bytes, &head);
    bytes.push(section::END);
    wire::put_u32(&mut bytes, head.section.id);
    let gone = |e| Error::peer("write the migration stream", e);
    for (index, block) in image.blocks().iter().enumerate().filter(|(_, b)| b.length <= ROM_MAX) {
        let mut named = false;
        for (page, _) in block.sums.iter().enumerate().filter(|(_, sum)| **sum == 0) {
            put_page_word(&mut bytes, &head, PageAt { block: index, page: page as u64 }, flag::ZERO, &mut named);
            bytes.push(0);
        }
    }
    image.for_each_chunk(|at, chunk, _| {
        put_chunk(&mut bytes, &head, at, chunk, |_| true);
        out.write_all(&bytes).map_err(gone)?;
        bytes.clear();
        Ok(())
    })?;
    wire::put_ram_end(&mut bytes, head.section.id);
    bytes.extend_from_slice(&image.front().devices().bytes);
    out.write_all(&bytes).and_then(|()| out.flush()).map_err(gone)
}

/// The configuration, and the start of the RAM section with its list of blocks (`ram_save_setup`).
pub(crate) fn put_head(out: &mut Vec<u8>, head: &Head) {
    out.extend_from_slice(&head.configuration);
    put_ram_start(out, head);
}

pub(crate) fn put_ram_start(out: &mut Vec<u8>, head: &Head) {
    out.push(section::START);
    wire::put_u32(out, head.section.id);
    wire::put_name(out, "ram");
    wire::put_u32(out, head.section.instance);
    wire::put_u32(out, head.section.version);
    wire::put_u64(out, head.blocks.iter().map(|b| b.length).sum::<u64>() | flag::BLOCKS);
    for block in &head.blocks {
        wire::put_name(out, &block.name);
        wire::put_u64(out, block.length);
    }
    wire::put_ram_end(out, head.section.id);
}

/// Those pages of a chunk that hold something and are wanted. The first one names the block.
pub(crate) fn put_chunk(
    out: &mut Vec<u8>,
    head: &Head,
    at: ChunkAt,
    chunk: &Chunk,
    mut wanted: impl FnMut(PageAt) -> bool,
) {
    let mut named = false;
    for i in 0..CHUNK_PAGES {
        if let Some(page) = chunk.page(i)
            && wanted(at.page(i))
        {
            put_page_word(out, head, at.page(i), flag::PAGE, &mut named);
            out.extend_from_slice(page);
        }
    }
}

/// The word before a page (`save_page_header`), with the block's name unless it was `named` just before.
pub(crate) fn put_page_word(out: &mut Vec<u8>, head: &Head, at: PageAt, kind: u64, named: &mut bool) {
    let offset = at.page * PAGE as u64;
    if *named {
        wire::put_u64(out, offset | kind | flag::SAME_BLOCK);
    } else {
        wire::put_u64(out, offset | kind);
        wire::put_name(out, &head.blocks[at.block].name);
        *named = true;
    }
}
