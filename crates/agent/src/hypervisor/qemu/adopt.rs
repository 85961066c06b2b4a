//! Processes of an earlier agent, found by their command line, and what that agent left half-done with them.
//!
//! | left behind | brought to |
//! |---|---|
//! | a machine that was being started | off |
//! | a capture under way | called off; the guest as it was |
//! | a guest stopped for a moment | what the record says was wished |
//! | frozen file systems | thawed |
//! | a machine that was being set aside | set aside |
//! | memory still coming, its page server gone | another page server |
//! | memory still coming, its page server gone, and QEMU itself waiting for it | another page server, by a second monitor |
//! | a monitor that does not answer | tried again until it does, or the process ends |

use std::fs;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use keyframe_agent_api::{Fault, FaultKind, Power, VmId};
use parking_lot::Mutex;

use super::place::{Place, Wish};
use super::process::{self, Process};
use super::qmp::{Qmp, QmpError};
use super::{ASKED, Driver, Live, Shared, Slot, aside, capture, guest, hub, life, load, spare, status, tap, watch};
use crate::Result;
use crate::hypervisor::News;

/// A monitor that is not busy answers at once.
const GREET: Duration = Duration::from_secs(10);
/// One that says nothing while its memory comes may wait for a page that nobody sends.
const LOADING: Duration = Duration::from_secs(2);
/// Machines that answer are there when the agent begins to serve; it does not wait longer for those that do not.
const SERVE: Duration = Duration::from_secs(5);
/// Until the next try with one that did not answer.
const AGAIN: Duration = Duration::from_secs(3);

pub(super) fn adopt(shared: &Arc<Shared>) -> Result<Vec<VmId>> {
    let trouble = |e: std::io::Error| {
        Fault::new(FaultKind::Internal, format!("look for machines in {}: {e}", shared.config.machines.display()))
    };
    fs::create_dir_all(&shared.config.machines).map_err(trouble)?;
    let mut processes = process::with_option("-pidfile").map_err(trouble)?;
    let mut found = Vec::new();
    let (tried, first_tries) = channel();
    let mut waiting = 0;
    let mut without = Vec::new();
    for entry in fs::read_dir(&shared.config.machines).map_err(trouble)? {
        let name = entry.map_err(trouble)?.file_name();
        let Some((vm, number)) = name.to_str().and_then(Place::parse) else { continue };
        let place = shared.place(vm, number);
        let Some(process) = processes.remove(&place.pid()) else {
            without.push((vm, place));
            continue;
        };
        let slot = slot_of(shared, vm, place);
        if !slot.aside {
            found.push(vm);
        }
        if slot.running().is_none() {
            *slot.stray.lock() = Some(process.try_clone().map_err(trouble)?);
            waiting += 1;
            in_background(shared, &slot, process, Some(tried.clone()));
        }
    }
    for (vm, place) in without {
        if let Err(e) = clear(shared, vm, &place) {
            tracing::warn!(%vm, "clear {}: {e}", place.dir.display());
        }
    }
    let until = Instant::now() + SERVE;
    for _ in 0..waiting {
        match first_tries.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok((vm, worth)) => found.retain(|other| worth || *other != vm),
            Err(_) => break,
        }
    }
    found.sort();
    Ok(found)
}

/// What the process in a folder is: the machine, or what is left of one that was given up.
fn slot_of(shared: &Shared, vm: VmId, place: Place) -> Arc<Slot> {
    let aside = place.read_record().ok().and_then(|record| record.aside);
    let known = match aside {
        Some(snapshot) => shared.asides.lock().get(&snapshot).cloned(),
        None => shared.slots.lock().get(&vm).cloned(),
    };
    if let Some(known) = known.filter(|known| known.place.dir == place.dir) {
        return known;
    }
    let slot = Slot::new(vm, place, aside.is_some());
    match aside {
        Some(snapshot) => shared.asides.lock().insert(snapshot, Arc::clone(&slot)),
        None => shared.slots.lock().insert(vm, Arc::clone(&slot)),
    };
    slot
}

/// Removes what a process that has ended needed on this host.
fn clear(shared: &Shared, vm: VmId, place: &Place) -> std::io::Result<()> {
    let record = place.read_record().ok();
    let is_current = shared.slot(vm).place.dir == place.dir;
    // Taps are called by the interface, and may be those of the machine's process in another folder.
    if let Some(record) = record.filter(|record| record.aside.is_none() && shared.slot(vm).running().is_none()) {
        tap::remove_all(&record.machine);
    }
    if is_current {
        place.sweep();
        return Ok(());
    }
    place.leave()
}

/// Takes over a machine whose monitor was lost.
pub(super) fn again(shared: &Arc<Shared>, slot: &Arc<Slot>, process: &Process) {
    match (process.try_clone(), process.try_clone()) {
        (Ok(stray), Ok(process)) => {
            *slot.stray.lock() = Some(stray);
            in_background(shared, slot, process, None);
        }
        (Err(e), _) | (_, Err(e)) => tracing::error!(vm = %slot.vm, "take it over again: {e}"),
    }
}

/// Whose first try is over, and whether the machine was worth anything.
type Tried = Sender<(VmId, bool)>;

