//! A process that writes to a real file is killed at any moment; the newest stamp found implies all earlier ones.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use keyframe_engine::units::{BLOCK, Bytes};
use keyframe_engine::{Access, CreateOptions, IoMode, OpenOptions, Pool, Preallocation, check};

const CHILD: &str = "KEYFRAME_KILL_CHILD";
const BLOCKS: u64 = 512;
/// Snapshots kept at a time.
const KEPT: u64 = 8;

fn stamped(n: u64) -> Vec<u8> {
    n.to_le_bytes().repeat(BLOCK as usize / 8)
}

fn stamp_at(volume: &keyframe_engine::Volume, block: u64) -> u64 {
    let mut bytes = vec![0; BLOCK as usize];
    volume.read_at(&mut bytes, block * BLOCK).unwrap();
    let stamp = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    assert_eq!(bytes, stamped(stamp), "block {block} is torn");
    stamp
}

/// Write n goes to block n % BLOCKS: the newest stamp m of a version says exactly what every block must hold.
fn check_version(pool: &Pool, target: &str) -> u64 {
    let volume = pool.open_volume(target, Access::ReadOnly).unwrap();
    let stamps: Vec<u64> = (0..BLOCKS).map(|block| stamp_at(&volume, block)).collect();
    let newest = *stamps.iter().max().unwrap();
    for (block, stamp) in (0..BLOCKS).zip(stamps) {
        let behind = (newest % BLOCKS + BLOCKS - block) % BLOCKS;
        let expected = newest.saturating_sub(behind);
        let expected = if expected % BLOCKS == block { expected } else { 0 };
        assert_eq!(stamp, expected, "{target}: block {block}, newest stamp {newest}");
    }
    newest
}

/// Writes, flushes, snapshots, deletes; says what is durable.
fn child(path: &Path, mode: IoMode) {
    let pool = Pool::open(path, &OpenOptions { io: mode, ..OpenOptions::default() }).unwrap();
    let volume = pool.open_volume("v", Access::ReadWrite).unwrap();
    let mut out = std::io::stdout();
    let mut n = check_version(&pool, "v");
    loop {
        n += 1;
        volume.write_at(&stamped(n), n % BLOCKS * BLOCK).unwrap();
        if n.is_multiple_of(7) {
            volume.flush().unwrap();
            writeln!(out, "flushed {n}").unwrap();
        }
        if n.is_multiple_of(50) {
            pool.snapshot(&[("v".into(), format!("s{n}"))]).unwrap();
            writeln!(out, "flushed {n}").unwrap();
            let old = pool.snapshots("v", None, usize::MAX).unwrap();
            if old.len() as u64 > KEPT {
                pool.delete_snapshot(&old[n as usize % old.len()].name).unwrap();
            }
        }
        if n.is_multiple_of(400) {
            pool.checkpoint().unwrap();
        }
    }
}

fn rounds() -> u64 {
    std::env::var("KEYFRAME_KILLS").ok().and_then(|v| v.parse().ok()).unwrap_or(25)
}

/// Not a test of its own: the process that is killed, when the parent asks for it.
#[test]
fn the_child_that_is_killed() {
    if let Ok(path) = std::env::var(CHILD) {
        let mode = if path.contains("threads") { IoMode::Threads } else { IoMode::Auto };
        child(Path::new(&path), mode);
    }
}

fn kill_again_and_again(name: &str) {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join(name);
    let size = Bytes(64 << 20);
    Pool::create(&path, &CreateOptions { size, preallocation: Preallocation::Off }).unwrap();
    let pool = Pool::open(&path, &OpenOptions::default()).unwrap();
    pool.create_volume("v", Bytes(BLOCKS * BLOCK)).unwrap();
    pool.close().unwrap();
    let mut seed = 88_172_645_463_325_252u64;
    for round in 0..rounds() {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "the_child_that_is_killed", "--nocapture", "--test-threads=1"])
            .env(CHILD, &path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        std::thread::sleep(Duration::from_millis(40 + seed % 160));
        process.kill().unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let durable = lines
            .map_while(Result::ok)
            .filter_map(|line| line.rsplit_once("flushed ").and_then(|(_, n)| n.parse::<u64>().ok()))
            .last();
        process.wait().unwrap();
        let report = check(&path, &OpenOptions::default(), &mut |_, _| {}).unwrap();
        assert!(report.is_clean(), "round {round}: {:#?}", report.errors);
        let pool = Pool::open(&path, &OpenOptions::default()).unwrap();
        let newest = check_version(&pool, "v");
        assert!(newest >= durable.unwrap_or(0), "round {round}: {durable:?} was flushed, {newest} is there");
        for snapshot in pool.snapshots("v", None, usize::MAX).unwrap() {
            let found = check_version(&pool, &snapshot.name);
            assert_eq!(snapshot.name, format!("v@s{found}"));
        }
    }
}

#[test]
fn a_killed_process_loses_nothing_flushed() {
    kill_again_and_again("pool");
}

#[test]
fn a_killed_process_loses_nothing_flushed_without_io_uring() {
    kill_again_and_again("pool-threads");
}
