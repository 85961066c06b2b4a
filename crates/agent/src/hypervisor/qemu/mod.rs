//! Machines as QEMU processes.
//!
//! ```text
//!  mod       registry of machines, one call at a time for each      host      what QEMU and this host can do
//!  life      start, stop, pause, resume, reset                      adopt     processes of an earlier agent
//!  capture   memory and disks of one instant, into an image         load      and back
//!  hotplug   disks and cables of a running guest                    guest     what its agent does for us
//!  command   a machine as a command line (pure)                     place     its files, and the record of what is wished
//!  qmp, qga, wire   the two protocols                               helper    processes that outlive the agent
//!  spare   a second way to a machine that hangs on its memory     huge   its memory in huge pages, for short pauses
//!  aside   a process that was given up, until its memory is stored
//!  watch   follows a machine that runs   supply   its memory that is still to come   mend   lets it go on after a hiccup
//! ```
//!
//! A machine's process is in a session of its own. All that an agent needs to take it over lies beside it or is asked of
//! it, so that an agent can be killed at any moment.

mod adopt;
mod aside;
mod bell;
mod capture;
mod command;
mod guest;
pub mod helper;
mod host;
mod hotplug;
mod hub;
mod huge;
mod kvm;
mod life;
mod load;
mod mend;
mod net;
mod place;
mod process;
mod qga;
mod qmp;
#[cfg(test)]
mod scripted;
mod seed;
mod spare;
mod status;
mod supply;
mod tap;
mod validate;
mod watch;
mod wire;

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use keyframe_agent_api::{
    DiskId, DiskSlot, Fault, FaultKind, FixedIdentity, GuestIdentity, Machine, MemoryInfo, NicId, PauseReason, Power,
    SnapshotId, StopHow, VmId, VmStatus,
};
use parking_lot::{Mutex, MutexGuard};

use super::{BlockAddress, Cancel, Captured, Cut, Hypervisor, HypervisorInfo, News, Start, Tell};
use crate::Result;
use crate::work::Work;
use guest::Freezer;
use host::{Asked, Host};
use place::{Place, Record};
use process::Process;
use qmp::{Qmp, QmpError};

/// Where things are.
#[derive(Clone, Debug)]
pub struct QemuConfig {
    /// QEMU itself.
    pub program: PathBuf,
    /// A folder with one folder for each machine.
    pub machines: PathBuf,
    /// A folder with a short path, for sockets, where those of `machines` would be longer than a socket's path may be.
    pub short: PathBuf,
    /// A program and its first arguments which lead to [`helper::run`].
    pub helper: Vec<OsString>,
    /// Run guests by this rather than by what works best.
    pub accelerator: Option<keyframe_agent_api::Accelerator>,
}

impl QemuConfig {
    /// The usual QEMU; sockets that need it go below the folder for temporary files.
    pub fn new(machines: impl Into<PathBuf>, helper: Vec<OsString>) -> QemuConfig {
        QemuConfig {
            program: "qemu-system-x86_64".into(),
            machines: machines.into(),
            short: std::env::temp_dir().join("keyframe"),
            helper,
            accelerator: None,
        }
    }
}

/// The driver. Dropping it leaves the machines running; another one may then [`adopt`](Hypervisor::adopt) them.
pub struct Qemu {
    shared: Arc<Shared>,
}

struct Shared {
    config: QemuConfig,
    host: Asked,
    /// Locked before the asides.
    slots: Mutex<HashMap<VmId, Arc<Slot>>>,
    /// Those that were given up, by the snapshot that is to have their memory.
    asides: Mutex<HashMap<SnapshotId, Arc<Slot>>>,
    listener: Mutex<Option<Arc<Tell>>>,
    /// The driver is being dropped: nobody may take anything over any more.
    over: AtomicBool,
}

/// One machine that has been heard of.
struct Slot {
    vm: VmId,
    place: Place,
    /// Only its memory is left: it is not the machine any more, and says nothing about it.
    aside: bool,
    /// Held by the one call that changes something.
    turn: Mutex<()>,
    live: Mutex<Option<Arc<Live>>>,
    /// A process that could not be taken over: the machine is not off, and nothing else is known.
    stray: Mutex<Option<Process>>,
    /// The process before, as long as it gives its memory back.
    leaving: Mutex<Option<Process>>,
    /// What was last said about it, or asked of it.
    known: Mutex<Power>,
    /// What it does while a capture makes QEMU say other things.
    covered: Mutex<Option<Power>>,
    freezer: Mutex<Option<Freezer>>,
    /// When the last capture ended.
    captured: Mutex<Option<std::time::Instant>>,
    /// Set when the gathering of its memory is to end.
    gathering: Mutex<Option<Arc<AtomicBool>>>,
    /// Somebody wants it off at once.
    unplugged: AtomicBool,
}

