//! Export: an image made beside its final name, and put there only when it is complete and on disk.

use std::fs::{File, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, Result, bail};
use keyframe_engine::units::BLOCK;
use keyframe_engine::{Access, ExtentKind, Pool, Volume};
use tempfile::NamedTempFile;

use super::CHUNK;
use super::qcow2::{Backing, CLUSTER, MAX_BACKING, Writer};
use super::zero::{each_run, is_zero};
use crate::{Copied, Image, Invalid, Overlay, Progress};

/// Bytes whose allocation is asked for at once.
const STATUS: u64 = 1 << 30;

/// Copies `target` into the new image `path`; with an overlay only what changed since its base.
pub fn export(
    pool: &Pool,
    target: &str,
    path: &Path,
    format: Image,
    overlay: Option<&Overlay>,
    progress: &mut Progress<'_>,
) -> Result<Copied> {
    if !path.is_absolute() {
        return Err(Invalid(format!("{}: paths in requests must be absolute", path.display())).into());
    }
    if overlay.is_some() && format == Image::Raw {
        return Err(Invalid("a raw image cannot hold a difference; use the format qcow2".into()).into());
    }
    copy(pool, target, path, format, overlay, progress).with_context(|| format!("cannot export {target}"))
}

fn copy(
    pool: &Pool,
    target: &str,
    path: &Path,
    format: Image,
    overlay: Option<&Overlay>,
    progress: &mut Progress<'_>,
) -> Result<Copied> {
    if let Some(overlay) = overlay {
        check_backing(overlay)?;
    }
    let volume = open_quiet(pool, target)?;
    let image = beside(path)?;
    let copied = match (format, overlay) {
        (Image::Raw, _) => raw(&volume, image.as_file(), progress),
        (Image::Qcow2, None) => full_qcow2(&volume, image.as_file(), progress),
        (Image::Qcow2, Some(overlay)) => overlay_qcow2(pool, &volume, image.as_file(), overlay, progress),
    }?;
    image.as_file().sync_all().with_context(|| format!("write {}", path.display()))?;
    match image.persist_noclobber(path) {
        Ok(_) => {}
        Err(refused) if refused.error.kind() == std::io::ErrorKind::AlreadyExists => return Err(taken(path)),
        Err(refused) => return Err(refused.error).with_context(|| format!("make {}", path.display())),
    }
    Ok(Copied { name: path.display().to_string(), size: volume.size().0, copied })
}

fn check_backing(overlay: &Overlay) -> Result<()> {
    let name = overlay.backing.as_os_str().as_bytes();
    if name.is_empty() || name.len() > MAX_BACKING {
        return Err(Invalid(format!("the backing image's name must have 1 to {MAX_BACKING} bytes")).into());
    }
    Ok(())
}

/// A copy of something that changes meanwhile would be of no instant at all.
fn open_quiet(pool: &Pool, target: &str) -> Result<Volume> {
    let users = pool.show(target)?.attached;
    if users > 0 && !target.contains('@') {
        bail!("it is in use; take a snapshot and export that");
    }
    Ok(pool.open_volume(target, Access::ReadOnly)?)
}

fn taken(path: &Path) -> anyhow::Error {
    anyhow::anyhow!("{} exists already; choose another name or remove it first", path.display())
}

/// A file that becomes `path` when it is done, readable for whom the umask allows.
fn beside(path: &Path) -> Result<NamedTempFile> {
    if path.symlink_metadata().is_ok() {
        return Err(taken(path));
    }
    let folder = path.parent().unwrap_or(Path::new("/"));
    let mut builder = tempfile::Builder::new();
    builder.prefix(".keyframe-export-").permissions(Permissions::from_mode(0o666));
    builder.tempfile_in(folder).with_context(|| format!("cannot make a file in {}", folder.display()))
}

/// Calls with each stored piece of the volume, at most [`CHUNK`] long, never across a multiple of it.
fn each_stored(
    volume: &Volume,
    progress: &mut Progress<'_>,
    mut visit: impl FnMut(u64, u64) -> Result<()>,
) -> Result<()> {
    let size = volume.size().0;
    let mut at = 0;
    while at < size {
        let extents = volume.status(at, STATUS.min(size - at))?;
        let Some(last) = extents.last() else { bail!("the pool describes nothing at {at}") };
        let end = last.offset + last.len;
        for extent in extents.iter().filter(|extent| extent.kind == ExtentKind::Data) {
            let (mut offset, end) = (extent.offset, extent.offset + extent.len);
            while offset < end {
                let len = (end - offset).min(CHUNK - offset % CHUNK);
                visit(offset, len)?;
                offset += len;
                progress(offset, size)?;
            }
        }
        at = end;
        progress(at, size)?;
    }
    Ok(())
}

