//! Disks and cables of a running guest. A change that fails half-way is undone before the call returns. A guest that lets go
//! of a disk when nobody waits for that any more gets it back: what the record has is plugged in.

use std::time::{Duration, Instant};

use keyframe_agent_api::{DiskId, DiskSlot, Fault, FaultKind, NicId};
use serde_json::{Value, json};

use super::command;
use super::{Live, Slot};
use crate::Result;
use crate::hypervisor::BlockAddress;

/// How long a guest may take to let go of a disk that was put in half.
const UNPLUG: Duration = Duration::from_secs(30);
/// How long QEMU may take to forget a device that is out.
const LAST_USE: Duration = Duration::from_secs(5);

pub(super) fn add_disk(slot: &Slot, disk: &DiskSlot, blocks: &BlockAddress) -> Result<()> {
    let _turn = slot.turn();
    let live = slot.live()?;
    let act = "add a disk";
    let (disks, ports) = {
        let record = live.record.lock();
        (record.machine.disks.clone(), record.ports)
    };
    if disks.contains(disk) {
        return Ok(());
    }
    if disk.slot >= ports.disks || disk.firmware_variables {
        let why =
            format!("slot {} cannot be filled while it runs; stop the machine, add it, start it again", disk.slot);
        return Err(slot.fault(FaultKind::Invalid, act, why));
    }
    if disks.iter().any(|other| other.slot == disk.slot || other.id == disk.id) {
        return Err(slot.fault(FaultKind::Conflict, act, format!("slot {} or the disk is in use", disk.slot)));
    }
    clear(slot, &live, UNPLUG)?;
    plug_in(slot, &live, disk, blocks)?;
    slot.note(&live, |record| {
        record.machine.disks.push(disk.clone());
        record.blocks.insert(disk.id, blocks.clone());
    })
}

fn plug_in(slot: &Slot, live: &Live, disk: &DiskSlot, blocks: &BlockAddress) -> Result<()> {
    let steps = [
        ("blockdev-add", command::server_node(disk.slot, false, blocks, disk.read_only)),
        ("blockdev-add", command::disk_node(disk.slot, false, disk.read_only)),
        ("device_add", command::disk_device(disk)),
    ];
    for (done, (name, arguments)) in steps.into_iter().enumerate() {
        if let Err(e) = live.qmp.execute(name, arguments) {
            if done > 0 {
                remove_nodes(slot, live, disk.slot);
            }
            return Err(slot.monitor("add a disk")(e));
        }
    }
    Ok(())
}

/// Plugs in again what the record has and the guest has let go of since, and says so. The caller has the machine's turn.
pub(super) fn put_back(slot: &Slot, live: &Live) -> Result<Vec<Fault>> {
    let found = live.qmp.execute("qom-list", json!({ "path": "/machine/peripheral" }));
    let found = found.map_err(slot.monitor("look for disks"))?;
    let Some(devices) = found.as_array() else { return Ok(Vec::new()) };
    let record = live.record.lock().clone();
    let plugged = record.machine.disks.iter().filter(|disk| !disk.firmware_variables);
    let lost = plugged.filter(|disk| !devices.iter().any(|device| device["name"] == command::disk_id(disk.slot)));
    let told = lost.filter_map(|disk| {
        let volume = &disk.volume;
        remove_nodes(slot, live, disk.slot);
        let why = match plug_in(slot, live, disk, record.blocks.get(&disk.id)?) {
            Ok(()) => "it is plugged in again; to take it out, detach it once more".to_owned(),
            Err(fault) => {
                format!("it cannot be plugged in again: {fault}; stop the machine and start it to have it back")
            }
        };
        let why = format!("the guest let go of disk {volume} after the detachment had been given up; {why}");
        Some(Fault::new(FaultKind::Guest, why))
    });
    Ok(told.collect())
}

pub(super) fn remove_disk(slot: &Slot, disk: DiskId, deadline: Duration) -> Result<()> {
    let _turn = slot.turn();
    let live = slot.live()?;
    let act = "take a disk out";
    let Some(found) = live.record.lock().machine.disks.iter().find(|other| other.id == disk).cloned() else {
        return clear(slot, &live, deadline);
    };
    if found.firmware_variables {
        return Err(slot.fault(FaultKind::Conflict, act, "the firmware's variables are on it"));
    }
    unplug(slot, &live, found.slot, &format!("disk {}", found.volume), deadline)?;
    remove_nodes(slot, &live, found.slot);
    slot.note(&live, |record| {
        record.machine.disks.retain(|other| other.id != disk);
        record.blocks.remove(&disk);
    })
}

/// Takes the device of a slot out, if it is there; `what` it is for people.
fn unplug(slot: &Slot, live: &Live, number: u8, what: &str, deadline: Duration) -> Result<()> {
    let mut mark = live.qmp.mark();
    let device = command::disk_id(number);
    match live.qmp.execute("device_del", json!({ "id": device })) {
        // An earlier call gave up before the guest did.
        Err(e) if e.is_refusal() && !has_device(live, &device) => {}
        Err(e) if e.is_refusal() && e.to_string().contains("already in the process") => {}
        done => drop(done.map_err(slot.monitor("take a disk out"))?),
    }
    let way = "detach it again once its system is up, or stop the machine first";
    let until = Instant::now() + deadline;
    while has_device(live, &device) {
        let gone = live.qmp.wait_event(&mut mark, until, |event| match event.name.as_str() {
            "DEVICE_DELETED" if event.text("device") == device => Some(Ok(())),
            "DEVICE_UNPLUG_GUEST_ERROR" if event.text("device") == device => Some(Err("the guest refuses")),
            _ => None,
        });
        match gone {
            Some(Ok(())) => {}
            Some(Err(why)) => {
                return Err(Fault::new(FaultKind::Guest, format!("{what}: {why} to let go of it; {way}")));
            }
            None => {
                let why = format!("{what}: the guest has not let go of it within {deadline:?}; {way}");
                return Err(Fault::new(FaultKind::Deadline, why));
            }
        }
    }
    Ok(())
}

