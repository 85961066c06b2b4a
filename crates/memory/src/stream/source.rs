//! Input with a buffer large enough to hand out a page without copying it.

use std::io::{ErrorKind as IoKind, Read};

use super::CONFIGURATION_MAX;
use crate::PAGE;
use crate::error::{Error, ErrorKind, Result};

const BUFFER: usize = 256 << 10;

/// Counts what it hands out, so that errors can say where they are.
pub(super) struct Source<R> {
    input: R,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    position: u64,
}

impl<R: Read> Source<R> {
    pub(super) fn new(input: R) -> Source<R> {
        Source { input, buffer: vec![0; BUFFER].into_boxed_slice(), start: 0, end: 0, position: 0 }
    }

    /// Bytes handed out so far.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// The next byte, which stays.
    pub(super) fn peek(&mut self) -> Result<u8> {
        self.fill(1)?;
        Ok(self.buffer[self.start])
    }

    pub(super) fn skip(&mut self, count: usize) -> Result<()> {
        self.fill(count)?;
        self.consume(count);
        Ok(())
    }

    pub(super) fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.fill(N)?;
        let mut out = [0; N];
        out.copy_from_slice(&self.buffer[self.start..self.start + N]);
        self.consume(N);
        Ok(out)
    }

    pub(super) fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_be_bytes(self.take()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_be_bytes(self.take()?))
    }

    /// A name with one byte of length before it.
    pub(super) fn name(&mut self) -> Result<String> {
        let length = usize::from(self.take::<1>()?[0]);
        self.fill(length)?;
        let name = std::str::from_utf8(&self.buffer[self.start..self.start + length]).map(str::to_owned);
        self.consume(length);
        name.map_err(|_| self.bad("has a name that is no text"))
    }

    pub(super) fn page(&mut self) -> Result<&[u8; PAGE]> {
        self.fill(PAGE)?;
        let at = self.start;
        self.consume(PAGE);
        Ok(self.buffer[at..].first_chunk().expect("a page was filled in"))
    }

    /// Appends the next bytes to a part of the stream that is kept whole; such parts are small.
    pub(super) fn copy(&mut self, count: usize, out: &mut Vec<u8>) -> Result<()> {
        if out.len().saturating_add(count) > CONFIGURATION_MAX {
            return Err(self.bad("has a configuration beyond any reasonable size"));
        }
        self.fill(count)?;
        out.extend_from_slice(&self.buffer[self.start..self.start + count]);
        self.consume(count);
        Ok(())
    }

    /// What is left, which is at most `limit` bytes: up to the end of the input, or until it is `whole`.
    pub(super) fn rest(&mut self, limit: usize, whole: impl Fn(&[u8]) -> bool) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        loop {
            out.extend_from_slice(&self.buffer[self.start..self.end]);
            self.consume(self.end - self.start);
            if out.len() > limit {
                return Err(self.unsupported(format!("has more than {limit} bytes of device state")));
            }
            if whole(&out) {
                return Ok(out);
            }
            (self.start, self.end) = (0, 0);
            if !self.more()? {
                return Ok(out);
            }
        }
    }

    fn consume(&mut self, count: usize) {
        self.start += count;
        self.position += count as u64;
    }

    /// Makes sure that `count` bytes, at most a page and a bit, are in the buffer.
    fn fill(&mut self, count: usize) -> Result<()> {
        if self.end - self.start >= count {
            return Ok(());
        }
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        while self.end < count {
            if !self.more()? {
                return Err(self.bad("is cut short"));
            }
        }
        Ok(())
    }

    /// Reads what there is behind what is in the buffer; false at the end of the input.
    fn more(&mut self) -> Result<bool> {
        loop {
            match self.input.read(&mut self.buffer[self.end..]) {
                Ok(count) => {
                    self.end += count;
                    return Ok(count > 0);
                }
                Err(e) if e.kind() == IoKind::Interrupted => {}
                Err(e) => return Err(self.failed(e)),
            }
        }
    }

    fn failed(&self, e: std::io::Error) -> Error {
        let at = self.position;
        match e.kind() {
            IoKind::ConnectionReset | IoKind::BrokenPipe => {
                Error::new(ErrorKind::BadStream, format!("the stream is cut short (byte {at})"))
            }
            _ => Error::io(format!("read the migration stream at byte {at}"), e),
        }
    }
}
