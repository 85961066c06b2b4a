//! Disks of machines.

use std::collections::BTreeMap;

use keyframe_model::Disk;
use keyframe_model::agent::{DiskId, VmId};

use super::build::{array, content};
use crate::kind::disk as kind;
use crate::request::{Call, Caller, DiskAttach, DiskResize, DiskView, JobRef};
use crate::{Manager, Result, space};

impl Manager {
    /// The disks of a machine: those in it, and those that only its snapshots hold.
    pub async fn disks(&self, caller: &Caller, vm: VmId) -> Result<Vec<DiskView>> {
        self.admit(caller)?;
        let mut tx = self.catalog.read().await?;
        let vm = tx.vm(vm).await?;
        let mut holders: BTreeMap<DiskId, (Disk, u32)> = BTreeMap::new();
        for (volume, count, newest) in tx.snapshotted_volumes(vm.id).await? {
            // The newest snapshot that holds it knows it best.
            let disks = tx.snapshot(newest).await?.hardware.disks;
            if let Some(disk) = disks.into_iter().find(|disk| disk.volume == volume) {
                holders.insert(disk.id, (disk, count));
            }
        }
        drop(tx);
        let view = |disk: Disk, attached, snapshots| DiskView { disk, vm: vm.id, attached, snapshots, space: None };
        let mut views = Vec::new();
        for disk in &vm.hardware.disks {
            let snapshots = holders.remove(&disk.id).map_or(0, |(_, count)| count);
            views.push(view(disk.clone(), true, snapshots));
        }
        views.extend(holders.into_values().map(|(disk, count)| view(disk, false, count)));
        let heads = views.iter().map(|view| view.disk.volume.clone()).collect();
        // A list without space is better than none.
        if let Ok(found) = space::of_heads(&self.agent, heads).await {
            for (view, space) in views.iter_mut().zip(found) {
                view.space = space;
            }
        }
        Ok(views)
    }

    /// Adds one.
    pub async fn attach_disk(&self, call: &Call, vm: VmId, wish: DiskAttach) -> Result<JobRef> {
        self.admit(&call.caller)?;
        let slot = wish.slot;
        let disk = wish.into_disk();
        let content = content(&disk)?;
        let host = self.agent.host().await?;
        let order = kind::AttachOrder {
            vm,
            expected: call.expected,
            slot,
            array: array(&host, disk.array.as_ref())?,
            content,
            read_only: disk.read_only,
            name: disk.name,
        };
        self.order::<kind::DiskAttach>(call, order).await
    }

    /// Takes one out. It goes for good unless a snapshot holds it.
    pub async fn detach_disk(&self, call: &Call, vm: VmId, disk: DiskId) -> Result<JobRef> {
        self.admit(&call.caller)?;
        let order = kind::DetachOrder { vm, expected: call.expected, disk };
        self.order::<kind::DiskDetach>(call, order).await
    }

    /// Sets its size.
    pub async fn resize_disk(&self, call: &Call, vm: VmId, disk: DiskId, wish: DiskResize) -> Result<JobRef> {
        self.admit(&call.caller)?;
        let order = kind::ResizeOrder { vm, expected: call.expected, disk, size: wish.size, shrink: wish.shrink };
        self.order::<kind::DiskResize>(call, order).await
    }
}
