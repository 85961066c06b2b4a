//! Writes a qcow2 image front to back: clusters in ascending order, each written once, tables behind the clusters they
//! describe, the header last, so that an unfinished file is not an image.
//!
//! Version 3, 64 KiB clusters, 16-bit reference counts, no compression, no snapshots. The format is QEMU's
//! `docs/interop/qcow2.rst`; the names in comments are its field names.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

const CLUSTER_BITS: u32 = 16;
/// Bytes in a cluster.
pub(super) const CLUSTER: u64 = 1 << CLUSTER_BITS;
/// Entries in an L2 table, and in a refcount table.
const ENTRIES: u64 = CLUSTER / 8;
/// Clusters counted by one refcount block.
const COUNTED: u64 = CLUSTER / 2;
/// Entry flags: the cluster's reference count is exactly one; the cluster reads as zeroes.
const COPIED: u64 = 1 << 63;
const ZERO: u64 = 1;
const HEADER_LENGTH: u32 = 104;
const BACKING_FORMAT: u32 = 0xE279_2ACA;
/// Longest name of a backing file.
pub(super) const MAX_BACKING: usize = 1023;

/// The image below this one.
pub(super) struct Backing<'a> {
    pub(super) name: &'a [u8],
    pub(super) format: &'static str,
}

pub(super) struct Writer<'a> {
    file: &'a File,
    size: u64,
    l1: Vec<u64>,
    /// The L2 table that is being filled, and its place in `l1`.
    l2: Vec<u64>,
    l2_index: usize,
    /// Clusters taken so far; the next one goes there.
    end: u64,
}

