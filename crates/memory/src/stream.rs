//! Reads a plain migration stream, as `background-snapshot` or an ordinary migration to a file or socket writes it.
//!
//! ```text
//!  header ─ configuration ─ RAM start: list of blocks ─ RAM parts: pages ─ device sections ─ end ─ description
//! ```
//!
//! Pages go to a [`Sink`] as they come. Device sections cannot be told apart without knowing every device, so they are kept
//! as they are; they end where the description of the stream, its last part, says so. Memory use is bounded by the limits
//! below and the size of the device state. Nothing in a stream can make this panic.
//!
//! Source of the format: QEMU 10.0, `migration/savevm.c` (`qemu_loadvm_state`, `qemu_savevm_state_complete_precopy`),
//! `migration/ram.c` (`ram_save_setup`, `ram_load_precopy`), `migration/migration.c` (`bg_migration_thread`).

use std::io::Read;

use crate::error::{Error, ErrorKind, Result};
use crate::wire::{self, Command, flag, section};
use crate::{PAGE, PageAt};

mod source;
use source::Source;

/// Most bytes of configuration.
pub const CONFIGURATION_MAX: usize = 64 << 10;
/// Most blocks of RAM; a machine has about ten.
pub const BLOCKS_MAX: usize = 1024;
/// Most RAM of a machine.
pub const RAM_MAX: u64 = 16 << 40;
/// Most bytes of device state; it is a few hundred KiB without devices that keep memory of their own.
pub const DEVICES_MAX: usize = 256 << 20;

/// What a stream says before the first page.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Head {
    /// The configuration section as it stood in the stream; may be empty.
    pub configuration: Vec<u8>,
    /// Numbers of the section that carries RAM.
    pub section: RamSection,
    /// The blocks of RAM, in the order of the stream.
    pub blocks: Vec<RamBlock>,
}

/// Numbers that a stream gives the section with RAM; a stream made from an image repeats them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RamSection {
    /// The section's number in its stream.
    pub id: u32,
    /// The instance.
    pub instance: u32,
    /// The version of its format.
    pub version: u32,
}

/// One block of RAM.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RamBlock {
    /// QEMU's name for it, `ram0` for the guest's own memory.
    pub name: String,
    /// Bytes in use, a multiple of the page size.
    pub length: u64,
}

impl RamBlock {
    /// Pages of the block.
    pub fn pages(&self) -> u64 {
        self.length / PAGE as u64
    }
}

/// Everything after the last page.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceState {
    /// The device sections, the end mark and the description, as they stood in the stream.
    pub bytes: Vec<u8>,
    /// How many of the bytes are device sections.
    pub sections: usize,
}

/// Where the contents of a stream go.
pub trait Sink {
    /// Called once, before any page.
    fn start(&mut self, head: &Head) -> Result<()>;
    /// A page with contents. The same page may come again; the last one counts.
    fn page(&mut self, at: PageAt, data: &[u8; PAGE]) -> Result<()>;
    /// A page of zeros. Pages that never come are zero as well.
    fn zero(&mut self, at: PageAt) -> Result<()>;
}

/// What a stream ends with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// The input's end.
    Input,
    /// Its description, after which QEMU waits for an answer.
    Description,
}

