//! A guest's memory in huge pages again.
//!
//! A capture protects the memory against writes while the guest stands still. QEMU then lets go of it page by page, and
//! memory that comes later comes page by page; after either, the host maps every 4 KiB by themselves. Protecting them one by
//! one is most of the next capture's pause: 20 to 30 ms for 4 GiB that are in use, against 4 ms when they are in huge pages
//! (QEMU 10, Linux 6.18, Xeon at 2.5 GHz). So what is in use is gathered afterwards, 2 MiB at a time, beside the guest.
//!
//! This only makes things quicker. A host that does not allow it, as older kernels than 6.7 and agents without
//! `CAP_SYS_NICE`, has longer pauses.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::process::Process;
use super::{Live, Slot};

/// Bytes of a huge page.
const HUGE: u64 = 2 << 20;
/// One that is not half in use stays as it is: gathering gives it all of its memory.
const WORTHWHILE: u64 = HUGE / 2;
/// What is looked at before the first of it is gathered, so that what is known of it is little and new.
const WINDOW: u64 = 64 * HUGE;
/// The longest rest between two; else one rests as long as it has worked, for the guest waits on the same lock.
const REST: Duration = Duration::from_millis(10);

/// Begins to gather a machine's memory, in a thread of its own.
pub(super) fn begin(slot: &Slot, live: &Live) {
    let over = Arc::new(AtomicBool::new(false));
    if let Some(last) = slot.gathering.lock().replace(Arc::clone(&over)) {
        last.store(true, Ordering::Relaxed);
    }
    let (vm, ram) = (slot.vm, live.record.lock().machine.memory.0);
    let begun = live.process.try_clone().and_then(|process| {
        let work = move || match gather(&process, ram, &over) {
            Ok(gathered) => tracing::debug!(%vm, "gathered {gathered} huge pages"),
            Err(_) if process.has_ended() => {}
            Err(e) => tracing::debug!(%vm, "its memory stays in small pages: {e}"),
        };
        std::thread::Builder::new().name("huge-pages".into()).stack_size(128 << 10).spawn(work)
    });
    if let Err(e) = begun {
        tracing::warn!(%vm, "gather its memory: {e}");
    }
}

/// Ends what was begun, within a millisecond.
pub(super) fn end(slot: &Slot) {
    if let Some(last) = slot.gathering.lock().take() {
        last.store(true, Ordering::Relaxed);
    }
}

/// How many huge pages have been made.
fn gather(process: &Process, ram: u64, over: &AtomicBool) -> io::Result<u64> {
    if fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled")?.contains("[never]") {
        return Err(io::Error::other("this host has no huge pages"));
    }
    let folder = format!("/proc/{}", process.pid());
    let pages = File::open(format!("{folder}/pagemap"))?;
    let maps = fs::read_to_string(format!("{folder}/maps"))?;
    if process.has_ended() {
        // The files may be another's.
        return Ok(0);
    }
    let mut gathered = 0;
    for window in mappings(&maps, ram).into_iter().flat_map(windows) {
        for at in worthwhile(window.start, &small_pages(&pages, window.clone())?) {
            if over.load(Ordering::Relaxed) {
                return Ok(gathered);
            }
            let begun = Instant::now();
            match process.gather_pages(at, HUGE) {
                Ok(()) => gathered += 1,
                // The guest is at it, or the host has no such page to give.
                Err(Errno::AGAIN | Errno::BUSY | Errno::NOMEM) => {}
                Err(e) => return Err(e.into()),
            }
            std::thread::sleep(begun.elapsed().min(REST));
        }
    }
    Ok(gathered)
}

/// Where a process has mapped as much as a guest's memory takes. A mapping that only happens to be as large is as well off.
fn mappings(maps: &str, bytes: u64) -> Vec<Range<u64>> {
    let address = |text: &str| u64::from_str_radix(text, 16).ok();
    let ranges = maps.lines().filter_map(|line| {
        let (start, end) = line.split_whitespace().next()?.split_once('-')?;
        Some(address(start)?..address(end)?)
    });
    ranges.filter(|range| range.end - range.start == bytes && range.start.is_multiple_of(HUGE)).collect()
}

fn windows(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let ends = range.end;
    (range.start..ends).step_by(WINDOW as usize).map(move |start| start..ends.min(start + WINDOW))
}

/// Of which huge pages enough is in use, where `small` are the pages in use that are not in one.
fn worthwhile(start: u64, small: &[Range<u64>]) -> Vec<u64> {
    let mut found = Vec::new();
    let (mut at, mut used) = (start, 0);
    let mut close = |at: u64, used: u64| {
        if used >= WORTHWHILE {
            found.push(at);
        }
    };
    for range in small {
        let mut from = range.start;
        while from < range.end {
            let page = from / HUGE * HUGE;
            if page != at {
                close(at, used);
                (at, used) = (page, 0);
            }
            let to = range.end.min(page + HUGE);
            used += to - from;
            from = to;
        }
    }
    close(at, used);
    found
}

