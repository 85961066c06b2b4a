//! The fake guest: it counts, and writes each count to all its disks, one after the other.
//!
//! So a memory tells exactly what must be on the disks of the same instant: the count on those that have had their turn,
//! one less on the others. Any other combination is of two instants.

use std::collections::BTreeMap;
use std::io;

use keyframe_agent_api::{DiskId, Fault, FaultKind};
use serde::{Deserialize, Serialize};

use super::disks::Disk;
use crate::Result;
use crate::hypervisor::BlockAddress;

/// A guest's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Memory {
    /// The number it is at.
    pub count: u64,
    /// How many disks have that number, in the order of their slots; the others have one less.
    pub written: usize,
}

/// Disks that the guest has open.
#[derive(Default, Debug)]
pub(super) struct Disks {
    open: BTreeMap<DiskId, Disk>,
}

impl Disks {
    /// Opens them all, as a hypervisor does before it starts a guest.
    pub(super) fn open(wanted: &[(DiskId, BlockAddress)]) -> io::Result<Disks> {
        let open = wanted.iter().map(|(id, at)| Disk::open(at).map(|disk| (*id, disk)));
        Ok(Disks { open: open.collect::<io::Result<_>>()? })
    }

    /// One of them, connected again if the server went away.
    fn get(&mut self, (id, at): &(DiskId, BlockAddress)) -> io::Result<&mut Disk> {
        if !self.open.contains_key(id) {
            self.open.insert(*id, Disk::open(at)?);
        }
        self.open.get_mut(id).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    pub(super) fn close(&mut self, id: DiskId) {
        self.open.remove(&id);
    }

    /// Opens a disk anew; its size.
    pub(super) fn reopen(&mut self, disk: &(DiskId, BlockAddress)) -> io::Result<u64> {
        self.close(disk.0);
        self.get(disk).map(|disk| disk.size())
    }

    /// The guest's next step: one write, or one number further. A write that fails is not a step.
    pub(super) fn step(&mut self, memory: Memory, wanted: &[(DiskId, BlockAddress)]) -> io::Result<Memory> {
        let Some(disk) = wanted.get(memory.written) else {
            return Ok(Memory { count: memory.count + 1, written: 0 });
        };
        let written = self.get(disk).and_then(|open| open.write(memory.count));
        if let Err(e) = written {
            self.close(disk.0);
            return Err(e);
        }
        Ok(Memory { written: memory.written + 1, ..memory })
    }

    /// Fails unless the disks are of the same instant as the memory.
    pub(super) fn check(&mut self, memory: Memory, wanted: &[(DiskId, BlockAddress)]) -> Result<()> {
        for (i, disk) in wanted.iter().enumerate() {
            let found = self.get(disk).and_then(Disk::read).map_err(|e| trouble(disk, &e))?;
            let due = if i < memory.written { memory.count } else { memory.count.saturating_sub(1) };
            if found != due {
                let why = format!("disk {} has {found}, the memory says {due}: not of one instant", disk.0);
                return Err(Fault::new(FaultKind::Guest, why));
            }
        }
        Ok(())
    }
}

/// A disk that cannot be used.
pub(super) fn trouble((id, at): &(DiskId, BlockAddress), e: &io::Error) -> Fault {
    let what = format!("disk {id}, export {} at {}: {e}", at.export, at.socket.display());
    Fault::new(FaultKind::Internal, what)
}