fn raw(volume: &Volume, file: &File, progress: &mut Progress<'_>) -> Result<u64> {
    file.set_len(volume.size().0).context("set the image's size")?;
    let mut buffer = vec![0; CHUNK as usize];
    let mut copied = 0;
    each_stored(volume, progress, |offset, len| {
        let piece = &mut buffer[..len as usize];
        volume.read_at(piece, offset)?;
        each_run(piece, BLOCK as usize, |run| {
            copied += run.len() as u64;
            file.write_all_at(&piece[run.clone()], offset + run.start as u64)
        })
        .context("write the image")
    })?;
    Ok(copied)
}

fn full_qcow2(volume: &Volume, file: &File, progress: &mut Progress<'_>) -> Result<u64> {
    let mut clusters = Clusters::new(volume, file);
    each_stored(volume, progress, |offset, len| {
        for index in offset / CLUSTER..(offset + len).div_ceil(CLUSTER) {
            clusters.copy(index, Absent::Leave)?;
        }
        Ok(())
    })?;
    clusters.finish(None)
}

/// The difference is walked before the first cluster is copied, so that there is a total to report.
fn overlay_qcow2(
    pool: &Pool,
    volume: &Volume,
    file: &File,
    overlay: &Overlay,
    progress: &mut Progress<'_>,
) -> Result<u64> {
    let mut ranges: Vec<std::ops::Range<u64>> = Vec::new();
    pool.diff(Some(&overlay.from), volume.name(), &mut |extent| {
        let (start, end) = (extent.offset / CLUSTER, (extent.offset + extent.len).div_ceil(CLUSTER));
        match ranges.last_mut() {
            Some(last) if start <= last.end => last.end = last.end.max(end),
            _ => ranges.push(start..end),
        }
        Ok(())
    })?;
    let total = ranges.iter().map(|range| range.end - range.start).sum();
    let mut clusters = Clusters::new(volume, file);
    for (done, index) in (1..).zip(ranges.into_iter().flatten()) {
        clusters.copy(index, Absent::Mark)?;
        progress(done, total)?;
    }
    let format = match overlay.backing_format {
        Image::Raw => "raw",
        Image::Qcow2 => "qcow2",
    };
    clusters.finish(Some(&Backing { name: overlay.backing.as_os_str().as_bytes(), format }))
}

/// What an all-zero cluster becomes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Absent {
    /// Nothing is below: it is left out.
    Leave,
    /// Something is below: zeroes are recorded.
    Mark,
}

/// Copies clusters of a volume into a qcow2 image, in ascending order, each once.
struct Clusters<'a> {
    volume: &'a Volume,
    writer: Writer<'a>,
    next: u64,
    buffer: Vec<u8>,
    copied: u64,
}

impl<'a> Clusters<'a> {
    fn new(volume: &'a Volume, file: &'a File) -> Clusters<'a> {
        let writer = Writer::new(file, volume.size().0);
        Clusters { volume, writer, next: 0, buffer: vec![0; CLUSTER as usize], copied: 0 }
    }

    fn copy(&mut self, index: u64, absent: Absent) -> Result<()> {
        let offset = index * CLUSTER;
        let size = self.volume.size().0;
        if index < self.next || offset >= size {
            return Ok(());
        }
        self.next = index + 1;
        let len = CLUSTER.min(size - offset) as usize;
        self.volume.read_at(&mut self.buffer[..len], offset)?;
        self.buffer[len..].fill(0);
        match (is_zero(&self.buffer), absent) {
            (true, Absent::Leave) => Ok(()),
            (true, Absent::Mark) => self.writer.zero(index).context("write the image"),
            (false, _) => {
                self.copied += len as u64;
                self.writer.data(index, &self.buffer).context("write the image")
            }
        }
    }

    fn finish(self, backing: Option<&Backing<'_>>) -> Result<u64> {
        self.writer.finish(backing).context("write the image")?;
        Ok(self.copied)
    }
}
