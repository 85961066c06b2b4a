//! What is done to snapshots that stay: compressing, verifying, comparing.

use keyframe_model::agent::{Bytes, DiffRequest, SnapshotId, SnapshotRef, VolumeRef};
use keyframe_model::{Disk, Snapshot};

use crate::kind::image::{ImageOrder, SnapshotCompress, SnapshotVerify};
use crate::request::{Call, Caller, DiffView, DiskDiff, DiskPresence, JobRef, SnapshotName};
use crate::{Error, ErrorKind, Manager, Result};

/// Extents in one answer of the host.
const EXTENTS: u32 = 10_000;

impl Manager {
    /// Stores its memory smaller.
    pub async fn compress_snapshot(&self, call: &Call, snapshot: SnapshotId) -> Result<JobRef> {
        self.admit(&call.caller)?;
        self.order::<SnapshotCompress>(call, ImageOrder { snapshot, expected: call.expected }).await
    }

    /// Verifies that all of it is there, and every page of its memory; the job fails if not.
    pub async fn verify_snapshot(&self, call: &Call, snapshot: SnapshotId) -> Result<JobRef> {
        self.admit(&call.caller)?;
        self.order::<SnapshotVerify>(call, ImageOrder { snapshot, expected: call.expected }).await
    }

    /// What differs between the disks of two snapshots of a machine.
    pub async fn diff_snapshots(&self, caller: &Caller, from: SnapshotId, to: SnapshotId) -> Result<DiffView> {
        self.admit(caller)?;
        let mut tx = self.catalog.read().await?;
        let (from, to) = (tx.snapshot(from).await?, tx.snapshot(to).await?);
        drop(tx);
        from.usable()?;
        to.usable()?;
        if from.vm != to.vm {
            let message = format!("{} and {} are of different machines, and cannot be compared", from.name, to.name);
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        let mut disks = Vec::new();
        for disk in &to.hardware.disks {
            let before = from.hardware.disk(disk.id).map(|disk| part(&disk.volume, &from));
            disks.push(self.diff_disk(disk, before, part(&disk.volume, &to)).await?);
        }
        let gone = from.hardware.disks.iter().filter(|disk| to.hardware.disk(disk.id).is_none());
        disks.extend(gone.map(|disk| unchanged(disk, DiskPresence::OnlyBefore)));
        let name = |snapshot: &Snapshot| SnapshotName { id: snapshot.id, name: snapshot.name.clone() };
        let memory_left_out = from.kind.has_memory() || to.kind.has_memory();
        Ok(DiffView { from: name(&from), to: name(&to), disks, memory_left_out })
    }

    async fn diff_disk(&self, disk: &Disk, from: Option<SnapshotRef>, to: SnapshotRef) -> Result<DiskDiff> {
        let presence = if from.is_some() { DiskPresence::Both } else { DiskPresence::OnlyAfter };
        let mut sum = unchanged(disk, presence);
        let mut after = Bytes(0);
        loop {
            let ask = DiffRequest { from: from.clone(), to: to.clone(), after, limit: EXTENTS };
            let found = self.agent.diff(&ask).await?;
            for extent in &found.extents {
                sum.extents += 1;
                let kind = if extent.zero { &mut sum.zeroed } else { &mut sum.changed };
                *kind = *kind + extent.length;
            }
            match found.next {
                Some(next) if next > after => after = next,
                Some(_) | None => return Ok(sum),
            }
        }
    }
}

fn part(volume: &VolumeRef, snapshot: &Snapshot) -> SnapshotRef {
    SnapshotRef { volume: volume.clone(), snapshot: snapshot.id }
}

fn unchanged(disk: &Disk, presence: DiskPresence) -> DiskDiff {
    DiskDiff { id: disk.id, name: disk.name.clone(), presence, changed: Bytes(0), zeroed: Bytes(0), extents: 0 }
}