/// As `struct pm_scan_arg` in Linux's `include/uapi/linux/fs.h`; all in bytes but the lengths of `vec`.
#[repr(C)]
#[derive(Default)]
struct Scan {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `struct page_region` of the same.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

/// `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: libc::c_ulong = 0xc060_6610;
const PRESENT: u64 = 1 << 3;
/// The page of zeros that all share.
const ZERO: u64 = 1 << 5;
const IN_HUGE: u64 = 1 << 6;
/// What is asked for at once.
const REGIONS: usize = 1024;

/// The pages of a range that the process has for itself and that are not in a huge page.
fn small_pages(pagemap: &File, range: Range<u64>) -> io::Result<Vec<Range<u64>>> {
    let mut found = Vec::new();
    let mut regions = vec![Region::default(); REGIONS];
    let mut start = range.start;
    while start < range.end {
        let mut scan = Scan {
            size: size_of::<Scan>() as u64,
            start,
            end: range.end,
            vec: regions.as_mut_ptr() as u64,
            vec_len: REGIONS as u64,
            category_inverted: ZERO | IN_HUGE,
            category_mask: PRESENT | ZERO | IN_HUGE,
            return_mask: PRESENT,
            ..Scan::default()
        };
        // SAFETY: the argument has the layout that the kernel wants, and `vec` has room for `vec_len` regions.
        let count = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, &raw mut scan) };
        let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        found.extend(regions.iter().take(count).map(|region| region.start..region.end));
        if scan.walk_end <= start {
            break;
        }
        start = scan.walk_end;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_found_by_its_size_where_a_huge_page_can_begin() {
        let maps = "7f0000000000-7f0010000000 rw-p 00000000 00:00 0 \n\
                    7f0010000000-7f0010001000 ---p 00000000 00:00 0 \n\
                    7f0020001000-7f0030001000 rw-p 00000000 00:00 0 \n\
                    7f0040000000-7f0050000000 rw-p 00000000 00:00 0 \n\
                    ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0  [vsyscall]\n";
        let found = mappings(maps, 256 << 20);
        assert_eq!(found, [0x7f00_0000_0000..0x7f00_1000_0000, 0x7f00_4000_0000..0x7f00_5000_0000]);
        assert_eq!(mappings(maps, 512 << 20), []);
    }

    #[test]
    fn windows_cover_a_mapping_and_begin_where_a_huge_page_can() {
        let found: Vec<_> = windows(HUGE..HUGE + 2 * WINDOW + 4096).collect();
        let (second, third) = (HUGE + WINDOW, HUGE + 2 * WINDOW);
        assert_eq!(found, [HUGE..second, second..third, third..third + 4096]);
    }

    #[test]
    fn a_huge_page_is_worth_it_from_half_of_it_on() {
        let page = |n: u64| n * HUGE;
        // Half of the first in two pieces, a page less of the second, all of the third and a bit of the fourth at once.
        let small = [
            0..HUGE / 4,
            HUGE / 2..HUGE * 3 / 4,
            page(1)..page(1) + HUGE / 2 - 4096,
            page(2)..page(3) + 4096,
            page(7)..page(8),
        ];
        assert_eq!(worthwhile(0, &small), [page(0), page(2), page(7)]);
        assert_eq!(worthwhile(0, &[]), [] as [u64; 0]);
    }

    #[test]
    fn pages_of_ones_own_are_told_from_those_of_zeros() {
        use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
        const LENGTH: usize = 64 * 4096;

        // Of the kernel's own, because an allocator may give what was in use before.
        // SAFETY: nothing else is mapped there, nobody else knows of it, and what is advised changes no byte of it.
        let memory = unsafe {
            let at =
                mmap_anonymous(std::ptr::null_mut(), LENGTH, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
            let at = at.expect("map");
            madvise(at, LENGTH, Advice::LinuxNoHugepage).expect("advise");
            std::slice::from_raw_parts_mut(at.cast::<u8>(), LENGTH)
        };
        let start = memory.as_ptr() as u64;
        let read: u64 = (0..64).map(|n| u64::from(memory[n * 4096])).sum();
        assert_eq!(read, 0);
        for n in [10, 11, 20] {
            memory[n * 4096] = 1;
        }
        let page = |n: u64| start + n * 4096;
        let pages = File::open("/proc/self/pagemap").expect("pagemap");
        match small_pages(&pages, start..start + 64 * 4096) {
            Ok(found) => assert_eq!(found, [page(10)..page(12), page(20)..page(21)]),
            // An older kernel; it has no such pages to gather.
            Err(e) => assert_eq!(e.raw_os_error(), Some(libc::ENOTTY), "{e}"),
        }
        // SAFETY: nobody reads it any more.
        unsafe { munmap(memory.as_mut_ptr().cast(), LENGTH) }.expect("unmap");
    }
}
