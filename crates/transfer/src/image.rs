//! What copies are told and what they tell.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Formats of disk images.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Image {
    /// The bytes of the disk.
    Raw,
    /// QEMU's format.
    Qcow2,
}

/// What makes an export the difference to an image that exists already.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Overlay {
    /// The target that the backing image holds.
    pub from: String,
    /// Name of the backing image, as it is recorded.
    pub backing: PathBuf,
    /// Its format.
    pub backing_format: Image,
}

/// The end of an import or export.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Copied {
    /// The volume or the file that was made.
    pub name: String,
    /// Bytes of the disk.
    pub size: u64,
    /// Bytes stored; the rest reads as zeroes or comes from the backing image.
    pub copied: u64,
}

/// A request that contradicts itself, found before the engine was asked.
#[derive(Debug)]
pub struct Invalid(pub String);

impl std::fmt::Display for Invalid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Invalid {}
