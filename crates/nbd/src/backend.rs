//! The seam between the protocol and whatever stores the data. Nothing in these traits mentions NBD.

use std::io;
use std::os::fd::BorrowedFd;

use keyframe_engine::{Done, Op};

use crate::error::OpenError;

/// An export as it is listed to clients.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Export {
    /// The name that [`Backend::open`] accepts. At most [`MAX_STRING`](crate::limits::MAX_STRING) bytes.
    pub name: String,
    /// Text for people; may be empty.
    pub description: String,
}

/// What a client learns about an export before it uses it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ExportInfo {
    /// Size in bytes, a multiple of 512.
    pub size: u64,
    /// Writes will be refused.
    pub read_only: bool,
    /// A flush on one connection covers what was answered on all of them.
    pub multi_conn: bool,
    /// Text for people; may be empty.
    pub description: String,
}

impl ExportInfo {
    /// Asks an open device.
    pub fn of(device: &impl Device) -> ExportInfo {
        ExportInfo {
            size: device.size(),
            read_only: device.read_only(),
            multi_conn: device.multi_conn(),
            description: device.description().to_owned(),
        }
    }
}

/// Who is at the other end of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Peer {
    /// The process that connected, which the kernel vouches for; only of Unix sockets.
    pub process: Option<u32>,
}

/// Something with named devices.
pub trait Backend: Send + Sync + 'static {
    /// An attached device.
    type Device: Device;
    /// A worker's way to its devices.
    type Queue: Queue<Device = Self::Device>;

    /// All exports that clients may see. Called in a worker thread: must not wait for I/O for long.
    fn list(&self) -> Vec<Export>;

    /// Attaches a device for a client; dropping it detaches. The empty name is the client's wish for a default export.
    fn open(&self, name: &str, peer: Peer) -> Result<Self::Device, OpenError>;

    /// Describes an export to a client that only asks. Override it where attaching is costly or exclusive.
    fn inspect(&self, name: &str) -> Result<ExportInfo, OpenError> {
        self.open(name, Peer::default()).map(|device| ExportInfo::of(&device))
    }

    /// A queue for one worker thread, which calls this itself.
    fn queue(&self) -> io::Result<Self::Queue>;
}

/// An attached device. One connection owns it and drops it after its last request has finished.
pub trait Device: Send {
    /// Size in bytes, a multiple of 512; does not change while attached.
    fn size(&self) -> u64;
    /// Whether writes must be refused.
    fn read_only(&self) -> bool;
    /// Text for people; may be empty.
    fn description(&self) -> &str;
    /// Whether a flush on one connection covers what was answered on all others.
    fn multi_conn(&self) -> bool;
}

/// Requests in, completions out, without waiting. One worker thread owns it.
pub trait Queue {
    /// What requests are for.
    type Device: Device;

    /// Stages a request that is aligned to 512 and inside the device. Each token finishes exactly once, in any order,
    /// and the buffer of a read or write comes back with its length unchanged.
    fn submit(&mut self, device: &Self::Device, token: u64, op: Op);

    /// Starts what is staged and appends what has finished. Called after each batch of [`submit`](Queue::submit)s and
    /// whenever [`event_fd`](Queue::event_fd) is readable, which this call must end unless more can be done.
    fn poll(&mut self, out: &mut Vec<Done>);

    /// Readable when [`poll`](Queue::poll) may make progress; the same descriptor for the queue's life.
    fn event_fd(&self) -> BorrowedFd<'_>;
}
