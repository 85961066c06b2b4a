//! What the pool tells about itself and its versions.

use std::path::PathBuf;
use std::time::Duration;

use crate::request::ExtentKind;
use crate::units::Bytes;

/// A pool as a whole.
#[derive(Clone, Debug)]
pub struct PoolInfo {
    /// Where it lies.
    pub path: PathBuf,
    /// Its identity, as 32 hexadecimal digits.
    pub uuid: String,
    /// Seconds since the Unix epoch.
    pub created: u64,
    /// Its size.
    pub size: Bytes,
    /// Blocks with anything in them, metadata and fixed structures included.
    pub used: Bytes,
    /// What guests may still fill.
    pub free: Bytes,
    /// Kept back for deleting and checkpoints.
    pub reserve: Bytes,
    /// Freed, but not yet durable or still being read.
    pub pending: Bytes,
    /// Volumes.
    pub volumes: u64,
    /// Snapshots of all volumes.
    pub snapshots: u64,
    /// Deleted versions whose blocks are not all reclaimed yet.
    pub ghosts: u64,
    /// Checkpoints so far.
    pub checkpoints: u64,
    /// How full the journal is, in percent.
    pub journal_percent: u64,
    /// Metadata pages in memory, and how many of them no checkpoint has written yet.
    pub cached_pages: u64,
    /// See `cached_pages`.
    pub dirty_pages: u64,
    /// Why the pool takes no more changes, if so.
    pub stopped: Option<String>,
    /// A superblock copy was found damaged when the pool was opened.
    pub damaged_superblock: Option<u8>,
}

/// What a version is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum VersionKind {
    /// The writable state of a volume.
    Head,
    /// A frozen state.
    Snapshot,
    /// A deleted state on which others still depend.
    Ghost,
}

/// One version.
#[derive(Clone, Debug)]
pub struct VersionInfo {
    /// `volume` or `volume@snapshot`; of ghosts their number.
    pub name: String,
    /// What it is.
    pub kind: VersionKind,
    /// Size of the volume.
    pub size: Bytes,
    /// Data it refers to.
    pub referenced: Bytes,
    /// Of that, what was written since its parent was frozen.
    pub written: Bytes,
    /// Seconds since the Unix epoch.
    pub created: u64,
    /// Name of the version it came from.
    pub parent: Option<String>,
    /// Open handles.
    pub attached: u32,
    /// Versions that came from it.
    pub children: u32,
    /// Snapshots of the volume, for a head.
    pub snapshots: u32,
}

/// A family of versions as a tree.
#[derive(Clone, Debug)]
pub struct TreeNode {
    /// The version.
    pub info: VersionInfo,
    /// What came from it.
    pub children: Vec<TreeNode>,
}

impl Drop for TreeNode {
    /// Without recursion: a chain of snapshots is as deep as it is long.
    fn drop(&mut self) {
        let mut nodes = std::mem::take(&mut self.children);
        while let Some(mut node) = nodes.pop() {
            nodes.append(&mut node.children);
        }
    }
}

/// What a version holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpaceInfo {
    /// Data it refers to.
    pub referenced: Bytes,
    /// Of that, what no other version refers to.
    pub unique: Bytes,
    /// Of that, what others refer to as well.
    pub shared: Bytes,
    /// What deleting it would free: its unique data.
    pub would_free: Bytes,
}

/// A range that differs between two versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiffExtent {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// How the newer version stores it.
    pub kind: ExtentKind,
}

/// How a snapshot went.
#[derive(Clone, Copy, Debug)]
pub struct SnapshotReport {
    /// How long guest I/O could not proceed.
    pub held: Duration,
    /// Until the snapshot was durable.
    pub total: Duration,
}

/// What a check or scrub found.
#[derive(Clone, Debug, Default)]
pub struct CheckReport {
    /// What is wrong, one sentence each; empty for a sound pool.
    pub errors: Vec<String>,
    /// Errors beyond the ones listed.
    pub more_errors: u64,
    /// Data blocks whose checksums were compared.
    pub data_blocks: u64,
    /// Metadata pages whose checksums were compared.
    pub metadata_pages: u64,
    /// Versions walked.
    pub versions: u64,
}

impl CheckReport {
    /// Errors listed at most.
    const LIMIT: usize = 200;

    /// Nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.errors.is_empty()
    }

    pub(crate) fn error(&mut self, text: String) {
        if self.errors.len() < Self::LIMIT {
            self.errors.push(text);
        } else {
            self.more_errors += 1;
        }
    }
}
