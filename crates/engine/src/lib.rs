//! Keyframe's block engine: volumes that can be snapshotted, cloned, reverted and deleted at any node, in one pool.
//!
//! The engine knows blocks and versions. It knows no virtual machine, no network protocol and no async runtime.

mod buf;
mod error;
mod request;
pub mod units;

pub use buf::IoBuf;
pub use error::{Error, ErrorKind, Result};
pub use request::{Done, Extent, ExtentKind, Op};