/// Reads one stream to its end.
pub fn read(input: impl Read, end: End, sink: &mut impl Sink) -> Result<(Head, DeviceState)> {
    let mut source = Source::new(input);
    if source.take::<8>()? != wire::HEADER {
        return Err(source.bad("is not a migration stream of version 3"));
    }
    let configuration = configuration(&mut source)?;
    let mut ram: Option<(Head, usize)> = None;
    loop {
        match source.peek()? {
            section::START => {
                let section = ram_start(&mut source)?;
                if ram.is_some() {
                    return Err(source.bad("starts RAM a second time"));
                }
                let blocks = block_list(&mut source)?;
                let head = Head { configuration: configuration.clone(), section, blocks };
                sink.start(&head)?;
                let mut last = 0;
                pages(&mut source, &head, &mut last, sink)?;
                ram = Some((head, last));
            }
            section::PART | section::END => {
                source.skip(1)?;
                let id = source.u32()?;
                match &mut ram {
                    Some((head, last)) if head.section.id == id => pages(&mut source, head, last, sink)?,
                    _ => return Err(source.bad(format!("continues section {id}, which it has not started"))),
                }
            }
            section::FULL => break,
            section::COMMAND => command(&mut source)?,
            other => return Err(source.bad(format!("has a section of the unknown type {other:#x}"))),
        }
    }
    let Some((head, _)) = ram else { return Err(source.bad("has no RAM before its devices")) };
    let devices = devices(&mut source, end)?;
    Ok((head, devices))
}

/// Those commands that change nothing of what the stream says.
fn command(source: &mut Source<impl Read>) -> Result<()> {
    let [_, command @ .., l0, l1] = source.take::<5>()?;
    let (command, length) = (u16::from_be_bytes(command), u16::from_be_bytes([l0, l1]));
    let harmless = [(Command::OpenReturnPath, 0), (Command::Ping, 4), (Command::SwitchoverStart, 0)];
    if !harmless.iter().any(|&(known, data)| (known as u16, data) == (command, length)) {
        return Err(source.unsupported("carries commands, so it is no plain stream"));
    }
    source.skip(usize::from(length))
}

/// Reads the configuration section, if there is one, and returns it with its subsections as it stands.
fn configuration(source: &mut Source<impl Read>) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    if source.peek()? != section::CONFIGURATION {
        return Ok(out);
    }
    source.copy(5, &mut out)?;
    let length = u32::from_be_bytes([out[1], out[2], out[3], out[4]]) as usize;
    source.copy(length, &mut out)?;
    while source.peek()? == section::SUBSECTION {
        source.copy(2, &mut out)?;
        let (from, length) = (out.len(), usize::from(out[out.len() - 1]));
        source.copy(length + 4, &mut out)?;
        let name = String::from_utf8_lossy(&out[from..from + length]).into_owned();
        match name.rsplit('/').next().unwrap_or("") {
            "target-page-bits" => {
                source.copy(4, &mut out)?;
                if out[out.len() - 4..] != 12u32.to_be_bytes() {
                    return Err(source.unsupported("has guest pages of another size than 4096 bytes"));
                }
            }
            "uuid" => source.copy(16, &mut out)?,
            "capabilities" => capabilities(source, &mut out)?,
            _ => return Err(source.unsupported(format!("has an unknown part '{name}' in its configuration"))),
        }
    }
    Ok(out)
}

/// Only those capabilities are listed that change the stream, so the list has to be empty.
fn capabilities(source: &mut Source<impl Read>, out: &mut Vec<u8>) -> Result<()> {
    source.copy(4, out)?;
    if out.last_chunk::<4>() == Some(&[0; 4]) {
        return Ok(());
    }
    let name = source.name()?;
    Err(source.unsupported(format!("was written with the capability {name}")))
}

fn ram_start(source: &mut Source<impl Read>) -> Result<RamSection> {
    source.skip(1)?;
    let id = source.u32()?;
    let name = source.name()?;
    if name != "ram" {
        return Err(source.unsupported(format!("has a section '{name}' that is sent in parts")));
    }
    Ok(RamSection { id, instance: source.u32()?, version: source.u32()? })
}

