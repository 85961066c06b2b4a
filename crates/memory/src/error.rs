//! The crate's one error type: a kind to match on, a sentence that names the object, and the cause.

use std::{fmt, io};

use rustix::io::Errno;

/// Result of this crate's calls.
pub type Result<T> = std::result::Result<T, Error>;

/// What sort of failure it is; callers match on this, never on the text.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum ErrorKind {
    /// The file system of the image is full, or a quota is.
    NoSpace,
    /// The operating system failed a read, write or sync.
    Io,
    /// The migration stream is cut short or contradicts itself.
    BadStream,
    /// The migration stream is in order, but of a sort that is not understood.
    Unsupported,
    /// The file is not a (complete) memory image.
    NotAnImage,
    /// The image was written by a newer version of the format.
    NewerFormat,
    /// Stored bytes do not match their checksum or contradict each other.
    Corrupt,
    /// QEMU went away, or was never there.
    PeerGone,
    /// Whoever asked for it has given it up.
    Cancelled,
    /// QEMU answered with something else than what was agreed, or said that loading failed.
    Refused,
}

/// An error. `Display` does not repeat the source: print the chain.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    source: Option<io::Error>,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Error {
        Error { kind, message: message.into(), source: None }
    }

    /// A failure of the operating system on a file.
    pub(crate) fn io(message: impl Into<String>, source: io::Error) -> Error {
        let full = [Errno::NOSPC, Errno::DQUOT].map(|e| Some(e.raw_os_error())).contains(&source.raw_os_error());
        let kind = if full { ErrorKind::NoSpace } else { ErrorKind::Io };
        Error { kind, message: message.into(), source: Some(source) }
    }

    /// A failure of the operating system on the connection to QEMU.
    pub(crate) fn peer(message: impl Into<String>, source: io::Error) -> Error {
        Error { kind: ErrorKind::PeerGone, message: message.into(), source: Some(source) }
    }

    /// What sort of failure it is.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|e| e as _)
    }
}
