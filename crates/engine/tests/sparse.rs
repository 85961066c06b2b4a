//! A cache of 64 MiB serves a volume of 1 TiB whatever is mapped in it, only slower.
//!
//! `KEYFRAME_SPARSE_GIB=10` maps 10 GiB at random; it needs about three times that on disk and some minutes.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::time::Instant;

use keyframe_engine::units::{BLOCK, Bytes};
use keyframe_engine::{Access, CreateOptions, IoBuf, Op, OpenOptions, Pool, Preallocation, Queue, Volume};
use support::{Rng, env};

const SIZE: u64 = 1 << 40;
const DEPTH: u64 = 64;

fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

/// Runs `count` requests, each on the block that the generator says.
fn run(queue: &mut Queue, volume: &Volume, count: u64, write: bool) {
    let mut rng = Rng::new(77);
    let (mut asked, mut answered) = (0, 0);
    let mut buffers: Vec<IoBuf> = (0..DEPTH).map(|_| IoBuf::zeroed(BLOCK as usize)).collect();
    let mut done = vec![];
    while answered < count {
        while asked < count {
            let Some(mut buf) = buffers.pop() else { break };
            let block = rng.below(SIZE / BLOCK);
            buf[..8].copy_from_slice(&block.to_le_bytes());
            let offset = block * BLOCK;
            let op = if write { Op::Write { offset, buf, fua: false } } else { Op::Read { offset, buf } };
            queue.submit(volume, block, op);
            asked += 1;
        }
        queue.wait(&mut done);
        for answer in done.drain(..) {
            answer.result.unwrap();
            let buf = answer.buf.unwrap();
            assert_eq!(buf[..8], answer.token.to_le_bytes(), "block {}", answer.token);
            buffers.push(buf);
            answered += 1;
        }
    }
}

#[test]
fn a_small_cache_serves_a_huge_sparse_volume() {
    let gib = env("KEYFRAME_SPARSE_GIB", 0);
    let blocks = if gib > 0 { (gib << 30) / BLOCK } else { 30_000 };
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("pool");
    let size = Bytes((4 << 30) + (gib << 30) * 3);
    Pool::create(&path, &CreateOptions { size, preallocation: Preallocation::Off }).unwrap();
    let before = resident();
    let options = OpenOptions { cache: Bytes(64 << 20), ..OpenOptions::default() };
    let pool = Pool::open(&path, &options).unwrap();
    pool.create_volume("huge", Bytes(SIZE)).unwrap();
    let volume = pool.open_volume("huge", Access::ReadWrite).unwrap();
    let mut queue = pool.queue().unwrap();
    for write in [true, false] {
        let start = Instant::now();
        run(&mut queue, &volume, blocks, write);
        let rate = blocks as f64 / start.elapsed().as_secs_f64();
        println!("{} {blocks} blocks: {rate:.0} a second", if write { "wrote" } else { "read" });
    }
    let grown = resident().saturating_sub(before);
    println!("memory grew by {}; {:?}", Bytes(grown), pool.info());
    assert!(grown < 400 << 20, "memory grew by {}", Bytes(grown));
    drop((queue, volume));
    pool.close().unwrap();
}
