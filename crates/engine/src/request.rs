//! What a volume can be asked, and what comes back.

use crate::buf::IoBuf;
use crate::error::Error;

/// One request to a volume. Offsets and lengths are bytes, multiples of 512; buffers travel with the request.
#[derive(Debug)]
pub enum Op {
    /// Fill `buf` (its length is the request's) from `offset`.
    Read {
        /// First byte.
        offset: u64,
        /// Receives the data and comes back in [`Done::buf`].
        buf: IoBuf,
    },
    /// Store `buf` at `offset`; with `fua` the reply waits until it is durable.
    Write {
        /// First byte.
        offset: u64,
        /// The data; comes back in [`Done::buf`] for reuse.
        buf: IoBuf,
        /// Force unit access.
        fua: bool,
    },
    /// Drop the range: it reads as zeroes and holds no space.
    Discard {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// Force unit access.
        fua: bool,
    },
    /// Make the range read as zeroes. With `no_hole` it is reported as zeroes rather than as a hole. Neither holds space: in a
    /// pool that never overwrites in place, nothing stored today pays for a write tomorrow.
    WriteZeroes {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// Report zeroes instead of a hole.
        no_hole: bool,
        /// Force unit access.
        fua: bool,
    },
    /// Everything answered before this was submitted is durable when it is answered.
    Flush,
    /// Describe the allocation of the range, in order, without gaps; may stop early after `max` extents.
    Status {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// Most extents to return, at least 1.
        max: usize,
    },
}

/// How a range of a volume is stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ExtentKind {
    /// Stored data.
    Data,
    /// Explicitly zero; reads as zeroes.
    Zero,
    /// Discarded or never written; reads as zeroes.
    Hole,
}

/// A run of blocks stored the same way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// First byte.
    pub offset: u64,
    /// Bytes, never 0.
    pub len: u64,
    /// How it is stored.
    pub kind: ExtentKind,
}

/// The answer to one submitted request.
#[derive(Debug)]
pub struct Done {
    /// The token given at submission.
    pub token: u64,
    /// Success or the reason of failure; after an error nothing is known about the range of a write.
    pub result: Result<(), Error>,
    /// The request's buffer, for reads and writes.
    pub buf: Option<IoBuf>,
    /// The answer to [`Op::Status`].
    pub extents: Vec<Extent>,
}