/// A process that ran when it was last looked at.
struct Live {
    process: Process,
    qmp: Arc<Qmp>,
    record: Mutex<Record>,
}

impl Qemu {
    /// A driver for the machines in `config.machines`, of which it knows none before [`adopt`](Hypervisor::adopt).
    pub fn new(config: QemuConfig) -> Qemu {
        let (slots, listener, over) = (Mutex::default(), Mutex::default(), AtomicBool::new(false));
        let asides = Mutex::default();
        Qemu { shared: Arc::new(Shared { config, host: Asked::default(), slots, asides, listener, over }) }
    }

    fn slot(&self, vm: VmId) -> Arc<Slot> {
        self.shared.slot(vm)
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        // QEMU talks to one monitor at a time.
        for slot in self.shared.slots.lock().values().chain(self.shared.asides.lock().values()) {
            if let Some(live) = &*slot.live.lock() {
                live.qmp.close();
            }
        }
    }
}

impl Shared {
    fn slot(&self, vm: VmId) -> Arc<Slot> {
        let make = || Slot::new(vm, aside::free_place(self, vm), false);
        Arc::clone(self.slots.lock().entry(vm).or_insert_with(make))
    }

    fn place(&self, vm: VmId, number: u32) -> Place {
        Place::new(&self.config.machines, &self.config.short, vm, number)
    }

    /// What QEMU and this host can do; asked once.
    fn host(&self) -> Result<&Host> {
        self.host.of(&self.config)
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    fn tell(&self, slot: &Slot, news: News) {
        let listener = self.listener.lock().clone();
        if let Some(tell) = listener.filter(|_| !slot.aside) {
            tell(slot.vm, news);
        }
    }

    fn networks(&self) -> PathBuf {
        self.config.short.join("networks")
    }
}

impl Slot {
    fn new(vm: VmId, place: Place, aside: bool) -> Arc<Slot> {
        Arc::new(Slot {
            vm,
            place,
            aside,
            turn: Mutex::default(),
            live: Mutex::default(),
            stray: Mutex::default(),
            leaving: Mutex::default(),
            known: Mutex::new(Power::Off),
            covered: Mutex::default(),
            freezer: Mutex::default(),
            captured: Mutex::default(),
            gathering: Mutex::default(),
            unplugged: AtomicBool::new(false),
        })
    }

    /// Waits for its turn to change something.
    fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock()
    }

    /// The machine's process, or that there is none.
    fn live(&self) -> Result<Arc<Live>> {
        self.check_stray()?;
        self.running().ok_or_else(|| Fault::new(FaultKind::Conflict, format!("machine {} is off", self.vm)))
    }

    /// An error if there is a process that nobody can talk to.
    fn check_stray(&self) -> Result<()> {
        if self.stray.lock().as_ref().is_some_and(|process| !process.has_ended()) {
            let why = "its monitor does not answer, which is tried again and again; wait, or stop it hard";
            return Err(self.fault(FaultKind::Deadline, "talk to QEMU", why));
        }
        Ok(())
    }

    fn running(&self) -> Option<Arc<Live>> {
        self.live.lock().clone().filter(|live| !live.process.has_ended())
    }

    /// A fault about this machine.
    fn fault(&self, kind: FaultKind, act: &str, why: impl std::fmt::Display) -> Fault {
        Fault::new(kind, format!("machine {}: {act}: {why}", self.vm))
    }

    fn monitor(&self, act: &str) -> impl Fn(QmpError) -> Fault {
        move |e| {
            let kind = match e {
                QmpError::Refused { .. } => FaultKind::Internal,
                QmpError::Closed { .. } => FaultKind::Conflict,
                // Unreachable is a host, which is waited for as long as it takes.
                QmpError::Silent { .. } | QmpError::Connect { .. } | QmpError::NoGreeting { .. } => FaultKind::Deadline,
            };
            self.fault(kind, act, e)
        }
    }

    fn file(&self, act: &str) -> impl Fn(std::io::Error) -> Fault {
        move |e| {
            let full = e.kind() == std::io::ErrorKind::StorageFull || e.kind() == std::io::ErrorKind::QuotaExceeded;
            self.fault(if full { FaultKind::NoSpace } else { FaultKind::Internal }, act, e)
        }
    }

    /// Changes the record of a running machine, in memory and beside the process.
    fn note(&self, live: &Live, change: impl FnOnce(&mut Record)) -> Result<()> {
        let mut record = live.record.lock();
        let mut changed = record.clone();
        change(&mut changed);
        if changed != *record {
            self.place.write_record(&changed).map_err(self.file("note its state"))?;
            *record = changed;
        }
        Ok(())
    }

