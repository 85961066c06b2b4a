//! Replies as they wait to be sent: a short head kept inline and a body that is never copied.

use keyframe_engine::{Extent, ExtentKind, IoBuf};

use crate::error::Refusal;
use crate::limits::MAX_EXTENTS;
use crate::wire::{self, reply_type};

/// Longest head: structured header, error number and message length come to 26; header and offset to 28.
const HEAD: usize = 28;
/// Bytes of one block status descriptor.
pub(crate) const DESCRIPTOR: usize = 8;

/// What follows the head.
#[derive(Debug)]
pub(crate) enum Body {
    None,
    Data(IoBuf),
    Bytes(Vec<u8>),
    Text(&'static str),
}

/// One message to the client.
#[derive(Debug)]
pub(crate) struct Frame {
    head: [u8; HEAD],
    head_len: u8,
    body: Body,
    /// Budget that the body holds until it is sent.
    pub(crate) charge: usize,
}

impl Frame {
    fn new(head: &[&[u8]], body: Body) -> Frame {
        let mut frame = Frame { head: [0; HEAD], head_len: 0, body, charge: 0 };
        for part in head {
            let start = usize::from(frame.head_len);
            frame.head[start..start + part.len()].copy_from_slice(part);
            frame.head_len += part.len() as u8;
        }
        frame
    }

    /// Bytes of the handshake.
    pub(crate) fn bytes(bytes: Vec<u8>) -> Frame {
        Frame::new(&[], Body::Bytes(bytes))
    }

    /// Success without data. "Simple reply message" allows it beside structured replies, except for reads.
    pub(crate) fn done(cookie: u64) -> Frame {
        Frame::simple(cookie, 0, Body::None)
    }

    /// Success of a read of nothing.
    pub(crate) fn empty_read(structured: bool, cookie: u64) -> Frame {
        if structured { Frame::chunk(reply_type::NONE, cookie, 0, &[], Body::None) } else { Frame::done(cookie) }
    }

    /// Success of a read: a simple reply, or one chunk that is also the last.
    pub(crate) fn data(structured: bool, cookie: u64, offset: u64, buf: IoBuf) -> Frame {
        if structured {
            let len = buf.len() as u32;
            Frame::chunk(reply_type::OFFSET_DATA, cookie, 8 + len, &[&offset.to_be_bytes()], Body::Data(buf))
        } else {
            Frame::simple(cookie, 0, Body::Data(buf))
        }
    }

    /// Failure; with structured replies the client also gets the sentence.
    pub(crate) fn error(structured: bool, cookie: u64, refusal: Refusal) -> Frame {
        let code = refusal.errno.code();
        if !structured {
            return Frame::simple(cookie, code, Body::None);
        }
        let text = refusal.message;
        let fields: [&[u8]; 2] = [&code.to_be_bytes(), &(text.len() as u16).to_be_bytes()];
        Frame::chunk(reply_type::ERROR, cookie, 6 + text.len() as u32, &fields, Body::Text(text))
    }

    /// Answer to a block status request, with neighbours of the same state merged. `None` when the extents do not start
    /// at `offset`, leave a gap, or say nothing: sending them would describe the wrong blocks.
    pub(crate) fn block_status(cookie: u64, offset: u64, len: u32, one: bool, extents: &[Extent]) -> Option<Frame> {
        let descriptors = descriptors(offset, len, one, extents)?;
        let mut body = Vec::with_capacity(descriptors.len() * DESCRIPTOR);
        for (len, state) in &descriptors {
            body.extend_from_slice(&len.to_be_bytes());
            body.extend_from_slice(&state.to_be_bytes());
        }
        let context = wire::BASE_ALLOCATION_ID.to_be_bytes();
        let len = 4 + body.len() as u32;
        Some(Frame::chunk(reply_type::BLOCK_STATUS, cookie, len, &[&context], Body::Bytes(body)))
    }

    /// "Simple reply message".
    fn simple(cookie: u64, error: u32, body: Body) -> Frame {
        let magic = wire::SIMPLE_REPLY_MAGIC.to_be_bytes();
        Frame::new(&[&magic, &error.to_be_bytes(), &cookie.to_be_bytes()], body)
    }

    /// "Structured reply chunk message", always the last of its reply.
    fn chunk(kind: u16, cookie: u64, len: u32, fields: &[&[u8]], body: Body) -> Frame {
        let head = [
            &wire::STRUCTURED_REPLY_MAGIC.to_be_bytes()[..],
            &wire::REPLY_FLAG_DONE.to_be_bytes(),
            &kind.to_be_bytes(),
            &cookie.to_be_bytes(),
            &len.to_be_bytes(),
        ];
        let mut frame = Frame::new(&head, body);
        for field in fields {
            let start = usize::from(frame.head_len);
            frame.head[start..start + field.len()].copy_from_slice(field);
            frame.head_len += field.len() as u8;
        }
        frame
    }

