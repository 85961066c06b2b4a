//! Real files: both ways of doing I/O give the same answers, a slow volume holds up no other, and a second opener is refused.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use keyframe_engine::device::{Device, EventFd, FileDevice, Io, IoKind, Ring};
use keyframe_engine::units::{BLOCK, Bytes};
use keyframe_engine::{
    Access, CreateOptions, Done, ErrorKind, ExtentKind, IoBuf, IoMode, Op, OpenOptions, Pool, Preallocation, Queue,
    Volume,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

fn new_pool(dir: &Path, size: u64) -> PathBuf {
    let path = dir.join("pool");
    Pool::create(&path, &CreateOptions { size: Bytes(size), preallocation: Preallocation::Off }).unwrap();
    path
}

fn run(queue: &mut Queue, volume: &Volume, op: Op) -> Done {
    queue.submit(volume, 7, op);
    let mut done = vec![];
    while done.is_empty() {
        queue.wait(&mut done);
    }
    done.remove(0)
}

/// Every kind of request, aligned and not, against a plain vector.
fn requests(mode: IoMode) {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = new_pool(dir.path(), 64 << 20);
    let pool = Pool::open(&path, &OpenOptions { io: mode, ..OpenOptions::default() }).unwrap();
    let size = 8 << 20;
    pool.create_volume("v", Bytes(size)).unwrap();
    let volume = pool.open_volume("v", Access::ReadWrite).unwrap();
    let mut queue = pool.queue().unwrap();
    let mut mirror = vec![0u8; size as usize];
    let mut x = 12345u64;
    let mut next = |n: u64| {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (x >> 33) % n
    };
    for round in 0..400u64 {
        let offset = next(size / 512) * 512;
        let longest = if round % 10 == 0 { 2048 } else { 40 };
        let len = ((1 + next(longest)) * 512).min(size - offset);
        let range = offset as usize..(offset + len) as usize;
        let fua = round % 5 == 0;
        let op = match next(6) {
            0..=2 => {
                let data: Vec<u8> = (0..len).map(|i| (i * 7 + round) as u8).collect();
                mirror[range].copy_from_slice(&data);
                Op::Write { offset, buf: IoBuf::copy_of(&data), fua }
            }
            3 => {
                mirror[range].fill(0);
                Op::WriteZeroes { offset, len, no_hole: round % 2 == 0, fua }
            }
            4 => {
                // Only whole blocks are dropped.
                let (from, to) = (offset.next_multiple_of(BLOCK), (offset + len) / BLOCK * BLOCK);
                if from < to {
                    mirror[from as usize..to as usize].fill(0);
                }
                Op::Discard { offset, len, fua }
            }
            _ => Op::Flush,
        };
        run(&mut queue, &volume, op).result.unwrap();
        let at = next(size / 512) * 512;
        let want = ((1 + next(100)) * 512).min(size - at);
        let done = run(&mut queue, &volume, Op::Read { offset: at, buf: IoBuf::zeroed(want as usize) });
        done.result.unwrap();
        assert_eq!(&done.buf.unwrap()[..], &mirror[at as usize..(at + want) as usize], "round {round}");
    }
    for extent in volume.status(0, size).unwrap() {
        let bytes = &mirror[extent.offset as usize..(extent.offset + extent.len) as usize];
        assert!(extent.kind == ExtentKind::Data || bytes.iter().all(|b| *b == 0), "{extent:?} is not zero");
    }
    let mut all = vec![0; size as usize];
    drop((volume, queue));
    pool.close().unwrap();
    let pool = Pool::open(&path, &OpenOptions::default()).unwrap();
    pool.open_volume("v", Access::ReadOnly).unwrap().read_at(&mut all, 0).unwrap();
    assert!(all == mirror);
}

#[test]
fn requests_on_io_uring_and_on_threads_agree_with_a_plain_vector() {
    requests(IoMode::Threads);
    requests(IoMode::Auto);
}

#[test]
fn requests_outside_the_rules_are_refused() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let pool = Pool::open(&new_pool(dir.path(), 64 << 20), &OpenOptions::default()).unwrap();
    pool.create_volume("v", Bytes(1 << 20)).unwrap();
    pool.snapshot(&[("v".into(), "s".into())]).unwrap();
    let volume = pool.open_volume("v", Access::ReadWrite).unwrap();
    let snapshot = pool.open_volume("v@s", Access::ReadOnly).unwrap();
    let mut queue = pool.queue().unwrap();
    let mut check = |volume: &Volume, op: Op, kind: ErrorKind| {
        assert_eq!(run(&mut queue, volume, op).result.unwrap_err().kind(), kind);
    };
    let buf = || IoBuf::zeroed(4096);
    check(&volume, Op::Read { offset: 1 << 20, buf: buf() }, ErrorKind::OutOfBounds);
    check(&volume, Op::Read { offset: u64::MAX - 511, buf: buf() }, ErrorKind::OutOfBounds);
    check(&volume, Op::Read { offset: 100, buf: buf() }, ErrorKind::Invalid);
    check(&volume, Op::Write { offset: 0, buf: IoBuf::zeroed(100), fua: false }, ErrorKind::Invalid);
    check(&volume, Op::Discard { offset: 0, len: 0, fua: false }, ErrorKind::Invalid);
    check(&snapshot, Op::Write { offset: 0, buf: buf(), fua: false }, ErrorKind::ReadOnly);
    check(&snapshot, Op::Discard { offset: 0, len: 4096, fua: false }, ErrorKind::ReadOnly);
    let refused = |r: keyframe_engine::Result<()>, kind| assert_eq!(r.unwrap_err().kind(), kind);
    refused(pool.delete_snapshot("v@s"), ErrorKind::InUse);
    refused(pool.revert("v", "s", None), ErrorKind::InUse);
    refused(pool.delete_volume("v", true), ErrorKind::InUse);
    refused(pool.delete_volume("nobody", true), ErrorKind::NotFound);
    assert_eq!(pool.open_volume("v@s", Access::ReadWrite).err().unwrap().kind(), ErrorKind::ReadOnly);
}

