//! Keyframe's block engine: volumes that can be snapshotted, cloned, reverted and deleted at any node, in one pool.
//!
//! The engine knows blocks and versions. It knows no virtual machine, no network protocol and no async runtime.
//! `ARCHITECTURE.md` has the map, `docs/format.md` the byte layout.

mod buf;
mod cache;
mod check;
mod checkpoint;
mod core;
mod create;
pub mod device;
mod disk;
mod error;
mod family;
mod info;
mod journal;
mod keeper;
mod pool;
mod queue;
mod recovery;
mod request;
mod shared;
mod space;
mod trim;
pub mod units;
mod volume;

pub use buf::IoBuf;
pub use check::{check, check_on};
pub use core::PlantedBug;
pub use create::{CreateOptions, Preallocation};
pub use device::IoMode;
pub use error::{Error, ErrorKind, Result};
pub use info::{CheckReport, DiffExtent, PoolInfo, SnapshotReport, SpaceInfo, TreeNode, VersionInfo, VersionKind};
pub use pool::{OpenOptions, Pool};
pub use queue::Queue;
pub use request::{Done, Extent, ExtentKind, Op};
pub use volume::{Access, Volume, round_size};
