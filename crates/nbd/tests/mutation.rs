//! Seeded mutations of valid conversations against the pure state machines: nothing may panic, read past its input, or
//! stand still, and whatever is admitted must satisfy what a backend relies on. Every run tries the same inputs.

use keyframe_nbd::handshake::{Handshake, Step};
use keyframe_nbd::memory::{Memory, MemoryExport};
use keyframe_nbd::transmission::{Command, Request, Session};

const ROUNDS: usize = 1_000_000;

/// Xorshift: the sequence is part of the test.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn mutate(&mut self, bytes: &mut Vec<u8>) {
        const INTERESTING: [u8; 8] = [0x00, 0x01, 0x02, 0x7f, 0x80, 0xfe, 0xff, 0x10];
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len());
            match self.below(6) {
                0 => bytes[at] ^= 1 << self.below(8),
                1 => bytes[at] = INTERESTING[self.below(INTERESTING.len())],
                2 => bytes[at] = self.next() as u8,
                3 => bytes.insert(at, self.next() as u8),
                4 if bytes.len() > 1 => drop(bytes.remove(at)),
                _ => {
                    let end = at + self.below(bytes.len() - at) + 1;
                    let piece = bytes[at..end].to_vec();
                    bytes.splice(at..at, piece);
                }
            }
        }
    }
}

fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let header = [&b"IHAVEOPT"[..], &number.to_be_bytes(), &(data.len() as u32).to_be_bytes()].concat();
    [&header, data].concat()
}

fn conversations() -> Vec<Vec<u8>> {
    let meta = b"\0\0\0\x02vm\0\0\0\x02\0\0\0\x0fbase:allocation\0\0\0\x05base:";
    let info = b"\0\0\0\x02vm\0\x03\0\x01\0\x02\0\x03";
    let flags = vec![0, 0, 0, 3];
    vec![
        [flags.clone(), option(3, b""), option(8, b""), option(9, meta), option(10, meta), option(7, info)].concat(),
        [flags.clone(), option(6, info), option(5, b""), option(1, b"vm")].concat(),
        [flags, option(99, &[7; 300]), option(2, b"")].concat(),
    ]
}

#[test]
fn handshakes() {
    let backend = Memory::new([MemoryExport::new("vm", 1 << 20)]);
    let seeds = conversations();
    let mut random = Random(0x6b65_7966_7261_6d65);
    let mut ready = 0;
    for round in 0..ROUNDS {
        let mut input = seeds[round % seeds.len()].clone();
        if round >= seeds.len() {
            random.mutate(&mut input);
        }
        let mut handshake = Handshake::new();
        let mut out = Vec::new();
        let mut rest = &input[..];
        for step in 0.. {
            assert!(step <= input.len() + 2, "stands still: {input:x?}");
            let (used, step) = handshake.receive(rest, &mut out, &backend);
            rest = &rest[used..];
            match step {
                Step::Again => assert!(used > 0, "no progress: {input:x?}"),
                Step::Ready { session, .. } => {
                    assert_eq!(session.size, 1 << 20);
                    ready += 1;
                    break;
                }
                Step::More | Step::End => break,
            }
        }
        assert!(out.len() <= 64 * input.len() + 4096, "{} bytes in reply to {input:x?}", out.len());
    }
    assert_eq!(backend.attached("vm"), 0);
    assert!(ready > ROUNDS / 20, "the mutations hardly ever reach transmission: {ready}");
}

#[test]
fn requests() {
    let session = Session { size: 1 << 30, read_only: false, structured: true, block_status: true };
    let mut random = Random(0x6e62_6400_0000_0001);
    let mut admitted = 0;
    for round in 0..ROUNDS {
        let kind = (round % 9) as u16;
        let mut bytes = [&0x2560_9513u32.to_be_bytes()[..], &[0, 0], &kind.to_be_bytes(), &[9; 8]].concat();
        bytes.extend_from_slice(&((random.below(1 << 21) as u64) << 9).to_be_bytes());
        bytes.extend_from_slice(&((random.below(1 << 17) as u32) << 9).to_be_bytes());
        if round % 3 != 0 {
            random.mutate(&mut bytes);
        }
        let Ok(Some(request)) = Request::parse(&bytes) else { continue };
        let Ok(command) = session.admit(&request) else { continue };
        let (offset, len) = (request.offset, u64::from(request.len));
        match command {
            Command::Nothing | Command::Disconnect | Command::Flush => continue,
            Command::Read | Command::Write { .. } => assert!(len <= 32 << 20, "{request:?}"),
            Command::Trim { .. } | Command::WriteZeroes { .. } | Command::BlockStatus { .. } => {}
        }
        assert!(len > 0 && offset % 512 == 0 && len % 512 == 0, "{request:?}");
        assert!(offset.checked_add(len).is_some_and(|end| end <= session.size), "{request:?}");
        admitted += 1;
    }
    assert!(admitted > ROUNDS / 10, "hardly any request is admitted: {admitted}");
}
