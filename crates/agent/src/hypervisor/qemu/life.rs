//! Starting, stopping, pausing.
//!
//! A start that fails at any point ends the process and leaves nothing but the log. The record says `Starting` until all
//! is in place, and what is wished before QEMU is told, so that a later agent can bring a half-done change to its end.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use keyframe_agent_api::{Fault, FaultKind, Machine, Power, StopHow, Timestamp};
use parking_lot::Mutex;
use serde_json::json;

use super::command::{self, Plan};
use super::load::Server;
use super::place::{Ports, Record, Wish};
use super::process::{self, Process};
use super::qga::{Agent, AgentError};
use super::qmp::{Qmp, QmpError};
use super::{ASKED, Live, Shared, Slot, aside, hub, load, seed, status, tap, validate, watch};
use crate::Result;
use crate::hypervisor::Start;

/// Until the monitor answers: QEMU connects to all disks first.
const SPAWN: Duration = Duration::from_secs(60);
/// The agent of a guest that is up answers at once.
const ASK_AGENT: Duration = Duration::from_secs(3);
/// Guests miss the power button while they boot.
const PRESS_AGAIN: Duration = Duration::from_secs(5);
/// After a capture QEMU needs some milliseconds before it can go on.
const SETTLE: Duration = Duration::from_secs(10);
/// A process closes its monitor a moment before it is gone.
const GOING: Duration = Duration::from_secs(1);

pub(super) fn start(shared: &Arc<Shared>, slot: &Arc<Slot>, start: &Start<'_>) -> Result<()> {
    let _turn = slot.turn();
    if slot.running().is_some() {
        return Err(slot.fault(FaultKind::Conflict, "start", "it is on already"));
    }
    slot.check_stray()?;
    slot.ended();
    let host = shared.host()?;
    let needs = check(shared, start.machine, start.memory)?;
    let record = Record {
        machine: start.machine.clone(),
        blocks: start
            .machine
            .disks
            .iter()
            .map(|disk| (disk.id, (start.blocks)(&disk.volume)))
            .collect::<BTreeMap<_, _>>(),
        wish: Wish::Starting,
        memory: start.memory.map(Into::into),
        accelerator: host.accelerator().clone(),
        ports: needs.map_or_else(|| Ports::of(start.machine), |needs| needs.ports),
        since: Timestamp::now(),
        aside: None,
    };
    slot.unplugged.store(false, Ordering::SeqCst);
    let gone = Cell::new(false);
    let user_networks = needs.map_or(0, |needs| needs.user_networks);
    let mut started = try_start(shared, slot, start, (record.clone(), user_networks), &gone);
    if let Err(fault) = &started
        && record.memory.is_some()
        && is_worth_again(slot, fault, &gone)
    {
        tracing::warn!("{fault}; the guest has not run, so it is started once more");
        started = try_start(shared, slot, start, (record, user_networks), &gone);
    }
    *slot.known.lock() = match &started {
        Ok(()) if start.paused => ASKED,
        Ok(()) => Power::Running,
        Err(_) => Power::Off,
    };
    started
}

/// Whether it makes sense to try, and what loading the memory takes.
pub(super) fn check(shared: &Shared, machine: &Machine, memory: Option<&Path>) -> Result<Option<load::Needs>> {
    let host = shared.host()?;
    validate::machine(machine, host)?;
    memory.map(|image| load::check(host, image, machine)).transpose()
}

/// Loading a memory takes processes that can be killed; whether that was it shows a second try.
fn is_worth_again(slot: &Slot, fault: &Fault, gone: &Cell<bool>) -> bool {
    let accident = matches!(fault.kind, FaultKind::Internal | FaultKind::Deadline | FaultKind::Conflict);
    accident && !gone.get() && !slot.unplugged.load(Ordering::SeqCst)
}

/// Starts it, or leaves nothing. `gone` is set before the guest runs.
fn try_start(
    shared: &Arc<Shared>,
    slot: &Arc<Slot>,
    start: &Start<'_>,
    (record, user_networks): (Record, usize),
    gone: &Cell<bool>,
) -> Result<()> {
    let started = launch(shared, slot, record, user_networks).and_then(|(live, server)| {
        *slot.live.lock() = Some(Arc::clone(&live));
        if slot.unplugged.load(Ordering::SeqCst) {
            return Err(slot.fault(FaultKind::Conflict, "start", "it is being stopped"));
        }
        bring_up(shared, slot, &live, start, server, gone)
    });
    started.map_err(|fault| {
        if let Some(live) = slot.live.lock().clone() {
            live.process.kill();
        }
        // Says more than what QEMU made of it.
        let damage = load::damage(&slot.place);
        slot.ended();
        slot.place.sweep();
        tap::remove_all(start.machine);
        match (damage, start.memory) {
            (Some(why), Some(image)) => load::damaged(slot, image, &why),
            _ => fault,
        }
    })
}

