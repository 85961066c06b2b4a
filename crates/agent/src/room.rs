//! Whether this host has room for a memory beside another.
//!
//! What was set aside is counted until its memory is stored or dropped: what comes instead of it may have taken little yet.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use keyframe_agent_api::{SnapshotId, VmStatus};
use parking_lot::Mutex;

/// What is left alone on the host, and on the disk with the images.
const RESERVE: u64 = 256 << 20;

/// Who has been told that there is room.
pub(crate) struct Room {
    /// Where the kernel tells of memory and processes.
    proc: PathBuf,
    granted: Mutex<HashMap<SnapshotId, Grant>>,
}

#[derive(Clone, Copy)]
struct Grant {
    need: Need,
    /// What it was asked for has been done.
    used: bool,
}

/// Bytes that a memory takes beside another of its size.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Need {
    memory: u64,
    disk: u64,
}

impl Room {
    pub(crate) fn new(proc: PathBuf) -> Room {
        Room { proc, granted: Mutex::default() }
    }

    /// Whether what the machine has in memory now could stay there until it is stored in `images`, beside another one of its
    /// size and beside those that are there `still`. Guessed too high rather than too low: pages of zeros take no room in an
    /// image, and a part of what others were granted is taken already. To be [`settled`](Room::settle) if it is so.
    pub(crate) fn ask(
        &self,
        snapshot: SnapshotId,
        status: &VmStatus,
        images: &Path,
        still: impl Fn(SnapshotId) -> bool,
    ) -> io::Result<bool> {
        let Some(machine) = &status.machine else { return Ok(false) };
        let memory = machine.memory.0;
        let has = match status.pid {
            Some(pid) => held(&std::fs::read_to_string(self.proc.join(format!("{pid}/status")))?),
            None => Some(0),
        };
        // What it began with and has not fetched yet is stored as well; what QEMU has besides its guest's memory is not.
        let has = has.map(|has| has.saturating_add(status.memory_pending.0));
        let need = Need { memory, disk: has.unwrap_or(memory).min(memory) };
        let disk = rustix::fs::statvfs(images)?;
        let disk = disk.f_bavail.saturating_mul(disk.f_frsize);
        let meminfo = std::fs::read_to_string(self.proc.join("meminfo"))?;
        let memory = available(&meminfo).ok_or(io::ErrorKind::InvalidData)?;
        let mut granted = self.granted.lock();
        granted.retain(|other, grant| *other != snapshot && (!grant.used || still(*other)));
        let others: Vec<Need> = granted.values().map(|grant| grant.need).collect();
        let fits = fits(Need { memory, disk }, need, &others);
        if fits {
            granted.insert(snapshot, Grant { need, used: false });
        }
        Ok(fits)
    }

    /// Whether the room was used.
    pub(crate) fn settle(&self, snapshot: SnapshotId, used: bool) {
        let mut granted = self.granted.lock();
        match granted.get_mut(&snapshot) {
            Some(grant) if used => grant.used = true,
            _ => drop(granted.remove(&snapshot)),
        }
    }
}

fn fits(free: Need, need: Need, others: &[Need]) -> bool {
    let enough = |free: u64, part: fn(&Need) -> u64| {
        let taken = others.iter().chain([&need]).map(part).fold(RESERVE, u64::saturating_add);
        free >= taken
    };
    enough(free.memory, |need| need.memory) && enough(free.disk, |need| need.disk)
}

/// What processes can still be given, from `/proc/meminfo`.
fn available(meminfo: &str) -> Option<u64> {
    kibibytes(meminfo, "MemAvailable:")
}

/// What a process has in memory and in swap, from its `status`.
fn held(status: &str) -> Option<u64> {
    kibibytes(status, "VmRSS:")?.checked_add(kibibytes(status, "VmSwap:").unwrap_or(0))
}

fn kibibytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_counts_in_kibibytes() {
        let meminfo = "MemTotal:       24629056 kB\nMemFree:          612345 kB\nMemAvailable:   20000000 kB\n";
        assert_eq!(available(meminfo), Some(20_480_000_000));
        assert_eq!(held("Name:\tqemu\nVmPeak:\t 9 kB\nVmRSS:\t     512 kB\n"), Some(524_288));
        assert_eq!(held("VmRSS:\t     512 kB\nVmSwap:\t     512 kB\n"), Some(1 << 20));
        assert_eq!(available("MemFree: 12 kB\n"), None);
        assert_eq!(held("VmRSS: many kB\n"), None);
    }

    #[test]
    fn all_of_it_is_left_alone_that_others_were_granted() {
        const MIB: u64 = 1 << 20;
        let need = |memory: u64, disk: u64| Need { memory: memory * MIB, disk: disk * MIB };
        let check = |free: Need, others: &[Need], expected| assert_eq!(fits(free, need(512, 100), others), expected);
        check(need(768, 356), &[], true);
        check(need(767, 356), &[], false);
        check(need(768, 355), &[], false);
        check(need(1024, 456), &[need(256, 100)], true);
        check(need(1023, 456), &[need(256, 100)], false);
        check(need(1024, 455), &[need(256, 100)], false);
        check(need(u64::MAX >> 20, 356), &[Need { memory: u64::MAX, disk: 0 }], false);
    }
}
