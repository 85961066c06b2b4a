//! Disks and cables of a running guest. A change that fails half-way is undone before the call returns.

use std::time::{Duration, Instant};

use keyframe_agent_api::{DiskId, DiskSlot, FaultKind, NicId};
use serde_json::{Value, json};

use super::command;
use super::{Live, Slot};
use crate::Result;
use crate::hypervisor::BlockAddress;

/// How long a guest may take to let go of a disk that was put in half.
const UNPLUG: Duration = Duration::from_secs(30);

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
    let run = |command: &str, arguments: Value| live.qmp.execute(command, arguments).map_err(slot.monitor(act));
    let steps = [
        ("blockdev-add", command::server_node(disk.slot, false, blocks, disk.read_only)),
        ("blockdev-add", command::disk_node(disk.slot, false, disk.read_only)),
        ("device_add", command::disk_device(disk)),
    ];
    for (done, (name, arguments)) in steps.into_iter().enumerate() {
        if let Err(fault) = run(name, arguments) {
            if done > 0 {
                remove_nodes(slot, &live, disk.slot);
            }
            return Err(fault);
        }
    }
    slot.note(&live, |record| {
        record.machine.disks.push(disk.clone());
        record.blocks.insert(disk.id, blocks.clone());
    })
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
    unplug(slot, &live, found.slot, deadline)?;
    remove_nodes(slot, &live, found.slot);
    slot.note(&live, |record| {
        record.machine.disks.retain(|other| other.id != disk);
        record.blocks.remove(&disk);
    })
}

/// Takes the device of a slot out, if it is there.
fn unplug(slot: &Slot, live: &Live, number: u8, deadline: Duration) -> Result<()> {
    let act = "take a disk out";
    let mut mark = live.qmp.mark();
    let device = command::disk_id(number);
    match live.qmp.execute("device_del", json!({ "id": device })) {
        // An earlier call gave up before the guest did.
        Err(e) if e.is_refusal() && !has_device(live, &device) => {}
        Err(e) if e.is_refusal() && e.to_string().contains("already in the process") => {}
        done => drop(done.map_err(slot.monitor(act))?),
    }
    let until = Instant::now() + deadline;
    while has_device(live, &device) {
        let gone = live.qmp.wait_event(&mut mark, until, |event| match event.name.as_str() {
            "DEVICE_DELETED" if event.text("device") == device => Some(Ok(())),
            "DEVICE_UNPLUG_GUEST_ERROR" if event.text("device") == device => Some(Err("the guest refuses")),
            _ => None,
        });
        match gone {
            Some(Ok(())) => {}
            Some(Err(why)) => return Err(slot.fault(FaultKind::Guest, act, why)),
            None => {
                let why = "the guest has not let go of it in time; it may still do so";
                return Err(slot.fault(FaultKind::Deadline, act, why));
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
            unplug(slot, live, number, deadline)?;
            remove_nodes(slot, live, number);
        }
    }
    Ok(())
}

fn has_device(live: &Live, device: &str) -> bool {
    live.qmp.execute("qom-list", json!({ "path": format!("/machine/peripheral/{device}") })).is_ok()
}

/// Removes the nodes of a slot that no device uses any more.
fn remove_nodes(slot: &Slot, live: &Live, number: u8) {
    let names = [command::node(number), command::server_name(number, false), command::server_name(number, true)];
    for name in names {
        if let Err(e) = live.qmp.execute("blockdev-del", json!({ "node-name": name })) {
            // One of the two servers' names is never there.
            tracing::debug!(vm = %slot.vm, "{e}");
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
