//! A process that was given up, until its memory is stored.
//!
//! Storing a memory takes the longer the more there is, and whatever comes instead of the guest need not wait for that:
//!
//! ```text
//!  paused ─┬─ set aside: off, and free to be started in another process ─►
//!          └─ its process: no disks, no cables, only memory ── stored, or dropped ─► gone
//! ```
//! One line of the process's record tells it from a machine, and is written before anything of it is changed: a later agent
//! goes on from there. Its disks are replaced by empty ones of the same size below the devices, which the guest, standing
//! still, never sees; so the real ones are free for others at once.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use keyframe_agent_api::{Fault, FaultKind, NicConnection, Power, SnapshotId, VmId};
use serde_json::{Value, json};

use super::place::{Place, Record, Wish};
use super::{Live, Shared, Slot, capture, command, hotplug, huge, status, watch};
use crate::Result;
use crate::hypervisor::{Cancel, NoCut};

const SET: &str = "set it aside";
const LAST_MOMENT: Duration = Duration::from_secs(5);

pub(super) fn set(shared: &Arc<Shared>, slot: &Arc<Slot>, snapshot: SnapshotId) -> Result<Option<u32>> {
    let _turn = slot.turn();
    let live = slot.live()?;
    let answer = live.qmp.execute("query-status", json!({})).map_err(slot.monitor(SET))?;
    if answer["status"] == "prelaunch" {
        // Its memory can be had from it only after it has run for a moment, which needs its disks.
        return Err(slot.fault(FaultKind::Unsupported, SET, "its guest has never run"));
    }
    if status::ask(slot, &live)? == Power::Running {
        return Err(slot.fault(FaultKind::Conflict, SET, "it runs; pause it first"));
    }
    let before = live.record.lock().clone();
    let drives = drives(slot, &live, &before)?;
    slot.note(&live, |record| (record.aside, record.wish) = (Some(snapshot), Wish::Paused))?;
    if let Err(fault) = drives.iter().try_for_each(|drive| drive.empty(slot, &live)) {
        drives.iter().for_each(|drive| drive.fill(slot, &live));
        slot.note(&live, |record| *record = before)?;
        return Err(Fault { kind: FaultKind::Unsupported, ..fault });
    }
    let_go(slot, &live, &drives);
    let process = live.process.pid();
    huge::end(slot);
    *slot.live.lock() = None;
    *slot.freezer.lock() = None;
    *slot.known.lock() = Power::Off;
    let aside = Slot::new(slot.vm, slot.place.clone(), true);
    *aside.live.lock() = Some(Arc::clone(&live));
    shared.asides.lock().insert(snapshot, Arc::clone(&aside));
    shared.slots.lock().insert(slot.vm, Slot::new(slot.vm, free_place(shared, slot.vm), false));
    // Its memory may not be all in yet.
    watch::follow(shared, &aside, &live);
    Ok(Some(process))
}

/// A folder that no process of this machine has been set aside in.
pub(super) fn free_place(shared: &Shared, vm: VmId) -> Place {
    let taken: Vec<_> = shared.asides.lock().values().map(|aside| aside.place.dir.clone()).collect();
    let mut places = (0..).map(|number| shared.place(vm, number));
    places.find(|place| !taken.contains(&place.dir)).expect("there are more numbers than processes")
}

/// The machine's first folder, unless a process of it has been set aside there.
pub(super) fn home(shared: &Shared, vm: VmId) -> Option<Place> {
    Some(free_place(shared, vm)).filter(Place::is_home)
}

/// Goes on with what an earlier agent had begun. The guest is lost for its disks if this fails.
pub(super) fn finish(slot: &Slot, live: &Live) -> Result<()> {
    let record = live.record.lock().clone();
    let drives = drives(slot, live, &record)?;
    drives.iter().try_for_each(|drive| drive.empty(slot, live))?;
    let_go(slot, live, &drives);
    Ok(())
}

/// Where a device has its blocks from.
struct Drive {
    /// The device, and the name of its property.
    path: String,
    property: &'static str,
    /// What is there in an ordinary process.
    node: String,
    /// What has nothing in it.
    empty: Value,
    /// A number, unless the firmware's variables are on it.
    number: Option<u8>,
    /// The ordinary node is still there, and the empty one already.
    has_node: bool,
    has_empty: bool,
}

