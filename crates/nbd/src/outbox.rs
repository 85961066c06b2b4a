//! The sending side of a socket: replies in order, many of them in one `sendmsg`, without copying their data.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};

use crate::reply::Frame;

/// Slices of one call: 64 replies with data.
const SLICES: usize = 128;

pub(crate) struct Outbox {
    frames: VecDeque<Frame>,
    /// Bytes of the first frame that are sent already.
    sent: usize,
}

/// How far sending got.
#[derive(PartialEq, Eq, Debug)]
pub(crate) enum Sent {
    /// Everything is with the kernel.
    All,
    /// The client has to read first.
    Blocked,
    /// The client is gone.
    Broken,
}

impl Outbox {
    pub(crate) fn new() -> Outbox {
        Outbox { frames: VecDeque::new(), sent: 0 }
    }

    pub(crate) fn push(&mut self, frame: Frame) {
        self.frames.push_back(frame);
    }

    pub(crate) fn pop(&mut self) -> Option<Frame> {
        self.sent = 0;
        self.frames.pop_front()
    }

    pub(crate) fn len(&self) -> usize {
        self.frames.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Sends until nothing is left or the socket is full; `release` gets each frame that is done with. Returns whether
    /// any byte moved.
    pub(crate) fn flush(&mut self, socket: &OwnedFd, mut release: impl FnMut(Frame)) -> (Sent, bool) {
        let mut moved = false;
        while !self.frames.is_empty() {
            match self.send(socket) {
                Ok(len) => {
                    moved |= len > 0;
                    self.advance(len, &mut release);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return (Sent::Blocked, moved),
                Err(_) => return (Sent::Broken, moved),
            }
        }
        (Sent::All, moved)
    }

    fn send(&self, socket: &OwnedFd) -> rustix::io::Result<usize> {
        let mut slices = [IoSlice::new(&[]); SLICES];
        let mut used = 0;
        let mut skip = self.sent;
        for part in self.frames.iter().flat_map(|frame| frame.parts()) {
            if used == SLICES {
                break;
            }
            let skipped = skip.min(part.len());
            skip -= skipped;
            if skipped < part.len() {
                slices[used] = IoSlice::new(&part[skipped..]);
                used += 1;
            }
        }
        // NOSIGNAL: a vanished client is an error here, not a SIGPIPE for the process.
        sendmsg(socket, &slices[..used], &mut SendAncillaryBuffer::default(), SendFlags::NOSIGNAL)
    }

    fn advance(&mut self, len: usize, release: &mut impl FnMut(Frame)) {
        self.sent += len;
        while let Some(first) = self.frames.front().map(Frame::len)
            && self.sent >= first
        {
            self.sent -= first;
            if let Some(frame) = self.frames.pop_front() {
                release(frame);
            }
        }
    }
}