/// Starts the process and waits for its monitor. The server of its memory gets ready meanwhile.
fn launch(
    shared: &Shared,
    slot: &Slot,
    mut record: Record,
    user_networks: usize,
) -> Result<(Arc<Live>, Option<Server>)> {
    let place = &slot.place;
    place.create().map_err(slot.file("make its folder"))?;
    place.sweep();
    place.new_log().map_err(slot.file("put its last log aside"))?;
    record.memory = record.memory.map(|image| load::keep(place, &image));
    let server = record.memory.as_deref().map(|image| Server::ready(shared, place, image)).transpose();
    let server = server.map_err(slot.file("start its page server"))?;
    if let Some(data) = &record.machine.cloud_init {
        seed::write(&place.seed(), &record.machine, data).map_err(slot.file("make its cloud-init volume"))?;
    }
    place.write_record(&record).map_err(slot.file("note its state"))?;
    tap::create_all(&record.machine)?;
    hub::ensure_all(shared, &record.machine)?;
    let plan = Plan {
        machine: &record.machine,
        blocks: &record.blocks,
        place,
        accelerator: &record.accelerator,
        ports: record.ports,
        uefi_code: shared.host()?.uefi_code(),
        networks: &shared.networks(),
        incoming: record.memory.is_some(),
        user_networks,
        sandbox: shared.host()?.sandbox(),
        uso: shared.host()?.has_uso(),
    };
    let unit = format!("keyframe-vm-{}", place.name());
    let mut qemu = process::in_scope(&unit, shared.config.program.as_os_str());
    qemu.args(command::arguments(&plan));
    let process = Process::spawn(qemu, &place.log()).map_err(slot.file("start QEMU"))?;
    match greet(slot, &process) {
        Ok(qmp) => Ok((Arc::new(Live { process, qmp, record: Mutex::new(record) }), server)),
        Err(fault) => {
            process.kill();
            Err(fault)
        }
    }
}

fn greet(slot: &Slot, process: &Process) -> Result<Arc<Qmp>> {
    let until = Instant::now() + SPAWN;
    loop {
        match Qmp::connect(&slot.place.qmp(), until) {
            Ok(qmp) => return Ok(qmp),
            Err(_) if process.has_ended() => {
                return Err(slot.fault(FaultKind::Internal, "QEMU ended", process::last_words(&slot.place.log())));
            }
            // There is no event for the appearing of a socket; the process's end is one.
            Err(QmpError::Connect { .. }) if Instant::now() < until => drop(process.wait(Duration::from_millis(3))),
            Err(e) => return Err(slot.monitor("start")(e)),
        }
    }
}

/// Memory, cables, and go.
fn bring_up(
    shared: &Arc<Shared>,
    slot: &Arc<Slot>,
    live: &Arc<Live>,
    start: &Start<'_>,
    server: Option<Server>,
    gone: &Cell<bool>,
) -> Result<()> {
    let set = slot.monitor("set its monitor up");
    live.qmp
        .execute("migrate-set-capabilities", json!({ "capabilities": [{ "capability": "events", "state": true }] }))
        .map_err(set)?;
    load::load(slot, live, start, server)?;
    // From now on another page server can take over from one that dies.
    watch::follow(shared, slot, live);
    for nic in &start.machine.nics {
        let up = nic.link_up && !start.new_identity;
        let arguments = json!({ "name": command::nic_id(nic.slot), "up": up });
        live.qmp.execute("set_link", arguments).map_err(slot.monitor("set a cable"))?;
    }
    if start.paused {
        return slot.note(live, |record| record.wish = Wish::Paused);
    }
    // First of all: an agent that finds the wish lets the guest run, and a memory may not run twice.
    (start.going)()?;
    gone.set(true);
    slot.note(live, |record| record.wish = Wish::Running)?;
    go_on(slot, live)?;
    found_its_feet(slot, live)
}

/// A guest whose next page is damaged says nothing until its follower ends it.
fn found_its_feet(slot: &Slot, live: &Live) -> Result<()> {
    if live.record.lock().memory.is_none() {
        return Ok(());
    }
    match status::ask(slot, live) {
        Err(fault) if live.process.wait(GOING) => Err(fault),
        // Whoever is only slow has begun, and cannot be taken back.
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Lets the processors run; QEMU may need a moment after a capture.
pub(super) fn go_on(slot: &Slot, live: &Live) -> Result<()> {
    let until = Instant::now() + SETTLE;
    loop {
        match live.qmp.execute("cont", json!({})) {
            Err(e) if e.is_refusal() && e.to_string().contains("finalized") && Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(1));
            }
            done => return done.map(drop).map_err(slot.monitor("go on")),
        }
    }
}

pub(super) fn pause(slot: &Slot) -> Result<()> {
    let _turn = slot.turn();
    let live = slot.live()?;
    slot.note(&live, |record| record.wish = Wish::Paused)?;
    live.qmp.execute("stop", json!({})).map_err(slot.monitor("pause"))?;
    *slot.known.lock() = status::power(slot, &live)?;
    Ok(())
}