fn drives(slot: &Slot, live: &Live, record: &Record) -> Result<Vec<Drive>> {
    const VARIABLES: &str = "variables";
    let all = live.qmp.execute("query-named-block-nodes", json!({ "flat": true })).map_err(slot.monitor(SET))?;
    let size = |name: &str| {
        let found = all.as_array()?.iter().find(|node| node["node-name"] == name)?;
        found["image"]["virtual-size"].as_u64()
    };
    let drive = |disk: &keyframe_agent_api::DiskSlot| {
        let (path, property, node, number) = match disk.firmware_variables {
            true => ("/machine".to_owned(), "pflash1", VARIABLES.to_owned(), None),
            false => {
                let path = format!("/machine/peripheral/{}/virtio-backend", command::disk_id(disk.slot));
                (path, "drive", command::node(disk.slot), Some(disk.slot))
            }
        };
        let name = format!("{node}-empty");
        let (has_node, has_empty) = (size(&node).is_some(), size(&name).is_some());
        let Some(size) = size(&node).or_else(|| size(&name)) else {
            return Err(slot.fault(FaultKind::Unsupported, SET, format!("QEMU has no node {node}")));
        };
        let empty = json!({ "driver": "null-co", "node-name": name, "size": size, "read-zeroes": true,
            "read-only": disk.read_only });
        Ok(Drive { path, property, node, empty, number, has_node, has_empty })
    };
    record.machine.disks.iter().map(drive).collect()
}

impl Drive {
    /// Gives the device nothing in place of its blocks, whatever of that is done.
    fn empty(&self, slot: &Slot, live: &Live) -> Result<()> {
        if !self.has_empty {
            live.qmp.execute("blockdev-add", self.empty.clone()).map_err(slot.monitor(SET))?;
        }
        self.set(live, self.empty["node-name"].as_str().unwrap_or_default()).map_err(slot.monitor(SET))
    }

    /// The other way round. It may not have come so far.
    fn fill(&self, slot: &Slot, live: &Live) {
        let done = self
            .set(live, &self.node)
            .and_then(|()| live.qmp.execute("blockdev-del", json!({ "node-name": self.empty["node-name"] })));
        if let Err(e) = done {
            tracing::debug!(vm = %slot.vm, "{e}");
        }
    }

    /// QEMU aborts when it is given what it has.
    fn set(&self, live: &Live, node: &str) -> std::result::Result<(), super::QmpError> {
        let what = json!({ "path": self.path, "property": self.property });
        if live.qmp.execute("qom-get", what)? == node {
            return Ok(());
        }
        let what = json!({ "path": self.path, "property": self.property, "value": node });
        live.qmp.execute("qom-set", what).map(drop)
    }
}

/// Ends the connections to disks that no device has any more, and to networks. What fails here, the exports end.
fn let_go(slot: &Slot, live: &Live, drives: &[Drive]) {
    for drive in drives.iter().filter(|drive| drive.has_node) {
        match drive.number {
            Some(number) => hotplug::remove_nodes(slot, live, number),
            None => {
                if let Err(e) = live.qmp.execute("blockdev-del", json!({ "node-name": drive.node })) {
                    tracing::warn!(vm = %slot.vm, "{e}");
                }
            }
        }
    }
    let nics = live.record.lock().machine.nics.clone();
    // A network of QEMU's own is a part of the memory.
    for nic in nics {
        if matches!(nic.connection, NicConnection::Bridge { .. } | NicConnection::Isolated { .. }) {
            let cable = json!({ "id": command::cable_id(nic.slot) });
            if let Err(e) = live.qmp.execute("netdev_del", cable) {
                tracing::debug!(vm = %slot.vm, "{e}");
            }
        }
    }
}

/// Stores what was set aside for a snapshot. It stays until it is dropped, or its process ends.
pub(super) fn store(shared: &Shared, snapshot: SnapshotId, to: &Path, cancel: &dyn Cancel) -> Result<()> {
    let gone = || {
        let why = format!("the process that had the memory of snapshot {snapshot} has ended");
        Fault::new(FaultKind::NotFound, why)
    };
    let slot = shared.asides.lock().get(&snapshot).cloned().ok_or_else(gone)?;
    slot.check_stray()?;
    let stored = capture::capture(&slot, to, &mut NoCut, cancel).map(drop);
    // A process that is killed closes its monitor a moment before it is gone.
    let ends = |live: Arc<Live>| live.process.wait(if live.qmp.is_closed() { LAST_MOMENT } else { Duration::ZERO });
    let live = slot.live.lock().clone();
    stored.map_err(|fault| if live.is_none_or(ends) { gone() } else { fault })
}

/// Ends it; what is not there is a success.
pub(super) fn discard(shared: &Shared, snapshot: SnapshotId) -> Result<()> {
    let Some(slot) = shared.asides.lock().get(&snapshot).cloned() else { return Ok(()) };
    // First, so that whoever has its turn gets out.
    let live = slot.live.lock().clone();
    if let Some(live) = live {
        live.process.end().map_err(slot.file("end what was set aside"))?;
    }
    if let Some(stray) = &*slot.stray.lock() {
        stray.end().map_err(slot.file("end what was set aside"))?;
    }
    let _turn = slot.turn();
    slot.ended();
    slot.place.leave().map_err(slot.file("remove its folder"))?;
    shared.asides.lock().remove(&snapshot);
    Ok(())
}