fn in_background(shared: &Arc<Shared>, slot: &Arc<Slot>, process: Process, tried: Option<Tried>) {
    let taking = Taking { driver: Arc::downgrade(shared), slot: Arc::clone(slot), process, live: None };
    if let Err(e) = std::thread::Builder::new().name("adopt".into()).spawn(move || taking.run(tried)) {
        tracing::error!(vm = %slot.vm, "take it over: {e}");
    }
}

/// A machine on its way to being ours.
struct Taking {
    driver: Driver,
    slot: Arc<Slot>,
    process: Process,
    /// What is left to do with it is no more than to settle it.
    live: Option<Arc<Live>>,
}

impl Taking {
    fn run(mut self, mut tried: Option<Tried>) {
        while let Some(shared) = self.driver.upgrade().filter(|shared| !shared.is_over()) {
            let (done, news) = self.try_once(&shared);
            if let Some(tried) = tried.take() {
                // Nobody may be waiting any more.
                tried.send((self.slot.vm, self.slot.aside || !matches!(done, Ok(false)))).unwrap_or(());
            }
            if let Some(power) = news {
                shared.tell(&self.slot, News::Does(power));
            }
            match done {
                Ok(_) => return,
                Err(fault) => tracing::error!("{fault}"),
            }
            drop(shared);
            self.process.wait(AGAIN);
        }
    }

    /// One try, in the machine's turn: whether it was worth anything, and what it does if that is news.
    fn try_once(&mut self, shared: &Arc<Shared>) -> (Result<bool>, Option<Power>) {
        let slot = Arc::clone(&self.slot);
        let _turn = slot.turn();
        let done = match self.process.has_ended() {
            true => self.forget(shared),
            false => self.take_over(shared),
        };
        let now = match done {
            Ok(true) => status::power(&slot, self.live.as_ref().expect("it was taken over")).ok(),
            Ok(false) => Some(Power::Off),
            Err(_) => None,
        };
        let mut known = slot.known.lock();
        let news = now.filter(|now| *now != *known);
        if let Some(now) = &news {
            *known = now.clone();
        }
        (done, news)
    }

    /// It has ended, or has to.
    fn forget(&self, shared: &Shared) -> Result<bool> {
        self.process.kill();
        *self.slot.stray.lock() = None;
        if self.slot.running().is_none() {
            self.slot.ended();
            clear(shared, self.slot.vm, &self.slot.place).map_err(self.slot.file("clear its folder"))?;
        }
        Ok(false)
    }

    fn take_over(&mut self, shared: &Arc<Shared>) -> Result<bool> {
        let slot = &self.slot;
        if let Some(live) = &self.live {
            return settle(slot, live).map(|()| true);
        }
        let record = match slot.place.read_record() {
            Ok(record) if record.wish != Wish::Starting => record,
            record => {
                if let Err(e) = record {
                    tracing::error!(vm = %slot.vm, "nobody knows any more what it is: {e}");
                }
                return self.forget(shared);
            }
        };
        let patience = if record.memory.is_some() { LOADING } else { GREET };
        let connected = Qmp::connect(&slot.place.qmp(), Instant::now() + patience);
        if let (Err(QmpError::Silent { .. }), Some(image)) = (&connected, &record.memory) {
            if let Some(why) = load::damage(&slot.place) {
                tracing::error!(vm = %slot.vm, "it waits for memory that is lost: {why}");
                return self.forget(shared);
            }
            spare::recover(shared, slot, &self.process, image);
        }
        let qmp = connected.map_err(slot.monitor("adopt"))?;
        let process = self.process.try_clone().map_err(slot.file("adopt"))?;
        let live = Arc::new(Live { process, qmp, record: Mutex::new(record) });
        if slot.aside
            && let Err(fault) = aside::finish(slot, &live)
        {
            tracing::error!("{fault}; it is ended, and its memory is lost");
            return self.forget(shared);
        }
        *slot.live.lock() = Some(Arc::clone(&live));
        *slot.stray.lock() = None;
        self.live = Some(Arc::clone(&live));
        if shared.is_over() {
            live.qmp.close();
            return Ok(true);
        }
        // First of all, so that its memory comes and its end is seen whatever fails below.
        watch::follow(shared, slot, &live);
        let settled = settle(slot, &live);
        if slot.freezer.lock().is_none() && slot.place.frozen().exists() {
            guest::thaw::in_background(shared, slot, &live);
        }
        let machine = live.record.lock().machine.clone();
        if let Err(fault) = hub::ensure_all(shared, &machine) {
            tracing::error!("{fault}");
        }
        settled.map(|()| true)
    }
}

/// Ends what an earlier agent had begun with it.
fn settle(slot: &Slot, live: &Live) -> Result<()> {
    if live.qmp.is_closed() {
        // Its follower has seen that.
        return Ok(());
    }
    let (wish, loading) = {
        let record = live.record.lock();
        (record.wish, record.memory.is_some())
    };
    if !loading {
        capture::call_off(live).map_err(slot.monitor("call a capture off"))?;
    }
    if wish == Wish::Running && status::ask(slot, live)? == ASKED {
        tracing::info!(vm = %slot.vm, "it had been stopped for a moment; it goes on");
        life::go_on(slot, live)?;
    }
    Ok(())
}
