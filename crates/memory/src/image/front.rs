//! What stands beside RAM in an image: whose memory it is, and its devices. Opening it takes no longer for more RAM.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::layout::{self, Form, HEADER, Header, NoHeader, Part};
use crate::error::{Error, ErrorKind, Result};
use crate::stream::{DeviceState, RamBlock};

/// An image of which nothing that grows with RAM has been read. It stays readable when its file is deleted or replaced.
#[derive(Debug)]
pub struct Front {
    pub(crate) file: File,
    pub(crate) path: PathBuf,
    pub(crate) header: Header,
    /// The blocks of RAM, and where each begins in the plain form.
    pub(super) table: Vec<(RamBlock, u64)>,
    metadata: Vec<u8>,
    pub(crate) configuration: Vec<u8>,
    devices: DeviceState,
}

impl Front {
    /// Opens an image and checks what it reads of it: neither RAM nor its checksums.
    pub fn open(path: &Path) -> Result<Front> {
        let file = File::open(path).map_err(|e| Error::io(format!("open {}", path.display()), e))?;
        let length = file.metadata().map_err(|e| Error::io(format!("look at {}", path.display()), e))?.len();
        let not = |kind, what: &str| Error::new(kind, format!("{} {what}", path.display()));
        if length < HEADER as u64 {
            return Err(not(ErrorKind::NotAnImage, "is no memory image"));
        }
        let mut bytes = [0; HEADER];
        file.read_exact_at(&mut bytes, 0).map_err(|e| Error::io(format!("read {}", path.display()), e))?;
        let header = Header::decode(&bytes).map_err(|why| match why {
            NoHeader::OtherFile => not(ErrorKind::NotAnImage, "is no memory image"),
            NoHeader::Newer(v) => not(ErrorKind::NewerFormat, &format!("has the newer format {v} of memory images")),
            NoHeader::Damaged => not(ErrorKind::Corrupt, "has a damaged header"),
        })?;
        let mut front = Front {
            file,
            path: path.to_owned(),
            header,
            table: Vec::new(),
            metadata: Vec::new(),
            configuration: Vec::new(),
            devices: DeviceState { bytes: Vec::new(), sections: 0 },
        };
        for part in layout::PARTS {
            front.check_extent(part, length)?;
        }
        let blocks = front.part(Part::Blocks)?;
        front.table = layout::decode_blocks(&blocks).ok_or_else(|| front.contradicted(Part::Blocks))?;
        front.metadata = front.part(Part::Metadata)?;
        front.configuration = front.part(Part::Configuration)?;
        let (bytes, sections) = (front.part(Part::Devices)?, front.header.device_sections);
        let sections = usize::try_from(sections).unwrap_or(usize::MAX);
        if sections > bytes.len() {
            return Err(front.contradicted(Part::Devices));
        }
        front.devices = DeviceState { bytes, sections };
        Ok(front)
    }

    /// The image's own identity; compressing keeps it.
    pub fn uuid(&self) -> [u8; 16] {
        self.header.uuid
    }

    /// What the caller of [`crate::capture`] wanted to be kept.
    pub fn metadata(&self) -> &[u8] {
        &self.metadata
    }

    /// Whether RAM is compressed.
    pub fn is_compressed(&self) -> bool {
        self.header.form == Form::Compressed
    }

    /// Bytes that the file system has given the file.
    pub fn allocated(&self) -> Result<u64> {
        let about = self.file.metadata().map_err(|e| Error::io(format!("look at {}", self.path.display()), e))?;
        Ok(about.blocks() * 512)
    }

    /// The device state, as it was captured.
    pub fn devices(&self) -> &DeviceState {
        &self.devices
    }

    /// The file the image was opened from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn check_extent(&self, part: Part, length: u64) -> Result<()> {
        let extent = self.header.parts[part as usize];
        let end = extent.offset.checked_add(extent.length);
        if extent.length > part.limit() || end.is_none_or(|end| end > length) {
            return Err(self.damaged(part));
        }
        Ok(())
    }

    /// Reads a part and checks it.
    pub(super) fn part(&self, part: Part) -> Result<Vec<u8>> {
        let extent = self.header.parts[part as usize];
        let mut bytes = vec![0; usize::try_from(extent.length).map_err(|_| self.damaged(part))?];
        let read = self.file.read_exact_at(&mut bytes, extent.offset);
        read.map_err(|e| Error::io(format!("read the {} of {}", part.name(), self.path.display()), e))?;
        if part.checksum(&self.header.uuid, &bytes) != extent.checksum {
            return Err(self.damaged(part));
        }
        Ok(bytes)
    }

    fn damaged(&self, part: Part) -> Error {
        Error::new(ErrorKind::Corrupt, format!("{} has a damaged {}", self.path.display(), part.name()))
    }

    pub(super) fn contradicted(&self, part: Part) -> Error {
        let message = format!("{} has a {} that contradicts it", self.path.display(), part.name());
        Error::new(ErrorKind::Corrupt, message)
    }
}
