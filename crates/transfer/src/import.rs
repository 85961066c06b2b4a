//! Import: a new volume of the image's size, filled and flushed under the name `NAME.part`, then renamed. An import that
//! fails takes its volume away; one that is killed leaves a volume whose name says that it is not whole.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use keyframe_engine::units::{BLOCK, Bytes};
use keyframe_engine::{Access, Pool};

use super::{header, qemu, raw};
use crate::{Copied, Image, Invalid, Progress};

/// An image that can be copied into a volume.
#[derive(Debug)]
pub struct Source {
    path: PathBuf,
    /// What is copied, whatever becomes of the name.
    file: File,
    format: Image,
    size: u64,
}

impl Source {
    /// Opens an image; without a format, its header tells. Refuses what is empty, no file, or not whole by
    /// itself.
    pub fn open(path: &Path, format: Option<Image>) -> Result<Source> {
        if !path.is_absolute() {
            return Err(Invalid(format!("{}: paths in requests must be absolute", path.display())).into());
        }
        Self::examine(path, format).with_context(|| format!("cannot import {}", path.display()))
    }

    fn examine(path: &Path, format: Option<Image>) -> Result<Source> {
        let file = open(path)?;
        let format = match format {
            Some(format) => format,
            None => by_header(&file)?,
        };
        let size = match format {
            Image::Raw => raw::size(&file)?,
            Image::Qcow2 => header::virtual_size(&file)?,
        };
        if size == 0 {
            bail!("the image is empty");
        }
        Ok(Source { path: path.to_owned(), file, format, size })
    }

    /// Bytes that a volume needs to hold the disk.
    pub fn rounded_size(&self) -> Bytes {
        Bytes(self.size.checked_next_multiple_of(BLOCK).unwrap_or(self.size))
    }

    /// Copies the image into a volume that is large enough and still empty, and flushes it. Returns the bytes stored.
    pub fn fill(&self, pool: &Pool, volume: &str, progress: &mut Progress<'_>) -> Result<u64> {
        let filled = match self.format {
            Image::Raw => self.fill_raw(pool, volume, progress),
            Image::Qcow2 => qemu::copy_in(pool, &self.file, volume, progress),
        };
        filled.with_context(|| format!("cannot import {}", self.path.display()))
    }

    fn fill_raw(&self, pool: &Pool, name: &str, progress: &mut Progress<'_>) -> Result<u64> {
        let volume = pool.open_volume(name, Access::ReadWrite)?;
        let copied = raw::copy_in(&self.file, self.size, &volume, progress)?;
        volume.flush()?;
        Ok(copied)
    }
}

/// Copies the image `path` into the new volume `name`.
pub fn import(
    pool: &Pool,
    path: &Path,
    name: &str,
    format: Option<Image>,
    progress: &mut Progress<'_>,
) -> Result<Copied> {
    let source = Source::open(path, format)?;
    // Under its own name first: the engine then refuses a name that is bad or taken before anything is copied.
    let what = || format!("cannot import {}", path.display());
    pool.create_volume(name, source.rounded_size()).with_context(what)?;
    let part = format!("{name}.part");
    undone_unless_good(pool, name, pool.rename(name, &part).map_err(anyhow::Error::new)).with_context(what)?;
    let filled = source.fill(pool, &part, progress);
    let whole = filled.and_then(|copied| pool.rename(&part, name).map(|()| copied).map_err(anyhow::Error::new));
    let copied = undone_unless_good(pool, &part, whole)?;
    Ok(Copied { name: name.to_owned(), size: source.rounded_size().0, copied })
}

/// Deletes what a failed import has made.
fn undone_unless_good<T>(pool: &Pool, made: &str, result: Result<T>) -> Result<T> {
    result.map_err(|error| match pool.delete_volume(made, false) {
        Ok(()) => error,
        Err(left) => error.context(format!("volume {made} is incomplete and could not be deleted ({left})")),
    })
}

/// Without waiting for the other end of a pipe.
fn open(path: &Path) -> Result<File> {
    let kind = std::fs::metadata(path).context("cannot open it")?.file_type();
    if kind.is_dir() || std::os::unix::fs::FileTypeExt::is_fifo(&kind) {
        bail!("it is not a file or a block device");
    }
    File::open(path).context("cannot open it")
}

/// What begins other formats: where, with what, and how it is called. QEMU's `block/*.c`, where each looks for its own.
const FOREIGN: [(usize, &[u8], &str); 8] = [
    (0, b"KDMV", "VMDK"),
    (0, b"# Disk DescriptorFile", "VMDK"),
    (64, b"\x7f\x10\xda\xbe", "VDI"),
    (0, b"vhdxfile", "VHDX"),
    (0, b"conectix", "VHD"),
    (0, b"QED\0", "QED"),
    (0, b"WithoutFreeSpace", "Parallels"),
    (0, b"WithouFreSpacExt", "Parallels"),
];

fn by_header(file: &File) -> Result<Image> {
    let mut head = [0; 512];
    let have = file.read_at(&mut head, 0).context("read its header")?;
    let head = &head[..have];
    if head.starts_with(&header::MAGIC) {
        return Ok(Image::Qcow2);
    }
    let is = |(at, magic, _): &&(usize, &[u8], &str)| head.get(*at..).is_some_and(|rest| rest.starts_with(magic));
    match FOREIGN.iter().find(is) {
        Some((.., name)) => bail!(
            "it is a {name} image, and only raw and qcow2 are read; make one of it first: qemu-img convert -O qcow2 IMAGE NEW"
        ),
        None => Ok(Image::Raw),
    }
}
