//! Where clients connect: Unix sockets and TCP, bound before the server starts, so that a caller may set permissions and
//! learn an ephemeral port first.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::net::{AddressFamily, SocketFlags, accept_with, sockopt};

use crate::backend::Peer;
use crate::error::ServerError;
use crate::limits::KEEPALIVE;

/// Where a listener is bound.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Address {
    /// A path in the file system.
    Unix(PathBuf),
    /// An address and port.
    Tcp(SocketAddr),
}

/// A bound, listening socket. Dropping the listener of a Unix path removes the path.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
    address: Address,
}

impl Listener {
    /// Listens on a Unix socket. A path left by a process that is gone is replaced; one that answers is not.
    pub fn unix(path: impl Into<PathBuf>) -> Result<Listener, ServerError> {
        let path = path.into();
        let bind = || match UnixListener::bind(&path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_stale(&path) => {
                std::fs::remove_file(&path)?;
                UnixListener::bind(&path)
            }
            result => result,
        };
        match bind().and_then(|listener| listener.set_nonblocking(true).map(|()| listener)) {
            Ok(listener) => Ok(Listener { socket: listener.into(), address: Address::Unix(path) }),
            Err(source) => Err(ServerError::Listen { address: path.display().to_string(), source }),
        }
    }

    /// Listens on TCP; port 0 takes a free one, see [`Listener::address`].
    pub fn tcp(address: SocketAddr) -> Result<Listener, ServerError> {
        let bind = || {
            let listener = TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            let address = Address::Tcp(listener.local_addr()?);
            Ok(Listener { socket: listener.into(), address })
        };
        bind().map_err(|source| ServerError::Listen { address: address.to_string(), source })
    }

    /// Where it is bound.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// The next waiting client, with its socket set up.
    pub(crate) fn accept(&self) -> rustix::io::Result<OwnedFd> {
        let socket = accept_with(&self.socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
        if let Address::Tcp(_) = self.address {
            let (idle, interval, probes) = KEEPALIVE;
            sockopt::set_tcp_nodelay(&socket, true)?;
            sockopt::set_socket_keepalive(&socket, true)?;
            sockopt::set_tcp_keepidle(&socket, idle)?;
            sockopt::set_tcp_keepintvl(&socket, interval)?;
            sockopt::set_tcp_keepcnt(&socket, probes)?;
        }
        Ok(socket)
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Address::Unix(path) = &self.address {
            // Already gone, or somebody else's business now: either way nothing to do about it here.
            std::fs::remove_file(path).unwrap_or(());
        }
    }
}

/// Who has connected. The number is that of the process which did, whoever has inherited the socket since.
pub(crate) fn peer_of(socket: &OwnedFd) -> Peer {
    let is_unix = sockopt::socket_domain(socket) == Ok(AddressFamily::UNIX);
    let found = is_unix.then(|| sockopt::socket_peercred(socket).ok()).flatten();
    Peer { process: found.map(|found| found.pid.as_raw_nonzero().get().cast_unsigned()) }
}

fn is_stale(path: &Path) -> bool {
    // Connecting to a file that is no socket is refused in the same way.
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket());
    is_socket && matches!(UnixStream::connect(path), Err(error) if error.kind() == io::ErrorKind::ConnectionRefused)
}