#[test]
fn a_second_opener_is_refused_until_the_first_is_gone() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = new_pool(dir.path(), 64 << 20);
    let pool = Pool::open(&path, &OpenOptions::default()).unwrap();
    assert_eq!(Pool::open(&path, &OpenOptions::default()).err().unwrap().kind(), ErrorKind::Locked);
    pool.close().unwrap();
    Pool::open(&path, &OpenOptions::default()).unwrap();
}

/// A file whose first rings keep back every request, while the gate is shut, that their owners submitted.
struct Gated {
    file: Arc<FileDevice>,
    gated_rings: AtomicU32,
    gate: Arc<Gate>,
}

#[derive(Default)]
struct Gate {
    shut: AtomicBool,
    /// Happens once, when a gated ring is next reaped, before anything else.
    meanwhile: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

struct GatedRing {
    inner: Box<dyn Ring>,
    gate: Arc<Gate>,
    waiting: VecDeque<Io>,
}

/// A pool on a file whose first `gated_rings` queues stand behind a gate that is shut.
fn gated_pool(path: &Path, gated_rings: u32) -> (Pool, Arc<Gate>) {
    let file = Arc::new(FileDevice::open(path, IoMode::Auto).unwrap());
    let gate = Arc::new(Gate { shut: AtomicBool::new(true), ..Gate::default() });
    let device = Arc::new(Gated { file, gated_rings: AtomicU32::new(gated_rings), gate: Arc::clone(&gate) });
    (Pool::open_on(device, path, &OpenOptions::default()).unwrap(), gate)
}

impl Device for Gated {
    fn name(&self) -> String {
        self.file.name()
    }
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
    fn extend(&self, len: u64) -> io::Result<()> {
        self.file.extend(len)
    }
    fn alignment(&self) -> u32 {
        self.file.alignment()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_at(buf, offset)
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_at(buf, offset)
    }
    fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }
    fn ring(self: Arc<Self>) -> io::Result<Box<dyn Ring>> {
        let inner = Arc::clone(&self.file).ring()?;
        let left = self.gated_rings.load(Ordering::SeqCst);
        if left > 0 {
            self.gated_rings.store(left - 1, Ordering::SeqCst);
            return Ok(Box::new(GatedRing { inner, gate: Arc::clone(&self.gate), waiting: VecDeque::new() }));
        }
        Ok(inner)
    }
}

impl Ring for GatedRing {
    unsafe fn push(&mut self, io: Io) {
        self.waiting.push_back(io);
    }
    fn reap(&mut self, done: &mut Vec<(u64, io::Result<()>)>) -> io::Result<()> {
        let meanwhile = self.gate.meanwhile.lock().unwrap().take();
        if let Some(meanwhile) = meanwhile {
            meanwhile();
        }
        while !self.gate.shut.load(Ordering::SeqCst) {
            let Some(io) = self.waiting.pop_front() else { break };
            assert_ne!(io.kind, IoKind::Sync);
            // SAFETY: whoever pushed it to us keeps its memory.
            unsafe { self.inner.push(io) }
        }
        self.inner.reap(done)
    }
    fn in_flight(&self) -> usize {
        self.inner.in_flight() + self.waiting.len()
    }
    fn event_fd(&self) -> BorrowedFd<'_> {
        self.inner.event_fd()
    }
    fn waker(&self) -> Arc<EventFd> {
        self.inner.waker()
    }
    fn wait(&mut self) -> io::Result<()> {
        if self.waiting.is_empty() { self.inner.wait() } else { Ok(()) }
    }
}

