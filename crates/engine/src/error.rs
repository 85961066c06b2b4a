//! The engine's one error type: a kind to match on, a sentence that names the object and the way out, and the cause.

use std::{fmt, io};

/// Result of engine calls.
pub type Result<T> = std::result::Result<T, Error>;

/// What sort of failure it is; callers match on this, never on the text.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum ErrorKind {
    /// No volume, snapshot or pool of that name.
    NotFound,
    /// The name is taken.
    Exists,
    /// A name, size or option outside what is allowed.
    Invalid,
    /// The object is attached, exported or otherwise in use.
    InUse,
    /// Another process holds the pool.
    Locked,
    /// The object has dependants that the caller did not agree to touch.
    HasDependants,
    /// No space left for this operation.
    NoSpace,
    /// The target cannot be written.
    ReadOnly,
    /// The offset and length lie outside the volume.
    OutOfBounds,
    /// The backing file is not a pool.
    NotAPool,
    /// The pool was written by a newer version of the format.
    NewerFormat,
    /// Stored bytes do not match their checksum or contradict each other.
    Corrupt,
    /// The operating system failed a read, write or sync.
    Io,
    /// An earlier failed write stopped the pool; reopen it to go on.
    Poisoned,
}

/// An engine error. `Display` does not repeat the source: print the chain.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    source: Option<io::Error>,
}

impl Error {
    /// An error of that kind. Outside this crate for those who answer requests of its shape for other storage.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Error {
        Error { kind, message: message.into(), source: None }
    }

    pub(crate) fn io(message: impl Into<String>, source: io::Error) -> Error {
        let kind = match source.raw_os_error() {
            Some(libc::ENOSPC) | Some(libc::EDQUOT) => ErrorKind::NoSpace,
            _ => ErrorKind::Io,
        };
        Error { kind, message: message.into(), source: Some(source) }
    }

    /// The kind to match on.
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