pub(super) fn resume(slot: &Slot) -> Result<()> {
    let _turn = slot.turn();
    let live = slot.live()?;
    slot.note(&live, |record| record.wish = Wish::Running)?;
    // What has given up goes on with a reset only.
    let state = live.qmp.execute("query-status", json!({})).map_err(slot.monitor("resume"))?;
    if matches!(state["status"].as_str(), Some("internal-error" | "shutdown")) {
        return Err(slot.fault(FaultKind::Conflict, "resume", "it has crashed; reset or stop it"));
    }
    go_on(slot, &live)?;
    *slot.known.lock() = status::power(slot, &live)?;
    Ok(())
}

pub(super) fn reset(slot: &Slot) -> Result<()> {
    let _turn = slot.turn();
    let live = slot.live()?;
    live.qmp.execute("system_reset", json!({})).map(drop).map_err(slot.monitor("reset"))
}

/// Ends the process whatever it or anybody else is doing; who has the turn will find out.
fn unplug(slot: &Slot) -> Result<()> {
    slot.unplugged.store(true, Ordering::SeqCst);
    let live = slot.live.lock().clone();
    if let Some(live) = live {
        live.process.end().map_err(slot.file("stop"))?;
    }
    if let Some(stray) = &*slot.stray.lock() {
        stray.end().map_err(slot.file("stop"))?;
    }
    Ok(())
}

pub(super) fn stop(slot: &Slot, how: StopHow) -> Result<Option<u32>> {
    if how == StopHow::Hard {
        unplug(slot)?;
    }
    let _turn = slot.turn();
    let Some(live) = slot.running() else {
        if how == StopHow::Hard && slot.stray.lock().as_ref().is_some_and(|process| !process.kill()) {
            return Err(slot.fault(FaultKind::Internal, "stop", "its process does not end"));
        }
        slot.check_stray()?;
        slot.ended();
        *slot.known.lock() = Power::Off;
        return Ok(leaving(slot));
    };
    match how {
        StopHow::Hard => {}
        StopHow::Graceful { deadline, then_hard } => {
            let gone = ask_to_stop(slot, &live, Instant::now() + Duration::from(deadline));
            if !gone && !then_hard {
                let why = "the guest did not power off in time; stop it hard, or give it longer";
                return Err(slot.fault(FaultKind::Deadline, "stop", why));
            }
        }
    }
    // The plug: to the guest a power failure, whether QEMU listens or not.
    live.process.end().map_err(slot.file("stop"))?;
    *slot.leaving.lock() = Some(live.process.try_clone().map_err(slot.file("stop"))?);
    slot.ended();
    *slot.known.lock() = Power::Off;
    Ok(leaving(slot))
}

/// The process that was stopped last, until it is gone.
fn leaving(slot: &Slot) -> Option<u32> {
    let mut leaving = slot.leaving.lock();
    leaving.take_if(|process| process.has_ended());
    leaving.as_ref().map(Process::pid)
}

/// Asks the guest through its agent and presses the power button; says whether it is gone.
fn ask_to_stop(slot: &Slot, live: &Live, until: Instant) -> bool {
    // A guest that stands still hears nothing.
    if matches!(status::power(slot, live), Ok(Power::Paused { .. })) && go_on(slot, live).is_err() {
        return false;
    }
    let mut asked = false;
    loop {
        // The agent of a guest that boots comes later.
        if !asked {
            match ask_agent(slot, until.min(Instant::now() + ASK_AGENT)) {
                Ok(()) => asked = true,
                Err(e) => tracing::debug!(vm = %slot.vm, "ask the guest agent to power off: {e}"),
            }
        }
        // An agent may have lied; the button does no harm to a guest that is on its way.
        if let Err(e) = live.qmp.execute("system_powerdown", json!({})) {
            tracing::debug!(vm = %slot.vm, "press the power button: {e}");
        }
        let left = until.saturating_duration_since(Instant::now());
        if live.process.wait(left.min(PRESS_AGAIN)) {
            return true;
        }
        if left.is_zero() {
            return false;
        }
    }
}

fn ask_agent(slot: &Slot, until: Instant) -> std::result::Result<(), AgentError> {
    let mut agent = Agent::connect(&slot.place.agent(), until)?;
    // One that is frozen refuses everything else.
    if agent.is_frozen(until)? {
        agent.count("guest-fsfreeze-thaw", until)?;
    }
    agent.send("guest-shutdown", &json!({ "mode": "powerdown" }), until)
}

pub(super) fn remove(shared: &Shared, slot: &Slot) -> Result<()> {
    let _turn = slot.turn();
    if slot.running().is_some() {
        return Err(slot.fault(FaultKind::Conflict, "remove", "it is on; stop it first"));
    }
    slot.check_stray()?;
    slot.ended();
    slot.place.remove().map_err(slot.file("remove its folder"))?;
    aside::home(shared, slot.vm).map_or(Ok(()), |home| home.remove()).map_err(slot.file("remove its folder"))?;
    shared.slots.lock().remove(&slot.vm);
    Ok(())
}
