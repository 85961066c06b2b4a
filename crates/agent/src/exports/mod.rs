//! The one NBD server of the agent: the volumes of all arrays behind write gates, so that an instant can be taken through
//! volumes of any of them. An export is called `array/volume`, and has no other name, because gates go by names.
//!
//! `blocks` is the seam to the arrays, `router` finds the array by the export's name, `fence` keeps all but one process from
//! a volume that can be written.

mod blocks;
mod fence;
mod router;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use keyframe_agent_api::{Fault, FaultKind, VolumeRef};
use keyframe_nbd::gate::{GateSet, Gates};
use keyframe_nbd::{Config, Gated, Listener, Server};
use parking_lot::Mutex;

pub use blocks::{Block, BlockLane, Blocks, Erased};

use self::fence::Fence;
use crate::Result;
use crate::array::Arrays;
use crate::fault::chain;
use crate::hypervisor::BlockAddress;

/// The server and its gates.
pub struct Exports {
    socket: PathBuf,
    gates: Gates,
    fence: Arc<Fence>,
    server: Mutex<Option<Server>>,
}

impl Exports {
    /// Serves all volumes of the arrays on a Unix socket that only this user may open.
    pub fn start(arrays: &Arrays, socket: &Path) -> Result<Exports> {
        let failed = |error: &dyn std::error::Error| Fault::new(FaultKind::Internal, chain(error));
        let gates = Gates::new();
        let listener = Listener::unix(socket).map_err(|error| failed(&error))?;
        crate::fs::set_private(socket)?;
        let fence = Arc::new(Fence::default());
        let backend = Gated::new(router::Router::new(arrays, &fence), &gates);
        let server = Server::start(backend, vec![listener], &Config::default()).map_err(|error| failed(&error))?;
        Ok(Exports { socket: socket.to_owned(), gates, fence, server: Mutex::new(Some(server)) })
    }

    /// Where a hypervisor finds a volume.
    pub fn address(&self, volume: &VolumeRef) -> BlockAddress {
        BlockAddress { socket: self.socket.clone(), export: volume.to_string() }
    }

    /// The gates of some volumes.
    pub fn gates(&self, volumes: &[VolumeRef]) -> GateSet {
        self.gates.set(volumes.iter().map(VolumeRef::to_string))
    }

    /// Waits until nobody can write to these volumes: a process that has ended is noticed a moment later.
    ///
    /// # Errors
    ///
    /// `Busy`, with who it is, if somebody still can after `patience`.
    pub fn wait_until_free(&self, volumes: &[VolumeRef], patience: Duration) -> Result<()> {
        let until = Instant::now() + patience;
        volumes.iter().try_for_each(|volume| self.fence.wait_until_free(&volume.to_string(), until))
    }

    /// Takes all volumes from a process that is ending: when this returns, nothing of it can reach them any more.
    ///
    /// # Errors
    ///
    /// `Busy` if requests of it are still under way after `patience`.
    pub fn take_from(&self, process: u32, patience: Duration) -> Result<()> {
        if let Some(server) = &*self.server.lock() {
            server.hang_up(process);
        }
        self.fence.wait_until_gone(process, Instant::now() + patience)
    }

    /// Answers what is running and closes all connections; the clients wait until a server is there again.
    pub fn stop(&self) -> Result<()> {
        match self.server.lock().take() {
            Some(server) => server.stop().map_err(|error| Fault::new(FaultKind::Internal, chain(&error))),
            None => Ok(()),
        }
    }
}
