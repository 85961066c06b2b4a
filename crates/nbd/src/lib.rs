//! Server side of the NBD protocol over queues of the engine's shape.
//!
//! The crate knows the wire format and sockets. It knows no pool, no volume name and no configuration file: whoever
//! serves devices implements [`Backend`]. [`handshake`] and [`transmission`] are pure (bytes in, decisions and bytes out);
//! sockets and threads are in the private modules below [`Server`].
//!
//! References such as "Option types" in comments name sections of the NBD protocol document,
//! <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>.

mod backend;
mod connection;
mod error;
mod events;
pub mod gate;
mod gated;
pub mod handshake;
mod inbox;
mod lane;
pub mod limits;
mod listener;
pub mod memory;
mod option;
mod outbox;
mod pool;
mod reply;
mod server;
mod slots;
pub mod transmission;
mod wire;
mod worker;

pub use backend::{Backend, Device, Export, ExportInfo, Peer, Queue};
pub use error::{Errno, OpenError, Refusal, ServerError};
pub use gated::{Gated, GatedDevice, GatedQueue};
pub use listener::{Address, Listener};
pub use server::{Config, Server};