impl<'a> Writer<'a> {
    /// An image of a disk of `size` bytes in an empty file.
    pub(super) fn new(file: &'a File, size: u64) -> Writer<'a> {
        let l1_entries = size.div_ceil(CLUSTER * ENTRIES).max(1);
        Writer {
            file,
            size,
            l1: vec![0; l1_entries as usize],
            l2: vec![0; ENTRIES as usize],
            l2_index: 0,
            end: 1 + l1_clusters(l1_entries),
        }
    }

    /// Stores a cluster; `index` must be larger than in any call before.
    pub(super) fn data(&mut self, index: u64, cluster: &[u8]) -> io::Result<()> {
        assert_eq!(cluster.len() as u64, CLUSTER, "a cluster is written as a whole");
        let entry = self.take(1) * CLUSTER;
        self.file.write_all_at(cluster, entry)?;
        self.enter(index, entry | COPIED)
    }

    /// Makes a cluster read as zeroes even where the backing image has data.
    pub(super) fn zero(&mut self, index: u64) -> io::Result<()> {
        self.enter(index, ZERO)
    }

    fn take(&mut self, clusters: u64) -> u64 {
        let first = self.end;
        self.end += clusters;
        first
    }

    fn enter(&mut self, index: u64, entry: u64) -> io::Result<()> {
        let table = (index / ENTRIES) as usize;
        if table != self.l2_index {
            self.store_l2()?;
            self.l2_index = table;
        }
        self.l2[(index % ENTRIES) as usize] = entry;
        Ok(())
    }

    fn store_l2(&mut self) -> io::Result<()> {
        if self.l2.iter().all(|entry| *entry == 0) {
            return Ok(());
        }
        let offset = self.take(1) * CLUSTER;
        self.file.write_all_at(&big_endian(&self.l2), offset)?;
        self.l1[self.l2_index] = offset | COPIED;
        self.l2.fill(0);
        Ok(())
    }

    /// Completes the image: tables, reference counts, header.
    pub(super) fn finish(mut self, backing: Option<&Backing<'_>>) -> io::Result<()> {
        self.store_l2()?;
        self.file.write_all_at(&big_endian(&self.l1), CLUSTER)?;
        let (table, table_clusters) = self.store_refcounts()?;
        self.file.set_len(self.end * CLUSTER)?;
        self.file.write_all_at(&self.header(backing, table, table_clusters), 0)
    }

    /// Every cluster of the file is used once, those of the counts included.
    fn store_refcounts(&mut self) -> io::Result<(u64, u64)> {
        let before = self.end;
        let (mut blocks, mut table_clusters) = (0, 0);
        loop {
            let total = before + blocks + table_clusters;
            let need = (total.div_ceil(COUNTED), total.div_ceil(COUNTED).div_ceil(ENTRIES));
            if need == (blocks, table_clusters) {
                break;
            }
            (blocks, table_clusters) = need;
        }
        let first_block = self.take(blocks);
        let table = self.take(table_clusters);
        for block in 0..blocks {
            let used = (self.end - block * COUNTED).min(COUNTED) as usize;
            let mut counts = vec![0; CLUSTER as usize];
            counts[..used * 2].chunks_exact_mut(2).for_each(|count| count[1] = 1);
            self.file.write_all_at(&counts, (first_block + block) * CLUSTER)?;
        }
        let entries: Vec<u64> = (first_block..first_block + blocks).map(|cluster| cluster * CLUSTER).collect();
        self.file.write_all_at(&big_endian(&entries), table * CLUSTER)?;
        Ok((table * CLUSTER, table_clusters))
    }

    fn header(&self, backing: Option<&Backing<'_>>, table: u64, table_clusters: u64) -> Vec<u8> {
        let extension = backing.map_or(Vec::new(), |backing| format_extension(backing.format));
        // The name follows the extensions and their end mark.
        let name_at = u64::from(HEADER_LENGTH) + extension.len() as u64 + 8;
        let name = backing.map_or(&[][..], |backing| backing.name);
        let mut header = Vec::from(*b"QFI\xfb");
        let mut put = |bytes: &[u8]| header.extend_from_slice(bytes);
        put(&3u32.to_be_bytes());
        put(&if name.is_empty() { 0 } else { name_at }.to_be_bytes());
        put(&(name.len() as u32).to_be_bytes());
        put(&CLUSTER_BITS.to_be_bytes());
        put(&self.size.to_be_bytes());
        put(&0u32.to_be_bytes()); // crypt_method
        put(&(self.l1.len() as u32).to_be_bytes());
        put(&CLUSTER.to_be_bytes()); // l1_table_offset
        put(&table.to_be_bytes());
        put(&(table_clusters as u32).to_be_bytes());
        put(&0u32.to_be_bytes()); // nb_snapshots
        put(&[0; 4 * 8]); // snapshots_offset and the three feature sets
        put(&4u32.to_be_bytes()); // refcount_order
        put(&HEADER_LENGTH.to_be_bytes());
        put(&extension);
        put(&[0; 8]);
        put(name);
        header
    }
}

fn l1_clusters(entries: u64) -> u64 {
    (entries * 8).div_ceil(CLUSTER)
}

fn format_extension(format: &str) -> Vec<u8> {
    let mut extension = Vec::new();
    extension.extend_from_slice(&BACKING_FORMAT.to_be_bytes());
    extension.extend_from_slice(&(format.len() as u32).to_be_bytes());
    extension.extend_from_slice(format.as_bytes());
    extension.resize(extension.len().next_multiple_of(8), 0);
    extension
}

fn big_endian(entries: &[u64]) -> Vec<u8> {
    entries.iter().flat_map(|entry| entry.to_be_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// QEMU reads it, finds nothing wrong with it, and sees the clusters that were written.
    #[test]
    fn qemu_finds_the_image_sound() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image.qcow2");
        // 3 GiB needs several L2 tables and more than one refcount block would count if all were written.
        let size = (3 << 30) + 4096;
        let file = File::create(&path).unwrap();
        let mut writer = Writer::new(&file, size);
        let cluster = |byte: u8| vec![byte; CLUSTER as usize];
        for (index, byte) in [(0, 1), (1, 2), (8191, 3), (8192, 4), (40_000, 5)] {
            writer.data(index, &cluster(byte)).unwrap();
        }
        writer.zero(49_000).unwrap();
        writer.finish(None).unwrap();
        let run = |command: &mut Command| {
            let output = command.output().expect("run a QEMU tool");
            let text =
                format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            assert!(output.status.success(), "{text}");
            text
        };
        run(Command::new("qemu-img").args(["check", "-f", "qcow2"]).arg(&path));
        let pattern = |byte: u8, index: u64| format!("read -P {byte} {} {CLUSTER}", index * CLUSTER);
        let mut io = Command::new("qemu-io");
        io.args(["-r", "-f", "qcow2"]);
        for (index, byte) in [(0, 1), (1, 2), (2, 0), (8191, 3), (8192, 4), (40_000, 5), (49_000, 0)] {
            io.arg("-c").arg(pattern(byte, index));
        }
        let text = run(io.arg(&path));
        assert!(!text.contains("failed"), "{text}");
    }

    /// A file that is large enough for its counts to fill more than one block.
    #[test]
    fn many_clusters_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image.qcow2");
        let file = File::create(&path).unwrap();
        let mut writer = Writer::new(&file, 4 << 30);
        // Clusters are taken without writing them: the file stays sparse.
        for index in 0..COUNTED + 5 {
            let entry = writer.take(1) * CLUSTER;
            writer.enter(index, entry | COPIED).unwrap();
        }
        writer.finish(None).unwrap();
        let output = Command::new("qemu-img").args(["check", "-f", "qcow2"]).arg(&path).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}
