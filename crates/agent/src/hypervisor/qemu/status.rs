//! What a machine does, asked of its process.

use keyframe_agent_api::{Accelerator, Bytes, FaultKind, PauseReason, Power, VmStatus};
use serde_json::{Value, json};

use super::{ASKED, Live, Shared, Slot, load};
use crate::Result;
use std::time::Duration;

/// A process that says nothing for so long is stuck; whoever asked has others to look after.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) fn status(_shared: &Shared, slot: &Slot) -> Result<VmStatus> {
    let off = VmStatus::bare(slot.vm, Power::Off);
    let Some(live) = slot.running() else { return slot.check_stray().map(|()| off) };
    let power = match power(slot, &live) {
        Ok(power) => power,
        Err(_) if live.process.wait(Duration::from_millis(100)) => return Ok(off),
        Err(fault) => return Err(fault),
    };
    let record = live.record.lock().clone();
    Ok(VmStatus {
        power,
        machine: Some(record.machine),
        pid: Some(live.process.pid()),
        since: Some(record.since),
        hypervisor: Some(format!("qemu {}", live.qmp.version())),
        emulated: record.accelerator != Accelerator::Kvm,
        memory_pending: if record.memory.is_some() { load::pending(&slot.place) } else { Bytes(0) },
        vnc: Some(slot.place.vnc().display().to_string()),
        console: Some(slot.place.console().display().to_string()),
        ..off
    })
}

/// What a running process does.
pub(super) fn power(slot: &Slot, live: &Live) -> Result<Power> {
    power_within(slot, live, PATIENCE)
}

/// The same with a patience of the caller's.
pub(super) fn power_within(slot: &Slot, live: &Live, patience: Duration) -> Result<Power> {
    if let Some(covered) = &*slot.covered.lock() {
        return Ok(covered.clone());
    }
    ask_within(slot, live, patience)
}

/// The same, as QEMU says it.
pub(super) fn ask(slot: &Slot, live: &Live) -> Result<Power> {
    ask_within(slot, live, PATIENCE)
}

fn ask_within(slot: &Slot, live: &Live, patience: Duration) -> Result<Power> {
    let ask = |command: &str| live.qmp.execute_within(command, json!({}), patience);
    let trouble = |e| match slot.monitor("ask what it does")(e) {
        fault if fault.kind == FaultKind::Conflict => slot.fault(FaultKind::Deadline, "ask what it does", fault),
        fault => fault,
    };
    let answer = ask("query-status").map_err(trouble)?;
    let state = answer["status"].as_str().unwrap_or_default();
    let full = || ask("query-block").map(|devices| is_full(&devices)).unwrap_or(false);
    Ok(power_of(state, full))
}

/// QEMU's run state as ours.
fn power_of(state: &str, full: impl FnOnce() -> bool) -> Power {
    let reason = match state {
        // A guest that sleeps can wake by itself.
        "running" | "suspended" => return Power::Running,
        "io-error" if full() => PauseReason::NoSpace,
        "io-error" => PauseReason::IoError,
        "guest-panicked" | "internal-error" | "watchdog" => PauseReason::Crashed,
        _ => return ASKED,
    };
    Power::Paused { reason }
}

/// Whether any disk has stopped for want of space.
fn is_full(devices: &Value) -> bool {
    devices.as_array().is_some_and(|all| all.iter().any(|device| device["io-status"] == "nospace"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_states_are_told_apart() {
        let check =
            |state: &str, full: bool, expected: Power| assert_eq!(power_of(state, || full), expected, "{state}");
        let paused = |reason| Power::Paused { reason };
        check("running", false, Power::Running);
        check("paused", false, ASKED);
        check("prelaunch", false, ASKED);
        check("postmigrate", false, ASKED);
        check("io-error", false, paused(PauseReason::IoError));
        check("io-error", true, paused(PauseReason::NoSpace));
        check("guest-panicked", true, paused(PauseReason::Crashed));
        check("something new", false, ASKED);
    }

    #[test]
    fn a_full_disk_is_seen_in_what_qemu_was_recorded_to_say() {
        let devices = json!([{ "io-status": "ok", "device": "", "qdev": "/machine/peripheral/disk0/virtio-backend" },
            { "io-status": "nospace", "device": "", "qdev": "/machine/peripheral/disk1/virtio-backend" }]);
        assert!(is_full(&devices));
        assert!(!is_full(&json!([{ "device": "" }])));
        assert!(!is_full(&Value::Null));
    }
}