    /// Forgets the process, which has ended.
    fn ended(&self) {
        let live = self.live.lock().take();
        if let Some(live) = live {
            live.qmp.close();
            self.remove_taps(&live.record.lock());
            self.place.sweep();
        }
        *self.freezer.lock() = None;
    }

    /// What is set aside has none: those of their names are of the machine that was started instead.
    fn remove_taps(&self, record: &Record) {
        if !self.aside {
            tap::remove_all(&record.machine);
        }
    }
}

impl Hypervisor for Qemu {
    fn info(&self) -> Result<HypervisorInfo> {
        Ok(self.shared.host()?.info())
    }

    fn adopt(&self) -> Result<Vec<VmId>> {
        adopt::adopt(&self.shared)
    }

    fn check(&self, machine: &Machine, memory: Option<&Path>) -> Result<()> {
        life::check(&self.shared, machine, memory).map(drop)
    }

    fn start(&self, vm: VmId, start: &Start<'_>) -> Result<()> {
        life::start(&self.shared, &self.slot(vm), start)
    }

    fn status(&self, vm: VmId) -> Result<VmStatus> {
        status::status(&self.shared, &self.slot(vm))
    }

    fn stop(&self, vm: VmId, how: StopHow) -> Result<Option<u32>> {
        life::stop(&self.slot(vm), how)
    }

    fn pause(&self, vm: VmId) -> Result<()> {
        life::pause(&self.slot(vm))
    }

    fn resume(&self, vm: VmId) -> Result<()> {
        life::resume(&self.slot(vm))
    }

    fn reset(&self, vm: VmId) -> Result<()> {
        life::reset(&self.slot(vm))
    }

    fn add_disk(&self, vm: VmId, disk: &DiskSlot, blocks: &BlockAddress) -> Result<()> {
        hotplug::add_disk(&self.slot(vm), disk, blocks)
    }

    fn remove_disk(&self, vm: VmId, disk: DiskId, deadline: Duration) -> Result<()> {
        hotplug::remove_disk(&self.slot(vm), disk, deadline)
    }

    fn disk_resized(&self, vm: VmId, disk: DiskId) -> Result<()> {
        hotplug::disk_resized(&self.slot(vm), disk)
    }

    fn set_link(&self, vm: VmId, nic: NicId, up: bool) -> Result<()> {
        hotplug::set_link(&self.slot(vm), nic, up)
    }

    fn fix_identity(&self, vm: VmId, identity: &GuestIdentity, deadline: Duration) -> Result<FixedIdentity> {
        guest::fix_identity(&self.slot(vm), identity, deadline)
    }

    fn freeze(&self, vm: VmId, deadline: Duration, hold: Duration) -> Result<u32> {
        guest::freeze(&self.shared, &self.slot(vm), deadline, hold)
    }

    fn thaw(&self, vm: VmId) -> Result<()> {
        guest::thaw(&self.slot(vm))
    }

    fn capture(&self, vm: VmId, to: &Path, cut: &mut dyn Cut, cancel: &dyn Cancel) -> Result<Captured> {
        capture::capture(&self.slot(vm), to, cut, cancel)
    }

    fn image(&self, image: &Path) -> Result<MemoryInfo> {
        load::describe(image)
    }

    fn verify(&self, image: &Path, work: &Work) -> Result<MemoryInfo> {
        load::verify(image, work)
    }

    fn compress(&self, image: &Path, work: &Work) -> Result<MemoryInfo> {
        load::compress(image, work)
    }

    fn set_aside(&self, vm: VmId, snapshot: SnapshotId) -> Result<Option<u32>> {
        aside::set(&self.shared, &self.slot(vm), snapshot)
    }

    fn is_aside(&self, snapshot: SnapshotId) -> bool {
        self.shared.asides.lock().contains_key(&snapshot)
    }

    fn store_aside(&self, snapshot: SnapshotId, to: &Path, cancel: &dyn Cancel) -> Result<()> {
        aside::store(&self.shared, snapshot, to, cancel)
    }

    fn drop_aside(&self, snapshot: SnapshotId) -> Result<()> {
        aside::discard(&self.shared, snapshot)
    }

    fn console(&self, vm: VmId) -> Result<PathBuf> {
        let slot = self.slot(vm);
        slot.live().map(|_| slot.place.console())
    }

    fn remove(&self, vm: VmId) -> Result<()> {
        life::remove(&self.shared, &self.slot(vm))
    }

    fn watch(&self, tell: Box<Tell>) {
        *self.shared.listener.lock() = Some(tell.into());
    }
}

/// What somebody asked for.
const ASKED: Power = Power::Paused { reason: PauseReason::Asked };

/// For threads that must not keep a driver alive.
type Driver = Weak<Shared>;
