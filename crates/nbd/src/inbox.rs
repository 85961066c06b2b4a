//! The receiving side of a socket: one `readv` fills the payload that is being received and then the buffer of headers
//! behind it, so many small requests cost one call and a large payload is received where it will be used.

use std::io::IoSliceMut;
use std::os::fd::OwnedFd;

use rustix::io::Errno;

use crate::limits::INBOX;

pub(crate) struct Inbox {
    buf: Box<[u8]>,
    start: usize,
    end: usize,
}

/// What one receive brought.
pub(crate) enum Fill {
    /// Bytes for the payload came first, the rest is in the inbox. `drained` when the socket gave less than was asked.
    Some { payload: usize, drained: bool },
    /// Nothing there.
    Empty,
    /// The client will send no more.
    Eof,
    /// The socket is broken.
    Broken,
}

impl Inbox {
    pub(crate) fn new() -> Inbox {
        Inbox { buf: vec![0; INBOX].into_boxed_slice(), start: 0, end: 0 }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.buf[self.start..self.end]
    }

    pub(crate) fn consume(&mut self, len: usize) {
        self.start += len;
        debug_assert!(self.start <= self.end);
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Moves as much as fits to `payload`.
    pub(crate) fn copy_to(&mut self, payload: &mut [u8]) -> usize {
        let len = payload.len().min(self.end - self.start);
        payload[..len].copy_from_slice(&self.buf[self.start..self.start + len]);
        self.consume(len);
        len
    }

    /// Receives into `payload` and then into at most `window` bytes of the inbox, which holds no complete message.
    pub(crate) fn fill(&mut self, socket: &OwnedFd, payload: &mut [u8], window: usize) -> Fill {
        if self.start > 0 {
            self.buf.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let stop = (self.end + window).min(self.buf.len());
        let asked = payload.len() + stop - self.end;
        let payload_len = payload.len();
        let mut slices = [IoSliceMut::new(payload), IoSliceMut::new(&mut self.buf[self.end..stop])];
        let slices = if payload_len == 0 { &mut slices[1..] } else { &mut slices[..] };
        let received = loop {
            match rustix::io::readv(socket, slices) {
                Err(Errno::INTR) => {}
                result => break result,
            }
        };
        match received {
            Ok(0) => Fill::Eof,
            Ok(len) => {
                let payload = len.min(payload_len);
                self.end += len - payload;
                Fill::Some { payload, drained: len < asked }
            }
            Err(Errno::AGAIN) => Fill::Empty,
            Err(_) => Fill::Broken,
        }
    }
}