    pub(crate) fn with_charge(self, charge: usize) -> Frame {
        Frame { charge, ..self }
    }

    pub(crate) fn parts(&self) -> [&[u8]; 2] {
        let body = match &self.body {
            Body::None => &[][..],
            Body::Data(buf) => buf,
            Body::Bytes(bytes) => bytes,
            Body::Text(text) => text.as_bytes(),
        };
        [&self.head[..usize::from(self.head_len)], body]
    }

    pub(crate) fn len(&self) -> usize {
        let [head, body] = self.parts();
        head.len() + body.len()
    }

    /// The buffer, for reuse.
    pub(crate) fn into_buf(self) -> Option<IoBuf> {
        match self.body {
            Body::Data(buf) => Some(buf),
            Body::None | Body::Bytes(_) | Body::Text(_) => None,
        }
    }
}

/// Length and state of each descriptor, within the request.
fn descriptors(offset: u64, len: u32, one: bool, extents: &[Extent]) -> Option<Vec<(u32, u32)>> {
    let end = offset + u64::from(len);
    let most = if one { 1 } else { MAX_EXTENTS };
    let mut merged: Vec<(u32, u32)> = Vec::new();
    let mut at = offset;
    for extent in extents {
        if extent.offset != at || extent.len == 0 {
            return None;
        }
        let extent_end = extent.offset.checked_add(extent.len)?.min(end);
        let piece = (extent_end - at) as u32;
        let state = state(extent.kind);
        let full = merged.len() == most;
        match merged.last_mut() {
            Some((len, last)) if *last == state => *len += piece,
            _ if full => break,
            _ => merged.push((piece, state)),
        }
        at = extent_end;
        if at == end {
            break;
        }
    }
    if merged.is_empty() { None } else { Some(merged) }
}

/// "`base:allocation` metadata context".
fn state(kind: ExtentKind) -> u32 {
    match kind {
        ExtentKind::Data => 0,
        ExtentKind::Zero => wire::STATE_ZERO,
        ExtentKind::Hole => wire::STATE_HOLE | wire::STATE_ZERO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Errno;

    fn check(frame: &Frame, hex: &str) {
        let bytes: Vec<u8> = frame.parts().concat();
        let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(text, hex.replace(' ', ""));
        assert_eq!(frame.len(), bytes.len());
    }

    #[test]
    fn replies_on_the_wire() {
        let cookie = 0x0102_0304_0506_0708;
        let buf = || IoBuf::copy_of(b"data");
        let refusal = Refusal::new(Errno::Inval, "no");
        check(&Frame::done(cookie), "67446698 00000000 0102030405060708");
        check(&Frame::data(false, cookie, 512, buf()), "67446698 00000000 0102030405060708 64617461");
        check(
            &Frame::data(true, cookie, 512, buf()),
            "668e33ef 0001 0001 0102030405060708 0000000c 0000000000000200 64617461",
        );
        check(&Frame::empty_read(true, cookie), "668e33ef 0001 0000 0102030405060708 00000000");
        check(&Frame::error(false, cookie, refusal), "67446698 00000016 0102030405060708");
        check(&Frame::error(true, cookie, refusal), "668e33ef 0001 8001 0102030405060708 00000008 00000016 0002 6e6f");
    }

    #[test]
    fn block_status_on_the_wire() {
        let extent = |offset, len, kind| Extent { offset, len, kind };
        let extents = [
            extent(4096, 4096, ExtentKind::Data),
            extent(8192, 4096, ExtentKind::Data),
            extent(12288, 4096, ExtentKind::Zero),
            extent(16384, 1 << 40, ExtentKind::Hole),
        ];
        let status = |len, one| Frame::block_status(7, 4096, len, one, &extents);
        check(
            &status(0x10000, false).unwrap(),
            "668e33ef 0001 0005 0000000000000007 0000001c 00000001 00002000 00000000 00001000 00000002 0000d000 00000003",
        );
        check(
            &status(0x10000, true).unwrap(),
            "668e33ef 0001 0005 0000000000000007 0000000c 00000001 00002000 00000000",
        );
        check(&status(512, false).unwrap(), "668e33ef 0001 0005 0000000000000007 0000000c 00000001 00000200 00000000");
    }

    #[test]
    fn contradictory_extents_are_not_sent() {
        let data = |offset, len| Extent { offset, len, kind: ExtentKind::Data };
        let check = |extents: &[Extent]| assert!(Frame::block_status(7, 4096, 8192, false, extents).is_none());
        check(&[]);
        check(&[data(0, 4096)]);
        check(&[data(4096, 0)]);
        check(&[data(4096, 512), data(8192, 512)]);
        check(&[data(4096, u64::MAX)]);
    }
}
