//! Import: a new volume of the image's size, filled and flushed under the name `NAME.part`, then renamed. An import that
//! fails takes its volume away; one that is killed leaves a volume whose name says that it is not whole.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use keyframe_engine::units::{BLOCK, Bytes};
use keyframe_engine::{Access, Pool};

use super::{qemu, raw};
use crate::ops::{CopyView, Image, Invalid, Sink};

/// First bytes of a qcow2 image.
pub(super) const QCOW2_MAGIC: [u8; 4] = *b"QFI\xfb";

/// Copies the image `path` into the new volume `name`.
pub(crate) fn import(
    pool: &Pool,
    path: &Path,
    name: &str,
    format: Option<Image>,
    sink: &mut Sink<'_>,
) -> Result<CopyView> {
    if !path.is_absolute() {
        return Err(Invalid(format!("{}: paths in requests must be absolute", path.display())).into());
    }
    copy(pool, path, name, format, sink).with_context(|| format!("cannot import {}", path.display()))
}

fn copy(pool: &Pool, path: &Path, name: &str, format: Option<Image>, sink: &mut Sink<'_>) -> Result<CopyView> {
    let file = open(path)?;
    let format = match format {
        Some(format) => format,
        None => by_header(&file)?,
    };
    let size = match format {
        Image::Raw => raw::size(&file)?,
        Image::Qcow2 => qemu::virtual_size(path)?,
    };
    if size == 0 {
        bail!("the image is empty");
    }
    let rounded = size.checked_next_multiple_of(BLOCK).unwrap_or(size);
    // Under its own name first: the engine then refuses a name that is bad or taken before anything is copied.
    pool.create_volume(name, Bytes(rounded))?;
    let part = format!("{name}.part");
    undone_unless_good(pool, name, pool.rename(name, &part).map_err(anyhow::Error::new))?;
    let filled = match format {
        Image::Raw => fill(pool, &file, size, &part, sink),
        Image::Qcow2 => qemu::copy_in(pool, path, &part, sink),
    };
    let whole = filled.and_then(|copied| pool.rename(&part, name).map(|()| copied).map_err(anyhow::Error::new));
    let copied = undone_unless_good(pool, &part, whole)?;
    Ok(CopyView { name: name.to_owned(), size: rounded, copied })
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

fn by_header(file: &File) -> Result<Image> {
    let mut magic = [0; 4];
    match file.read_exact_at(&mut magic, 0) {
        Ok(()) if magic == QCOW2_MAGIC => Ok(Image::Qcow2),
        Ok(()) => Ok(Image::Raw),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(Image::Raw),
        Err(error) => Err(error).context("read its header"),
    }
}

fn fill(pool: &Pool, file: &File, size: u64, name: &str, sink: &mut Sink<'_>) -> Result<u64> {
    let volume = pool.open_volume(name, Access::ReadWrite)?;
    let copied = raw::copy_in(file, size, &volume, sink)?;
    volume.flush()?;
    Ok(copied)
}
