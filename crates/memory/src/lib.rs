//! Memory of virtual machines: taken from a running QEMU, kept in a file, given back to a new QEMU page by page.
//!
//! ```text
//!  QEMU ──background-snapshot──▶ stream ──▶ image ──▶ serve ──post-copy──▶ QEMU, running before its memory is there
//!                              (capture)      │
//!                                             └─────▶ replay ──plain stream──▶ QEMU, running when its memory is there
//! ```
//!
//! A program calls [`capture`] to make an image, [`serve::Ready`] or [`replay`] to give it back, and [`compress`] to make it
//! small. Everything blocks; the only threads are those of the page server. Knows no QMP: the caller tells QEMU when to
//! send and when to listen. Why it is done this way is in `docs/design/0008-memory-images.md`, the bytes of an image are
//! in `docs/memory-format.md`.

mod capture;
mod error;
mod image;
mod replay;
pub mod serve;
pub mod stream;
mod wire;

pub use capture::{Captured, capture, capture_and_decline};
pub use error::{Error, ErrorKind, Result};
pub use image::compress::{Compressed, compress};
pub use image::{Block, Front, Image};
pub use replay::replay;

/// Bytes of a page: of the guest, of the host, and of everything between.
pub const PAGE: usize = 4096;

/// How far a long operation has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Progress {
    /// Pages done.
    pub done: u64,
    /// Pages there are; while capturing it counts zero pages too, elsewhere only those that hold something.
    pub total: u64,
    /// Pages the guest waited for, so far.
    pub requested: u64,
}

/// One page of guest memory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct PageAt {
    /// Which block, in the order of the stream.
    pub block: usize,
    /// Which page of the block.
    pub page: u64,
}