/// Takes out what the record does not know: an agent that was killed had begun to put it in.
fn clear(slot: &Slot, live: &Live, deadline: Duration) -> Result<()> {
    let (known, ports) = {
        let record = live.record.lock();
        (record.machine.disks.iter().map(|disk| disk.slot).collect::<Vec<u8>>(), record.ports)
    };
    let all = live.qmp.execute("query-named-block-nodes", json!({ "flat": true }));
    let nodes = all.map_err(slot.monitor("look for disks"))?;
    let has = |name: String| nodes.as_array().is_some_and(|all| all.iter().any(|node| node["node-name"] == name));
    for number in (0..ports.disks).filter(|number| !known.contains(number)) {
        if [command::node(number), command::server_name(number, false), command::server_name(number, true)]
            .into_iter()
            .any(has)
        {
            tracing::info!(vm = %slot.vm, number, "a disk that was put in half is taken out");
            unplug(slot, live, number, &format!("slot {number} of machine {}", slot.vm), deadline)?;
            remove_nodes(slot, live, number);
        }
    }
    Ok(())
}

fn has_device(live: &Live, device: &str) -> bool {
    live.qmp.execute("qom-list", json!({ "path": format!("/machine/peripheral/{device}") })).is_ok()
}

/// Removes the nodes of a slot that no device uses any more.
pub(super) fn remove_nodes(slot: &Slot, live: &Live, number: u8) {
    let until = Instant::now() + LAST_USE;
    for name in [command::node(number), command::server_name(number, false), command::server_name(number, true)] {
        loop {
            match live.qmp.execute("blockdev-del", json!({ "node-name": name })) {
                // A device is out of sight some milliseconds before it is gone.
                Err(e) if e.is_refusal() && e.to_string().contains("in use") && Instant::now() < until => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                // One of the two servers' names is never there.
                Err(e) => break tracing::debug!(vm = %slot.vm, "{e}"),
                Ok(_) => break,
            }
        }
    }
}

/// An NBD connection keeps the size it began with, so the disk gets a new one below its node.
pub(super) fn disk_resized(slot: &Slot, disk: DiskId) -> Result<()> {
    let _turn = slot.turn();
    let live = slot.live()?;
    let act = "resize a disk";
    let (found, blocks) = {
        let record = live.record.lock();
        let found = record.machine.disks.iter().find(|other| other.id == disk).cloned();
        let missing = || slot.fault(FaultKind::NotFound, act, format!("it has no disk {disk}"));
        let found = found.ok_or_else(missing)?;
        let blocks = record.blocks.get(&disk).cloned().ok_or_else(missing)?;
        (found, blocks)
    };
    let run = |command: &str, arguments: Value| live.qmp.execute(command, arguments).map_err(slot.monitor(act));
    let number = found.slot;
    let mut nodes = run("query-named-block-nodes", json!({ "flat": true }))?;
    if [false, true].into_iter().all(|second| size_of(&nodes, &command::server_name(number, second)).is_some()) {
        // An agent was killed on the way. QEMU keeps the one that the disk is on.
        for second in [false, true] {
            if let Err(e) =
                live.qmp.execute("blockdev-del", json!({ "node-name": command::server_name(number, second) }))
            {
                tracing::debug!(vm = %slot.vm, "{e}");
            }
        }
        nodes = run("query-named-block-nodes", json!({ "flat": true }))?;
    }
    let second = size_of(&nodes, &command::server_name(number, true)).is_some();
    let drop_node = |second: bool| run("blockdev-del", json!({ "node-name": command::server_name(number, second) }));
    run("blockdev-add", command::server_node(number, !second, &blocks, found.read_only))?;
    let node = command::disk_node(number, !second, found.read_only);
    if let Err(fault) = run("blockdev-reopen", json!({ "options": [node] })) {
        drop_node(!second)?;
        return Err(fault);
    }
    drop_node(second)?;
    let nodes = run("query-named-block-nodes", json!({ "flat": true }))?;
    let Some(size) = size_of(&nodes, &command::server_name(number, !second)) else {
        return Err(slot.fault(FaultKind::Internal, act, "QEMU does not say its size"));
    };
    run("block_resize", json!({ "node-name": command::node(number), "size": size })).map(drop)
}

fn size_of(nodes: &Value, name: &str) -> Option<u64> {
    let node = nodes.as_array()?.iter().find(|node| node["node-name"] == name)?;
    node["image"]["virtual-size"].as_u64()
}

pub(super) fn set_link(slot: &Slot, nic: NicId, up: bool) -> Result<()> {
    let _turn = slot.turn();
    let live = slot.live()?;
    let act = "plug a cable";
    let number = live.record.lock().machine.nics.iter().find(|other| other.id == nic).map(|found| found.slot);
    let number = number.ok_or_else(|| slot.fault(FaultKind::NotFound, act, format!("it has no interface {nic}")))?;
    let arguments = json!({ "name": command::nic_id(number), "up": up });
    live.qmp.execute("set_link", arguments).map_err(slot.monitor(act))?;
    slot.note(&live, |record| {
        for other in record.machine.nics.iter_mut().filter(|other| other.id == nic) {
            other.link_up = up;
        }
    })
}
