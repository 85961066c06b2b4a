//! What the guest's stamp writer must have left on two disks, read by tools that are not ours.
//!
//! The rules are those of `guest/stamp.c`: at any instant B <= A <= B + 1, and both logs hold every multiple of eight
//! below A. A file system may need its journal replayed, and nothing else.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::process::run_tool;
use crate::vm::Disk;

/// The stamps found on the two disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamps {
    /// On the root disk, written first.
    pub a: u64,
    /// On the data disk.
    pub b: u64,
}

/// Whether a file system's journal may have something to replay.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Journal {
    /// The snapshot is what a power failure leaves.
    MayNeedReplay,
    /// The file systems were frozen.
    Clean,
}

const LOG_EVERY: u64 = 8;
const RECORD: usize = 16;
const STAMP_AREA: u64 = 1 << 20;
const GARBAGE: u64 = 0xDBDB_DBDB_DBDB_DBDB;

impl Stamps {
    /// Reads both stamps; fails if they are not of one instant.
    pub fn read(root: (&Disk, u64), data: (&Disk, u64)) -> Result<Stamps> {
        let stamps = Stamps { a: read_word(root.0, root.1 - STAMP_AREA)?, b: read_word(data.0, data.1 - STAMP_AREA)? };
        stamps.check()?;
        Ok(stamps)
    }

    fn check(&self) -> Result<()> {
        let Stamps { a, b } = *self;
        ensure!(b <= a && a <= b + 1, "not one instant: stamp {a} on the root disk, stamp {b} on the data disk");
        Ok(())
    }
}

/// Whether `stamp wreck` has been over this place. Not to be asked of the superblock: a dying ext4 writes it once more.
pub fn is_wrecked(disk: &Disk, offset: u64) -> Result<bool> {
    Ok(read_word(disk, offset)? == GARBAGE)
}

/// Reads eight bytes of a disk.
fn read_word(disk: &Disk, offset: u64) -> Result<u64> {
    let options = match disk {
        Disk::File(path) => {
            format!("driver=raw,file.driver=file,file.filename={}", path.display())
        }
        Disk::Nbd { socket, export } => format!(
            "driver=raw,file.driver=nbd,file.server.type=unix,file.server.path={},file.export={export}",
            socket.display()
        ),
    };
    let read = format!("read -v {offset} 512");
    let mut command = Command::new("qemu-io");
    let dump = run_tool(command.args(["-r", "--image-opts", &options, "-c", &read]))?;
    word_in_dump(&dump).with_context(|| format!("no data in what qemu-io says: {}", dump.trim()))
}

/// The first eight bytes of a dump in `qemu-io`'s form (`0ff00000:  2a 00 …`), little-endian.
fn word_in_dump(dump: &str) -> Option<u64> {
    let (_, bytes) = dump.lines().next()?.split_once(':')?;
    let mut word = [0; 8];
    for (byte, text) in word.iter_mut().zip(bytes.split_whitespace()) {
        *byte = u8::from_str_radix(text, 16).ok()?;
    }
    Some(u64::from_le_bytes(word))
}

/// Copies `disk` into the file `image`, replays the journal, and fails unless the file system is then without fault and
/// the log at `path` in it holds what `stamps` promise.
pub fn check_file_system(disk: &Disk, image: &Path, path: &str, stamps: Stamps, journal: Journal) -> Result<()> {
    copy(disk, image)?;
    match journal {
        // Repairing anything but the journal here would hide exactly the damage that is looked for.
        Journal::MayNeedReplay => {
            run_tool(Command::new("e2fsck").args(["-y", "-E", "journal_only"]).arg(image))?;
        }
        Journal::Clean => {
            let features = run_tool(Command::new("dumpe2fs").arg("-h").arg(image))?;
            ensure!(!features.contains("needs_recovery"), "a frozen file system needs its journal replayed");
        }
    }
    run_tool(Command::new("e2fsck").arg("-fn").arg(image))?;
    let log = run_tool(Command::new("debugfs").args(["-R", &format!("cat {path}")]).arg(image))?;
    check_log(log.as_bytes(), stamps)
}

fn copy(disk: &Disk, image: &Path) -> Result<()> {
    match disk {
        Disk::File(path) => run_tool(Command::new("cp").arg("--sparse=always").args([path, image])),
        Disk::Nbd { socket, export } => {
            let uri = format!("nbd+unix:///{}?socket={}", export.replace('@', "%40"), socket.display());
            run_tool(Command::new("nbdcopy").arg(uri).arg(image))
        }
    }
    .map(drop)
}

fn check_log(log: &[u8], stamps: Stamps) -> Result<()> {
    let needed = stamps.a.div_ceil(LOG_EVERY);
    let records: Vec<&[u8]> = log.chunks(RECORD).collect();
    ensure!(
        records.len() as u64 >= needed,
        "{} records in the log, stamp {} promises {needed}",
        records.len(),
        stamps.a
    );
    for (i, record) in (0..needed).zip(records) {
        let expected = format!("{:0width$}\n", i * LOG_EVERY, width = RECORD - 1);
        ensure!(record == expected.as_bytes(), "record {i} of the log holds {:?}", String::from_utf8_lossy(record));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_word_from_a_dump() {
        let dump = "0ff00000:  2a 01 00 00 00 00 00 00 00 00 00 00 00 00 00 00  ................\n";
        assert_eq!(word_in_dump(dump), Some(298));
        assert_eq!(word_in_dump("read failed: Input/output error\n"), None);
    }

    #[test]
    fn accepts_stamps_of_one_instant_only() {
        let check = |a, b| Stamps { a, b }.check().is_ok();
        assert_eq!([check(7, 7), check(8, 7), check(9, 7), check(7, 8)], [true, true, false, false]);
    }

    #[test]
    fn wants_every_promised_record() {
        let log = b"000000000000000\n000000000000008\n";
        let check = |a| check_log(log, Stamps { a, b: a }).is_ok();
        assert_eq!([check(0), check(15), check(16), check(17)], [true, true, true, false]);
        let torn = b"000000000000000\n\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
        assert!(check_log(torn, Stamps { a: 9, b: 9 }).is_err());
    }
}
