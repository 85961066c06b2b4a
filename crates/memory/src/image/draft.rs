//! An image while it is being written: complete when published, or gone.
//!
//! It grows under a name of its own, `NAME.NUMBERS.partial`, so that two at once never write into one file. Publishing writes the parts, syncs, writes the header, syncs, renames, and syncs
//! the folder. Until the header is there the file is no image, whatever its name. A draft that is dropped removes itself;
//! one whose process was killed leaves a `.partial` file, which anyone may delete.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::layout::{Extent, HEADER, Header, PARTS, Part};
use crate::error::{Error, Result};

pub(crate) struct Draft {
    target: PathBuf,
    partial: PathBuf,
    file: File,
    published: bool,
}

/// The contents of the parts, in their order.
pub(crate) type Contents<'a> = [&'a [u8]; PARTS.len()];

impl Draft {
    /// Starts a file that nobody else writes.
    pub(crate) fn start(target: &Path) -> Result<Draft> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        loop {
            let mut name = OsString::from(target);
            name.push(format!(".{}-{}.partial", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
            let partial = PathBuf::from(name);
            match OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&partial) {
                Ok(file) => return Ok(Draft { target: target.to_owned(), partial, file, published: false }),
                // Of a process with the same number that was killed.
                Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
                Err(e) => return Err(Error::io(format!("create {}", partial.display()), e)),
            }
        }
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    pub(crate) fn write(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.file.write_all_at(bytes, offset).map_err(|e| self.failed(&format!("write at byte {offset} of"), e))
    }

    /// Puts the parts at `end`, then makes the file the image it is to be. `header.parts` is filled in here.
    pub(crate) fn publish(mut self, mut header: Header, contents: Contents<'_>, end: u64) -> Result<File> {
        let mut offset = end;
        for ((part, bytes), extent) in PARTS.iter().zip(contents).zip(&mut header.parts) {
            *extent = self.put(*part, bytes, offset, &header.uuid)?;
            offset += bytes.len() as u64;
        }
        self.sync()?;
        self.write(&header.encode(), 0)?;
        self.sync()?;
        fs::rename(&self.partial, &self.target).map_err(|e| self.failed("rename", e))?;
        self.published = true;
        let folder = match self.target.parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        };
        let synced = File::open(folder).and_then(|f| f.sync_all());
        synced.map_err(|e| Error::io(format!("sync {}", folder.display()), e))?;
        self.file.try_clone().map_err(|e| self.failed("keep open", e))
    }

    fn put(&self, part: Part, bytes: &[u8], offset: u64, uuid: &[u8; 16]) -> Result<Extent> {
        /// Zeros of at least this size become a hole.
        const HOLE: usize = 64 << 10;
        for (i, piece) in bytes.chunks(HOLE).enumerate() {
            if piece.iter().any(|b| *b != 0) {
                self.write(piece, offset + (i * HOLE) as u64)?;
            }
        }
        let end = offset + bytes.len() as u64;
        let length = self.file.metadata().map_err(|e| self.failed("look at", e))?.len();
        if length < end.max(HEADER as u64) {
            self.file.set_len(end.max(HEADER as u64)).map_err(|e| self.failed("extend", e))?;
        }
        Ok(Extent { offset, length: bytes.len() as u64, checksum: part.checksum(uuid, bytes) })
    }

    fn sync(&self) -> Result<()> {
        self.file.sync_all().map_err(|e| self.failed("sync", e))
    }

    pub(crate) fn failed(&self, act: &str, e: std::io::Error) -> Error {
        Error::io(format!("{act} {}", self.partial.display()), e)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.published {
            // What cannot be removed is a leftover like that of a killed process: no image, and anyone may delete it.
            fs::remove_file(&self.partial).ok();
        }
    }
}
