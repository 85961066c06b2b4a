//! A client that asks for a lot and reads nothing: what the process holds stays within the connection's budget. Alone in
//! its file, because it measures the process.

#![expect(clippy::unwrap_used, reason = "a test helper that fails, fails its test")]

mod common;

use std::time::Duration;

use common::{FLUSH, Fixture, READ, SIZE, exports, request};
use keyframe_nbd::Config;
use keyframe_nbd::limits::CONNECTION_BYTES;
use keyframe_nbd::memory::Memory;

fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * rustix::param::page_size()
}

#[test]
fn a_client_that_never_reads_is_bounded() {
    let fixture = Fixture::with(Memory::new(exports(SIZE)), &Config { workers: 1, ..Config::default() });
    let before = resident();
    let mut hog = fixture.connect().export("vm");
    let reads: Vec<u8> = (0..2000).flat_map(|cookie| request(READ, cookie, 0, 8 << 20)).collect();
    hog.send(&reads);
    let mut flooder = fixture.connect().export("vm");
    flooder.stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let flushes: Vec<u8> = (0..1000).flat_map(|cookie| request(FLUSH, cookie, 0, 0)).collect();
    let mut sent = 0;
    while std::io::Write::write_all(&mut flooder.stream, &flushes).is_ok() {
        sent += flushes.len();
        assert!(sent < 64 << 20, "a client that reads no replies must be stopped");
    }
    let grown = resident().saturating_sub(before);
    assert!(grown < CONNECTION_BYTES + (24 << 20), "grew by {grown} bytes");
    let mut other = fixture.connect().export("vm");
    other.send(&request(READ, 1, 0, 4096));
    assert_eq!(other.reply(), (0, 1));
}
