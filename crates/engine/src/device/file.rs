//! A pool on a file or a block device, with direct I/O where the file system allows it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::threads::ThreadRing;
use super::uring::UringRing;
use super::{Device, Ring};
use crate::error::{Error, ErrorKind, Result};

/// How long to wait for the last I/O of a process that was killed.
const DRAIN: Duration = Duration::from_secs(10);
/// Threads of one fallback ring.
const FALLBACK_THREADS: usize = 16;

/// How guest I/O reaches the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum IoMode {
    /// io_uring if the kernel lets us, else threads.
    #[default]
    Auto,
    /// io_uring or fail.
    Uring,
    /// A pool of threads with pread and pwrite.
    Threads,
}

/// A locked file or block device.
pub struct FileDevice {
    file: File,
    path: PathBuf,
    alignment: u32,
    mode: IoMode,
    _guard: File,
}

impl FileDevice {
    /// Opens and locks `path`. The lock is advisory and goes with the process.
    pub fn open(path: &Path, mode: IoMode) -> Result<FileDevice> {
        Self::open_with(path, mode, OpenOptions::new().read(true).write(true))
    }

    /// Creates and locks a new file, or takes an existing block device.
    pub fn create(path: &Path) -> Result<FileDevice> {
        let is_device = std::fs::metadata(path).is_ok_and(|m| m.file_type().is_block_device());
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        if !is_device {
            options.create_new(true).mode(0o600);
        }
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
        if let Some(parent) = parent.filter(|p| !p.is_dir()) {
            return Err(Error::new(ErrorKind::NotFound, format!("no folder {} to make a pool in", parent.display())));
        }
        Self::open_with(path, IoMode::Auto, &mut options)
    }

    fn open_with(path: &Path, mode: IoMode, options: &mut OpenOptions) -> Result<FileDevice> {
        let fail = |e: io::Error| match e.kind() {
            io::ErrorKind::NotFound => Error::new(ErrorKind::NotFound, format!("no pool at {}", path.display())),
            io::ErrorKind::AlreadyExists => Error::new(
                ErrorKind::Exists,
                format!("{} exists already; choose another path or remove it", path.display()),
            ),
            _ => Error::io(format!("cannot open {}", path.display()), e),
        };
        // Some file systems (tmpfs before 6.6, FUSE) refuse O_DIRECT: buffered I/O with fdatasync is as safe, only slower.
        // A block device that is mounted or otherwise claimed is refused by O_EXCL.
        let is_device = std::fs::metadata(path).is_ok_and(|m| m.file_type().is_block_device());
        let flags = libc::O_CLOEXEC | if is_device { libc::O_EXCL } else { 0 };
        let direct = options.clone().custom_flags(libc::O_DIRECT | flags).open(path);
        let file = match direct {
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
                options.clone().create_new(false).custom_flags(flags).open(path).map_err(fail)?
            }
            other => other.map_err(fail)?,
        };
        if file.metadata().map_err(fail)?.is_dir() {
            return Err(Error::new(ErrorKind::NotAPool, format!("{} is a directory", path.display())));
        }
        let guard = lock(&file, path)?;
        let alignment = direct_alignment(&file);
        Ok(FileDevice { file, path: path.to_owned(), alignment, mode, _guard: guard })
    }

    /// Reserves space for the first `len` bytes; `full` also writes them, so that later writes change no file metadata.
    pub fn preallocate(&self, len: u64, full: bool) -> io::Result<()> {
        if self.file.metadata()?.file_type().is_block_device() {
            return Ok(());
        }
        rustix::fs::fallocate(&self.file, rustix::fs::FallocateFlags::empty(), 0, len)?;
        if full {
            let zeroes = crate::buf::IoBuf::zeroed(1 << 20);
            let mut at = 0;
            while at < len {
                let part = zeroes.len().min((len - at) as usize);
                self.file.write_all_at(&zeroes[..part], at)?;
                at += part as u64;
            }
        }
        Ok(())
    }
}

/// Two locks, because a killed process may leave I/O behind: the one on the returned descriptor goes with the process, the one
/// on `file` only when the kernel has let go of the last request. A live holder is refused at once, a dead one waited for.
fn lock(file: &File, path: &Path) -> Result<File> {
    let fail = |e: io::Error| Error::io(format!("cannot lock {}", path.display()), e);
    let in_use = || {
        let why = format!(
            "pool {} is in use by another process; talk to the server that holds it, or stop it",
            path.display()
        );
        Error::new(ErrorKind::Locked, why)
    };
    let guard = OpenOptions::new().read(true).write(true).custom_flags(libc::O_CLOEXEC).open(path).map_err(fail)?;
    // SAFETY: flock is a plain structure of integers, for which all zeroes is a value.
    let mut range: libc::flock = unsafe { std::mem::zeroed() };
    range.l_type = libc::F_WRLCK as libc::c_short;
    range.l_whence = libc::SEEK_SET as libc::c_short;
    range.l_len = 1;
    // SAFETY: the descriptor is open, and the structure outlives the call.
    if unsafe { libc::fcntl(guard.as_raw_fd(), libc::F_OFD_SETLK, &range) } != 0 {
        let e = io::Error::last_os_error();
        return Err(if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) { in_use() } else { fail(e) });
    }
    let end = Instant::now() + DRAIN;
    loop {
        match rustix::fs::flock(file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(guard),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < end => std::thread::sleep(Duration::from_millis(5)),
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(in_use()),
            Err(e) => return Err(fail(e.into())),
        }
    }
}

/// What direct I/O on this file must be aligned to, as the kernel says; 4096 when it does not say.
fn direct_alignment(file: &File) -> u32 {
    let mask = rustix::fs::StatxFlags::from_bits_retain(libc::STATX_DIOALIGN);
    match rustix::fs::statx(file, "", rustix::fs::AtFlags::EMPTY_PATH, mask) {
        Ok(stat) if stat.stx_dio_offset_align == 512 && stat.stx_dio_mem_align <= 512 => 512,
        _ => 4096,
    }
}

impl Device for FileDevice {
    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn len(&self) -> io::Result<u64> {
        let metadata = self.file.metadata()?;
        if metadata.file_type().is_block_device() {
            return Ok(rustix::fs::seek(&self.file, rustix::fs::SeekFrom::End(0))?);
        }
        Ok(metadata.len())
    }

    fn extend(&self, len: u64) -> io::Result<()> {
        if self.file.metadata()?.file_type().is_block_device() {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "a block device grows by itself"));
        }
        self.file.set_len(len)
    }

    fn alignment(&self) -> u32 {
        self.alignment
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(buf, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn ring(self: Arc<Self>) -> io::Result<Box<dyn Ring>> {
        let fd = self.file.as_raw_fd();
        match self.mode {
            IoMode::Threads => {}
            IoMode::Uring => return Ok(Box::new(UringRing::new(self.clone(), fd)?)),
            IoMode::Auto => match UringRing::new(self.clone(), fd) {
                Ok(ring) => return Ok(Box::new(ring)),
                // Containers and kernel.io_uring_disabled forbid it: threads do the same, at more cost per request.
                Err(e)
                    if matches!(e.raw_os_error(), Some(libc::EPERM | libc::ENOSYS | libc::EACCES | libc::ENOMEM)) => {}
                Err(e) => return Err(e),
            },
        }
        Ok(Box::new(ThreadRing::new(self, FALLBACK_THREADS)?))
    }
}
