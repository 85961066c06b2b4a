//! Processes of an earlier agent, found by their command line, and what that agent left half-done with them.
//!
//! | left behind | brought to |
//! |---|---|
//! | a machine that was being started | off |
//! | a capture under way | called off; the guest as it was |
//! | a guest stopped for a moment | what the record says was wished |
//! | frozen file systems | thawed |
//! | memory still coming, its page server gone | another page server |

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use keyframe_agent_api::{Fault, FaultKind, VmId};
use parking_lot::Mutex;

use super::place::Wish;
use super::process::{self, Process};
use super::qmp::Qmp;
use super::{ASKED, Live, Shared, Slot, capture, guest, hub, life, status, watch};
use crate::Result;

/// A monitor that is not busy answers at once.
const GREET: Duration = Duration::from_secs(10);

pub(super) fn adopt(shared: &Arc<Shared>) -> Result<Vec<VmId>> {
    let trouble = |e: std::io::Error| {
        Fault::new(FaultKind::Internal, format!("look for machines in {}: {e}", shared.config.machines.display()))
    };
    fs::create_dir_all(&shared.config.machines).map_err(trouble)?;
    let mut processes = process::with_option("-pidfile").map_err(trouble)?;
    let mut found = Vec::new();
    for entry in fs::read_dir(&shared.config.machines).map_err(trouble)? {
        let Some(vm) = entry.map_err(trouble)?.file_name().to_str().and_then(|name| name.parse::<VmId>().ok()) else {
            continue;
        };
        let slot = shared.slot(vm);
        let _turn = slot.turn();
        if slot.running().is_some() {
            found.push(vm);
            continue;
        }
        match processes.remove(&slot.place.pid()) {
            Some(process) => {
                *slot.stray.lock() = Some(process.try_clone().map_err(trouble)?);
                match take_over(shared, &slot, process) {
                    Ok(true) => found.push(vm),
                    Ok(false) => {}
                    Err(fault) => {
                        tracing::error!("{fault}");
                        found.push(vm);
                    }
                }
                if slot.live.lock().is_some() {
                    *slot.stray.lock() = None;
                }
            }
            None => slot.place.sweep(),
        }
    }
    found.sort();
    Ok(found)
}

/// Takes one machine over; `false` if it was worth nothing.
fn take_over(shared: &Arc<Shared>, slot: &Arc<Slot>, process: Process) -> Result<bool> {
    let record = slot.place.read_record();
    let record = match record {
        Ok(record) if record.wish != Wish::Starting => record,
        record => {
            if let Err(e) = record {
                tracing::error!(vm = %slot.vm, "nobody knows any more what it is: {e}");
            }
            process.kill();
            slot.place.sweep();
            return Ok(false);
        }
    };
    let qmp = Qmp::connect(&slot.place.qmp(), Instant::now() + GREET).map_err(slot.monitor("adopt"))?;
    let live = Arc::new(Live { process, qmp, record: Mutex::new(record) });
    *slot.live.lock() = Some(Arc::clone(&live));
    let machine = live.record.lock().machine.clone();
    if live.record.lock().memory.is_none() {
        capture::call_off(&live).map_err(slot.monitor("call a capture off"))?;
    }
    let wish = live.record.lock().wish;
    if wish == Wish::Running && status::ask(slot, &live)? == ASKED {
        tracing::info!(vm = %slot.vm, "an earlier agent had stopped it for a moment; it goes on");
        life::go_on(slot, &live)?;
    }
    if slot.place.frozen().exists() && guest::thaw_directly(slot) {
        tracing::warn!(vm = %slot.vm, "an earlier agent had left it frozen; it is thawed");
    }
    if let Err(fault) = hub::ensure_all(shared, &machine) {
        tracing::error!("{fault}");
    }
    *slot.known.lock() = status::ask(slot, &live)?;
    watch::follow(shared, slot, &live);
    Ok(true)
}
