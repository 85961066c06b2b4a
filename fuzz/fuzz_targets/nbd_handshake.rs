//! The handshake gives the same answers however the bytes are cut, makes progress with every step, and answers at most in
//! proportion to what it was sent.
#![no_main]

use std::sync::LazyLock;

use keyframe_nbd::handshake::{Handshake, Step};
use keyframe_nbd::memory::{Memory, MemoryExport};
use libfuzzer_sys::fuzz_target;

static BACKEND: LazyLock<Memory> = LazyLock::new(|| Memory::new([MemoryExport::new("vm", 1 << 20)]));

/// Replies, and whether transmission was reached.
fn converse(input: &[u8], piece: usize) -> (Vec<u8>, bool) {
    let mut handshake = Handshake::new();
    let (mut out, mut held) = (Vec::new(), Vec::new());
    let mut rest = input;
    loop {
        let (used, step) = handshake.receive(&held, &mut out, &*BACKEND);
        held.drain(..used);
        match step {
            Step::Again => assert!(used > 0, "a step without progress"),
            Step::Ready { .. } => return (out, true),
            Step::End => return (out, false),
            Step::More if rest.is_empty() => return (out, false),
            Step::More => {
                let (next, later) = rest.split_at(piece.min(rest.len()));
                held.extend_from_slice(next);
                rest = later;
            }
        }
    }
}

fuzz_target!(|input: &[u8]| {
    let whole = converse(input, usize::MAX);
    assert!(whole.0.len() <= 64 * input.len());
    assert_eq!(whole, converse(input, 1));
});
