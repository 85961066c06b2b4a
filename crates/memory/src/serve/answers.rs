//! Reads what QEMU sends back while it takes in a migration.
//!
//! Source of the format: QEMU 10.0, `migration/migration.c` (`migrate_send_rp_message`, `source_return_path_thread`) and
//! `migration/ram.c` (`ramblock_recv_bitmap_send`).

use std::io::Read;

use crate::error::{Error, ErrorKind, Result};
use crate::stream::Head;
use crate::wire::answer;
use crate::{PAGE, PageAt};

/// One thing QEMU said.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Answer {
    /// The guest waits for this many pages from here on.
    Wanted(PageAt, u64),
    /// Loading has ended; anything but 0 is a failure.
    Shut(u32),
    /// Which pages of a block have arrived, a bit for each.
    Received(usize, Vec<u8>),
    /// It is ready to go on after an interruption.
    Resumed,
    /// It has come to the ping of this number.
    Pong(u32),
}

/// The answers on one connection.
pub(super) struct Answers<'a, R> {
    input: R,
    head: &'a Head,
    /// The block that was named last; later requests may leave the name out.
    block: Option<usize>,
}

impl<'a, R: Read> Answers<'a, R> {
    pub(super) fn new(input: R, head: &'a Head) -> Answers<'a, R> {
        Answers { input, head, block: None }
    }

    pub(super) fn next(&mut self) -> Result<Answer> {
        let [a, b, c, d] = self.take()?;
        let (kind, length) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        let mut data = vec![0; usize::from(length)];
        self.fill(&mut data)?;
        match kind {
            answer::SHUT => Ok(Answer::Shut(number(&data)?)),
            answer::REQUEST | answer::REQUEST_NAMED => self.wanted(kind, &data),
            answer::RECEIVED_BITMAP => self.bitmap(&data),
            answer::RESUME_ACK if number(&data)? == answer::RESUME_VALUE => Ok(Answer::Resumed),
            answer::PONG => Ok(Answer::Pong(number(&data)?)),
            _ => Err(refused(format!("answered with a message of the unknown kind {kind}"))),
        }
    }

    fn wanted(&mut self, kind: u16, data: &[u8]) -> Result<Answer> {
        let malformed = || refused("asked for pages in a form that is none");
        let (numbers, name) = data.split_at_checked(12).ok_or_else(malformed)?;
        let offset = u64::from_be_bytes(*numbers.first_chunk().ok_or_else(malformed)?);
        let length = u64::from(number(&numbers[8..])?);
        if kind == answer::REQUEST_NAMED {
            self.block = Some(self.named(name)?);
        }
        let block = self.block.ok_or_else(|| refused("asked for a page of no block"))?;
        let about = &self.head.blocks[block];
        let page = PAGE as u64;
        if !offset.is_multiple_of(page) || length == 0 || offset.checked_add(length).is_none_or(|e| e > about.length) {
            return Err(refused(format!("asked for {length} bytes at {offset:#x} of block {}", about.name)));
        }
        Ok(Answer::Wanted(PageAt { block, page: offset / page }, length.div_ceil(page)))
    }

    fn bitmap(&mut self, name: &[u8]) -> Result<Answer> {
        let block = self.named(name)?;
        let pages = self.head.blocks[block].pages();
        let size = u64::from_be_bytes(self.take()?);
        // It is padded to whole words.
        if size != pages.div_ceil(8).next_multiple_of(8) {
            return Err(refused(format!("sent a bitmap of {size} bytes for the {pages} pages of a block")));
        }
        let mut bits = vec![0; size as usize];
        self.fill(&mut bits)?;
        if u64::from_be_bytes(self.take()?) != answer::BITMAP_END {
            return Err(refused("sent a bitmap without an end"));
        }
        Ok(Answer::Received(block, bits))
    }

    /// The block of a name with one byte of length before it.
    fn named(&self, bytes: &[u8]) -> Result<usize> {
        let (length, name) = bytes.split_first().ok_or_else(|| refused("left out the name of a block"))?;
        let known = self.head.blocks.iter().position(|b| b.name.as_bytes() == name);
        known
            .filter(|_| usize::from(*length) == name.len())
            .ok_or_else(|| refused(format!("named the unknown block '{}'", String::from_utf8_lossy(name))))
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut out = [0; N];
        self.fill(&mut out)?;
        Ok(out)
    }

    fn fill(&mut self, out: &mut [u8]) -> Result<()> {
        self.input.read_exact(out).map_err(|e| Error::peer("QEMU closed the connection", e))
    }
}

fn number(data: &[u8]) -> Result<u32> {
    let bytes = data.try_into().map_err(|_| refused("answered with a number that is none"))?;
    Ok(u32::from_be_bytes(bytes))
}

pub(super) fn refused(what: impl AsRef<str>) -> Error {
    Error::new(ErrorKind::Refused, format!("QEMU {}", what.as_ref()))
}
