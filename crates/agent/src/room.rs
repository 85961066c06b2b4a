//! Whether this host has room for a memory beside another.

use std::io;
use std::path::Path;

use keyframe_agent_api::VmStatus;

/// What is left alone on the host, and on the disk with the images.
const RESERVE: u64 = 256 << 20;

/// Whether what the machine has in memory now could stay there until it is stored in `images`, beside another one of its size.
/// Both are guessed too high rather than too low: pages of zeros take no room in an image.
pub(crate) fn for_two(status: &VmStatus, images: &Path) -> io::Result<bool> {
    let Some(machine) = &status.machine else { return Ok(false) };
    let disk = rustix::fs::statvfs(images)?;
    let on_disk = disk.f_bavail.saturating_mul(disk.f_frsize);
    let meminfo = std::fs::read_to_string("/proc/meminfo")?;
    let free = available(&meminfo).ok_or(io::ErrorKind::InvalidData)?;
    let used = match status.pid {
        Some(pid) => resident(&std::fs::read_to_string(format!("/proc/{pid}/status"))?).unwrap_or(machine.memory.0),
        None => 0,
    };
    Ok(free >= machine.memory.0.saturating_add(RESERVE) && on_disk >= used.saturating_add(RESERVE))
}

/// What processes can still be given, from `/proc/meminfo`.
fn available(meminfo: &str) -> Option<u64> {
    kibibytes(meminfo, "MemAvailable:")
}

/// What a process has, from its `status`.
fn resident(status: &str) -> Option<u64> {
    kibibytes(status, "VmRSS:")
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
        assert_eq!(resident("Name:\tqemu\nVmPeak:\t 9 kB\nVmRSS:\t     512 kB\n"), Some(524_288));
        assert_eq!(available("MemFree: 12 kB\n"), None);
        assert_eq!(resident("VmRSS: many kB\n"), None);
    }
}
