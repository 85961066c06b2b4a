//! One process at a time has a volume that can be written, whoever comes through the exports' door.
//!
//! Whoever is first has it, over any number of connections, until the last request on the last of them has finished; others
//! are refused. So two hypervisors never write to one disk, whatever anybody believes of them, and one that has ended is in
//! nobody's way: its connections have ended with it, or are taken from it while the kernel still clears its memory away. Which
//! process it is says the kernel. Only reading is no way in either, because no client says that it will not write; snapshots are
//! there for that.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use keyframe_agent_api::{Fault, FaultKind};
use keyframe_nbd::{OpenError, Peer};
use parking_lot::{Condvar, Mutex};

use crate::Result;

/// Who has which volume.
#[derive(Default)]
pub(super) struct Fence {
    holders: Mutex<HashMap<String, Holder>>,
    /// Somebody has let go of a volume.
    free: Condvar,
}

struct Holder {
    peer: Peer,
    connections: usize,
}

/// A connection inside the fence.
pub(super) struct Entered {
    fence: Arc<Fence>,
    export: String,
}

impl Fence {
    /// Lets a connection in, unless another process has the volume.
    pub(super) fn enter(self: &Arc<Fence>, export: &str, peer: Peer) -> std::result::Result<Entered, OpenError> {
        let mut holders = self.holders.lock();
        match holders.get_mut(export) {
            Some(holder) if holder.peer.process.is_some() && holder.peer == peer => holder.connections += 1,
            Some(holder) => {
                let (has, wants) = (name(holder.peer), name(peer));
                tracing::warn!("{has} has volume {export}; {wants} is refused");
                return Err(OpenError::Busy);
            }
            None => drop(holders.insert(export.to_owned(), Holder { peer, connections: 1 })),
        }
        Ok(Entered { fence: Arc::clone(self), export: export.to_owned() })
    }

    /// Waits until nobody has the volume.
    pub(super) fn wait_until_free(&self, export: &str, until: Instant) -> Result<()> {
        let mut holders = self.holders.lock();
        while let Some(holder) = holders.get(export) {
            let has = name(holder.peer);
            if self.free.wait_until(&mut holders, until).timed_out() && holders.contains_key(export) {
                let why = format!("volume {export}: {has} is connected to it and can write to it; end that first");
                return Err(Fault::new(FaultKind::Busy, why));
            }
        }
        Ok(())
    }

    /// Waits until that process has no volume.
    pub(super) fn wait_until_gone(&self, process: u32, until: Instant) -> Result<()> {
        let mut holders = self.holders.lock();
        loop {
            let held = holders.iter().find(|(_, holder)| holder.peer.process == Some(process));
            let Some((export, holder)) = held else { return Ok(()) };
            let why = format!(
                "volume {export}: what {} has asked of it is not done yet; try again in a moment",
                name(holder.peer)
            );
            if self.free.wait_until(&mut holders, until).timed_out() {
                return Err(Fault::new(FaultKind::Busy, why));
            }
        }
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let mut holders = self.fence.holders.lock();
        if let Some(holder) = holders.get_mut(&self.export) {
            holder.connections -= 1;
            if holder.connections == 0 {
                holders.remove(&self.export);
                self.fence.free.notify_all();
            }
        }
    }
}

/// For people.
fn name(peer: Peer) -> String {
    let Some(process) = peer.process else { return "an unknown process".into() };
    let command = std::fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
    format!("process {process} ({})", if command.is_empty() { "ended" } else { command.trim_end() })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn process(number: u32) -> Peer {
        Peer { process: Some(number) }
    }

    #[test]
    fn one_process_has_it_over_all_its_connections_until_the_last_ends() {
        let fence = Arc::new(Fence::default());
        let first = fence.enter("a/v", process(1)).unwrap();
        let second = fence.enter("a/v", process(1)).unwrap();
        assert_eq!(fence.enter("a/v", process(2)).err(), Some(OpenError::Busy));
        let other = fence.enter("a/w", process(2)).unwrap();
        drop(first);
        assert_eq!(fence.enter("a/v", process(2)).err(), Some(OpenError::Busy));
        let fault = fence.wait_until_free("a/v", Instant::now()).unwrap_err();
        assert!(fault.kind == FaultKind::Busy && fault.message.contains("process 1 "), "{fault}");
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| fence.wait_until_free("a/v", Instant::now() + Duration::from_secs(10)));
            drop(second);
            waiting.join().unwrap().unwrap();
        });
        let _taken_over = fence.enter("a/v", process(2)).unwrap();
        drop(other);
    }

    #[test]
    fn those_that_nobody_vouches_for_are_all_strangers() {
        let fence = Arc::new(Fence::default());
        let _first = fence.enter("a/v", Peer::default()).unwrap();
        assert_eq!(fence.enter("a/v", Peer::default()).err(), Some(OpenError::Busy));
    }
}