#[test]
fn a_volume_whose_device_requests_hang_holds_up_no_other() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = new_pool(dir.path(), 64 << 20);
    let (pool, gate) = gated_pool(&path, 1);
    for name in ["slow", "quick"] {
        pool.create_volume(name, Bytes(8 << 20)).unwrap();
    }
    let slow = pool.open_volume("slow", Access::ReadWrite).unwrap();
    let mut gated = pool.queue().unwrap();
    gated.submit(&slow, 1, Op::Write { offset: 0, buf: IoBuf::copy_of(&[1; 4096]), fua: false });
    let mut done = vec![];
    gated.poll(&mut done);
    assert!(done.is_empty(), "the slow write is under way");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let quick = pool.open_volume("quick", Access::ReadWrite).unwrap();
            for n in 0..200u64 {
                quick.write_at(&[n as u8; 4096], n * 4096).unwrap();
            }
            quick.flush().unwrap();
            pool.snapshot(&[("slow".into(), "s".into()), ("quick".into(), "s".into())]).unwrap();
        });
    });
    gate.shut.store(false, Ordering::SeqCst);
    while done.is_empty() {
        gated.wait(&mut done);
    }
    done.remove(0).result.unwrap();
    let mut back = [9; 4096];
    slow.read_at(&mut back, 0).unwrap();
    assert_eq!(back, [1; 4096]);
    pool.open_volume("slow@s", Access::ReadOnly).unwrap().read_at(&mut back, 0).unwrap();
    assert_eq!(back, [0; 4096], "the write was answered after the snapshot");
}

#[test]
fn whoever_begins_to_wait_while_the_other_ends_is_woken() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = new_pool(dir.path(), 64 << 20);
    let (pool, gate) = gated_pool(&path, 2);
    pool.create_volume("v", Bytes(8 << 20)).unwrap();
    let volume = pool.open_volume("v", Access::ReadWrite).unwrap();
    let (mut first, mut second) = (pool.queue().unwrap(), pool.queue().unwrap());
    // Both change a part of the same block, so one waits for the other.
    let part = |n: u64| Op::Write { offset: n * 512, buf: IoBuf::copy_of(&[n as u8 + 1; 512]), fua: false };
    let mut done = vec![];
    first.submit(&volume, 1, part(0));
    first.poll(&mut done);
    assert!(done.is_empty(), "the first write is under way");
    let shut = Arc::clone(&gate);
    *gate.meanwhile.lock().unwrap() = Some(Box::new(move || {
        shut.shut.store(false, Ordering::SeqCst);
        let mut done = vec![];
        while done.is_empty() {
            first.wait(&mut done);
        }
        done.remove(0).result.unwrap();
    }));
    second.submit(&volume, 2, part(1));
    second.poll(&mut done);
    while done.is_empty() {
        let mut events = [PollFd::from_borrowed_fd(second.event_fd(), PollFlags::IN)];
        let patience = Timespec { tv_sec: 5, tv_nsec: 0 };
        assert_eq!(poll(&mut events, Some(&patience)).unwrap(), 1, "nobody tells that the first write has ended");
        second.poll(&mut done);
    }
    done.remove(0).result.unwrap();
    let mut back = [9; 1024];
    volume.read_at(&mut back, 0).unwrap();
    assert_eq!((back[0], back[1023]), (1, 2));
}

/// Forbids io_uring_setup to the calling thread, as containers do.
fn forbid_io_uring() {
    let statement = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let errno = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
    let mut program = [
        // The number of the system call lies first in the data.
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0),
        libc::sock_filter {
            code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16,
            jt: 0,
            jf: 1,
            k: libc::SYS_io_uring_setup as u32,
        },
        statement(libc::BPF_RET | libc::BPF_K, errno),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: both calls only restrict the calling thread; the program outlives the second.
    let done = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program) == 0
    };
    assert!(done, "{}", io::Error::last_os_error());
}

#[test]
fn where_io_uring_is_forbidden_threads_take_over() {
    let io_threads = || {
        std::fs::read_dir("/proc/self/task")
            .unwrap()
            .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok())
            .filter(|name| name.trim() == "keyframe-io")
            .count()
    };
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = new_pool(dir.path(), 64 << 20);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            forbid_io_uring();
            let refused = OpenOptions { io: IoMode::Uring, ..OpenOptions::default() };
            let pool = Pool::open(&path, &refused).unwrap();
            assert!(pool.queue().is_err(), "io_uring is not forbidden");
            pool.close().unwrap();
            let pool = Pool::open(&path, &OpenOptions::default()).unwrap();
            pool.create_volume("v", Bytes(8 << 20)).unwrap();
            let volume = pool.open_volume("v", Access::ReadWrite).unwrap();
            volume.write_at(&[5; 8192], 4096).unwrap();
            volume.flush().unwrap();
            assert!(io_threads() > 0, "no I/O threads");
            let mut back = [0; 8192];
            volume.read_at(&mut back, 4096).unwrap();
            assert_eq!(back, [5; 8192]);
        });
    });
}
