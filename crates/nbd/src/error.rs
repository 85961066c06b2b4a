//! Errors: what a client is told (one table from the engine's kinds), why an export does not open, why a server does not
//! start. Detail of an engine error never goes over the wire; the backend reports it on its side.

use std::io;

use keyframe_engine::ErrorKind;

/// Error numbers of the protocol ("Error values"). They are not the host's `errno`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Errno {
    /// `NBD_EPERM`
    Perm = 1,
    /// `NBD_EIO`
    Io = 5,
    /// `NBD_EINVAL`
    Inval = 22,
    /// `NBD_ENOSPC`
    NoSpc = 28,
    /// `NBD_EOVERFLOW`
    Overflow = 75,
    /// `NBD_ENOTSUP`
    NotSup = 95,
    /// `NBD_ESHUTDOWN`
    Shutdown = 108,
}

impl Errno {
    /// The number on the wire.
    pub fn code(self) -> u32 {
        self as u32
    }
}

/// A request that is answered with an error: the number, and a sentence where the client negotiated room for one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// For the client's code.
    pub errno: Errno,
    /// For the client's user.
    pub message: &'static str,
}

impl Refusal {
    pub(crate) const fn new(errno: Errno, message: &'static str) -> Refusal {
        Refusal { errno, message }
    }
}

impl From<ErrorKind> for Refusal {
    /// The one table from engine failures to the wire.
    fn from(kind: ErrorKind) -> Refusal {
        match kind {
            ErrorKind::NoSpace => Refusal::new(Errno::NoSpc, "no space left in the pool"),
            ErrorKind::ReadOnly => Refusal::new(Errno::Perm, "the export is read-only"),
            ErrorKind::OutOfBounds => Refusal::new(Errno::Inval, "the range lies outside the export"),
            ErrorKind::Invalid => Refusal::new(Errno::Inval, "invalid request"),
            ErrorKind::Corrupt => Refusal::new(Errno::Io, "stored data failed verification"),
            ErrorKind::Io => Refusal::new(Errno::Io, "input/output error"),
            ErrorKind::Poisoned => Refusal::new(Errno::Io, "the pool stopped after a failed write"),
            ErrorKind::NotFound
            | ErrorKind::Exists
            | ErrorKind::InUse
            | ErrorKind::Locked
            | ErrorKind::HasDependants
            | ErrorKind::NotAPool
            | ErrorKind::NewerFormat => Refusal::new(Errno::Io, "the device is not available"),
        }
    }
}

/// Why an export cannot be opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum OpenError {
    /// There is no export of that name.
    #[error("no such export")]
    Unknown,
    /// The export is in use in a way that excludes this client.
    #[error("the export is in use")]
    Busy,
    /// The export exists but cannot be attached; the backend has reported why.
    #[error("the export cannot be attached")]
    Failed,
}

/// Why a server does not start, or did not stop cleanly.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The listening socket cannot be made.
    #[error("listen on {address}")]
    Listen {
        /// What was to be listened on.
        address: String,
        /// The system's reason.
        source: io::Error,
    },
    /// A descriptor, a thread or a backend queue cannot be made.
    #[error("set up the {what}")]
    Setup {
        /// The missing part.
        what: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// A server thread failed while it ran.
    #[error("the {what} failed")]
    Thread {
        /// Which thread.
        what: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// A server thread panicked: a bug.
    #[error("the {what} panicked")]
    Panicked {
        /// Which thread.
        what: &'static str,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engine_kinds_become_protocol_numbers() {
        let check = |kind: ErrorKind, number: u32| assert_eq!(Refusal::from(kind).errno.code(), number, "{kind:?}");
        check(ErrorKind::NoSpace, 28);
        check(ErrorKind::ReadOnly, 1);
        check(ErrorKind::OutOfBounds, 22);
        check(ErrorKind::Invalid, 22);
        check(ErrorKind::Poisoned, 5);
        check(ErrorKind::Corrupt, 5);
        check(ErrorKind::Io, 5);
        check(ErrorKind::NotFound, 5);
        check(ErrorKind::InUse, 5);
    }
}