/// The list of blocks, which is the first entry of the RAM section (`ram_save_setup`).
fn block_list(source: &mut Source<impl Read>) -> Result<Vec<RamBlock>> {
    let word = source.u64()?;
    if word & flag::ALL != flag::BLOCKS {
        return Err(source.bad("has no list of blocks before its pages"));
    }
    let total = word & !flag::ALL;
    if total == 0 || total > RAM_MAX {
        return Err(source.unsupported(format!("has {total} bytes of RAM")));
    }
    let mut blocks: Vec<RamBlock> = Vec::new();
    let mut left = total;
    while left > 0 {
        let block = RamBlock { name: source.name()?, length: source.u64()? };
        if block.length == 0 || block.length > left || !block.length.is_multiple_of(PAGE as u64) {
            return Err(source.bad(format!("gives block '{}' {} bytes of {left}", block.name, block.length)));
        }
        if blocks.len() == BLOCKS_MAX || blocks.iter().any(|b| b.name == block.name) {
            return Err(source.bad(format!("lists block '{}' twice, or too many", block.name)));
        }
        left -= block.length;
        blocks.push(block);
    }
    Ok(blocks)
}

/// One section's worth of pages, up to its footer. `last` is the block named last; QEMU lets it reach over sections.
fn pages(source: &mut Source<impl Read>, head: &Head, last: &mut usize, sink: &mut impl Sink) -> Result<()> {
    loop {
        let word = source.u64()?;
        let (flags, offset) = (word & flag::ALL, word & !flag::ALL);
        if flags == flag::EOS {
            break;
        }
        let kind = flags & !flag::SAME_BLOCK;
        if kind != flag::PAGE && kind != flag::ZERO {
            return Err(source.unsupported(format!("has a page with the flags {flags:#x}")));
        }
        if flags & flag::SAME_BLOCK == 0 {
            let name = source.name()?;
            match head.blocks.iter().position(|b| b.name == name) {
                Some(index) => *last = index,
                None => return Err(source.bad(format!("has a page of the unlisted block '{name}'"))),
            }
        }
        let block = &head.blocks[*last];
        let at = PageAt { block: *last, page: offset / PAGE as u64 };
        if at.page >= block.pages() {
            return Err(source.bad(format!("has a page at {offset:#x} of block '{}', behind its end", block.name)));
        }
        if kind == flag::PAGE {
            sink.page(at, source.page()?)?;
        } else if source.take::<1>()? == [0] {
            sink.zero(at)?;
        } else {
            return Err(source.unsupported("has a page filled with another byte than zero"));
        }
    }
    if source.take::<1>()? != [section::FOOTER] || source.u32()? != head.section.id {
        return Err(source.bad("has no footer after its RAM"));
    }
    Ok(())
}

/// Reads to the end and finds where the device sections end.
fn devices(source: &mut Source<impl Read>, end: End) -> Result<DeviceState> {
    let bytes = source.rest(DEVICES_MAX, |bytes| end == End::Description && device_sections(bytes).is_some())?;
    match device_sections(&bytes) {
        Some(sections) => Ok(DeviceState { bytes, sections }),
        None => Err(source.bad("is cut short: it does not end with a description of itself")),
    }
}

/// How many of the bytes are device sections: those before the end mark and the description.
///
/// The description is JSON, so it contains no byte 0; searching backwards, the first end mark that fits is the right one.
pub(crate) fn device_sections(bytes: &[u8]) -> Option<usize> {
    const MARK: usize = 6;
    let mark = bytes.len().checked_sub(MARK).filter(|_| bytes.last() == Some(&b'}'))?;
    (0..=mark).rev().find(|&at| {
        let length = u32::from_be_bytes([bytes[at + 2], bytes[at + 3], bytes[at + 4], bytes[at + 5]]);
        bytes[at..at + 2] == [section::EOF, section::DESCRIPTION]
            && length as usize == mark - at
            && bytes.get(at + MARK) == Some(&b'{')
    })
}

impl<R: Read> Source<R> {
    fn bad(&self, what: impl Into<String>) -> Error {
        Error::new(ErrorKind::BadStream, format!("the stream {} (byte {})", what.into(), self.position()))
    }

    fn unsupported(&self, what: impl Into<String>) -> Error {
        Error::new(ErrorKind::Unsupported, format!("the stream {} (byte {})", what.into(), self.position()))
    }
}
