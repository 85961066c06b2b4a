//! Machines that exist in this process and in a directory only, for tests of everything above a hypervisor.
//!
//! Quick, and honest about states and errors: it passes the suite that the real driver passes. A machine's process is a
//! file in the directory, so that another driver on the same directory finds it, as after the death of an agent. Its guest
//! counts and writes through the real exports (see [`Memory`]); it takes a step when somebody makes it ([`Fake::step`]) and
//! while it is captured.

mod capture;
mod disks;
mod faults;
mod guest;
mod image;
mod state;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use keyframe_agent_api::{
    Accelerator, Bytes, DiskId, DiskSlot, Fault, FaultKind, FixedIdentity, Generation, GuestIdentity, MemoryInfo,
    NicId, PauseReason, Power, SnapshotId, StopHow, Timestamp, VmId, VmStatus,
};
use parking_lot::{Mutex, MutexGuard};

use super::{BlockAddress, Cancel, Captured, Cut, Hypervisor, HypervisorInfo, News, Start, Tell};
use crate::Result;
use crate::work::Work;
pub use faults::{Faults, When};
use guest::Disks;
pub use guest::Memory;
pub use state::Machine;

/// What a fake is like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FakeOptions {
    /// The guests open their disks and write to them. Without, they only count.
    pub disks: bool,
}

impl Default for FakeOptions {
    fn default() -> FakeOptions {
        FakeOptions { disks: true }
    }
}

/// How a guest's agent behaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Mood {
    /// It does what it is asked.
    #[default]
    Willing,
    /// It never answers.
    Silent,
    /// It says no.
    Refusing,
    /// It says that it froze, and did not.
    Lying,
}

/// The driver.
pub struct Fake {
    dir: PathBuf,
    options: FakeOptions,
    faults: Faults,
    slots: Mutex<HashMap<VmId, Arc<Slot>>>,
    /// What was given up, and is only memory now.
    asides: Mutex<HashMap<SnapshotId, Machine>>,
    listener: Mutex<Option<Arc<Tell>>>,
    /// Of guests that are not there yet.
    mood: Mutex<Mood>,
}

/// One machine, on or off.
struct Slot {
    vm: VmId,
    turn: Mutex<()>,
    machine: Mutex<Option<Machine>>,
    /// Held while the guest takes a step: whoever has it has stopped the guest.
    disks: Mutex<Disks>,
    frozen: Mutex<Option<Instant>>,
    mood: Mutex<Mood>,
}

impl Slot {
    fn fault(&self, kind: FaultKind, why: &str) -> Fault {
        Fault::new(kind, format!("machine {}: {why}", self.vm))
    }

    fn get(&self) -> Result<Machine> {
        self.machine.lock().clone().ok_or_else(|| self.fault(FaultKind::Conflict, "it is off"))
    }
}

impl Fake {
    /// A driver on a directory, which it makes. It knows no machine before [`adopt`](Hypervisor::adopt).
    pub fn new(dir: impl Into<PathBuf>, options: FakeOptions) -> Fake {
        Fake {
            dir: dir.into(),
            options,
            faults: Faults::default(),
            slots: Mutex::default(),
            asides: Mutex::default(),
            listener: Mutex::default(),
            mood: Mutex::default(),
        }
    }

    /// What goes wrong.
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// Sets how a guest's agent behaves.
    pub fn mood(&self, vm: VmId, mood: Mood) {
        *self.slot(vm).mood.lock() = mood;
    }

    /// How the agents of guests behave that are not there yet.
    pub fn mood_of_new(&self, mood: Mood) {
        *self.mood.lock() = mood;
    }

    /// A machine as it is, if it is on.
    pub fn machine(&self, vm: VmId) -> Option<Machine> {
        self.slot(vm).machine.lock().clone()
    }

    /// Lets a running guest take steps: each is one write to one disk, or one number further.
    pub fn step(&self, vm: VmId, steps: usize) -> Result<Memory> {
        let slot = self.slot(vm);
        for _ in 0..steps {
            self.one_step(&slot)?;
        }
        slot.get().map(|machine| machine.guest)
    }

    /// Fails unless the guest's disks are of the same instant as its memory, as the guest itself would find out.
    pub fn check(&self, vm: VmId) -> Result<()> {
        let slot = self.slot(vm);
        let machine = slot.get()?;
        let mut disks = slot.disks.lock();
        disks.check(machine.guest, &machine.wanted(self.options.disks))
    }

    /// Ends a machine's process, as `kill -9` does.
    pub fn kill(&self, vm: VmId) -> Result<()> {
        let slot = self.slot(vm);
        self.end(&slot)?;
        self.tell(vm, Power::Off);
        Ok(())
    }

    /// Ends the process that was set aside for a snapshot, as `kill -9` does.
    pub fn kill_aside(&self, snapshot: SnapshotId) -> Result<()> {
        self.asides.lock().remove(&snapshot);
        Machine::delete_aside(&self.dir, snapshot).map_err(|e| Fault::new(FaultKind::Internal, e.to_string()))
    }

    /// Something stops a guest that nobody asked for: a full array, a failed disk, a crash.
    pub fn stumble(&self, vm: VmId, reason: PauseReason) -> Result<()> {
        let slot = self.slot(vm);
        self.change(&slot, |machine| machine.power = Power::Paused { reason })?;
        self.tell(vm, Power::Paused { reason });
        Ok(())
    }

    /// Something goes wrong with it that nobody asked for.
    pub fn complain(&self, vm: VmId, fault: Fault) {
        self.tell_news(vm, News::Complains(fault));
    }

    fn tell(&self, vm: VmId, power: Power) {
        self.tell_news(vm, News::Does(power));
    }

    fn tell_news(&self, vm: VmId, news: News) {
        let listener = self.listener.lock().clone();
        if let Some(tell) = listener {
            tell(vm, news);
        }
    }

    fn slot(&self, vm: VmId) -> Arc<Slot> {
        let make = || {
            Arc::new(Slot {
                vm,
                turn: Mutex::default(),
                machine: Mutex::default(),
                disks: Mutex::default(),
                frozen: Mutex::default(),
                mood: Mutex::new(*self.mood.lock()),
            })
        };
        Arc::clone(self.slots.lock().entry(vm).or_insert_with(make))
    }

    /// One step of a guest that runs; of one that does not, none.
    fn one_step(&self, slot: &Slot) -> Result<()> {
        let mut disks = slot.disks.lock();
        let machine = slot.get()?;
        if machine.power != Power::Running || slot.frozen.lock().is_some_and(|until| Instant::now() < until) {
            return Ok(());
        }
        let stepped = disks.step(machine.guest, &machine.wanted(self.options.disks));
        let stepped = stepped.map_err(|e| slot.fault(FaultKind::Internal, &format!("its guest writes: {e}")))?;
        self.change(slot, |machine| machine.guest = stepped)
    }

    /// Changes a machine that is on, here and in the directory.
    fn change(&self, slot: &Slot, change: impl FnOnce(&mut Machine)) -> Result<()> {
        let mut current = slot.machine.lock();
        let machine = current.as_mut().ok_or_else(|| slot.fault(FaultKind::Conflict, "it is off"))?;
        change(machine);
        machine.write(&self.dir, slot.vm).map_err(|e| slot.fault(FaultKind::Internal, &e.to_string()))
    }

    fn end(&self, slot: &Slot) -> Result<()> {
        let mut current = slot.machine.lock();
        *current = None;
        *slot.frozen.lock() = None;
        Machine::delete(&self.dir, slot.vm).map_err(|e| slot.fault(FaultKind::Internal, &e.to_string()))?;
        drop(current);
        // A step under way is not waited for: the process is gone.
        if let Some(mut disks) = slot.disks.try_lock() {
            *disks = Disks::default();
        }
        Ok(())
    }

    /// Does something with a machine that is on, in its turn.
    fn with<T>(&self, call: &str, vm: VmId, act: impl FnOnce(&Slot, Machine) -> Result<T>) -> Result<T> {
        let slot = self.slot(vm);
        let _turn: MutexGuard<'_, ()> = slot.turn.lock();
        self.faults.around(call, None, || act(&slot, slot.get()?))
    }

    fn launch(&self, slot: &Slot, start: &Start<'_>) -> Result<()> {
        if slot.machine.lock().is_some() {
            return Err(slot.fault(FaultKind::Conflict, "it is on already"));
        }
        let guest = match start.memory {
            Some(image) => image::read(image)?.fits(image, start.machine)?,
            None => Memory::default(),
        };
        let power = if start.paused { ASKED } else { Power::Running };
        let machine = Machine::new(start, guest, power);
        let opened = Disks::open(&machine.wanted(self.options.disks));
        *slot.disks.lock() =
            opened.map_err(|e| slot.fault(FaultKind::Internal, &format!("it cannot open its disks: {e}")))?;
        if !start.paused {
            (start.going)()?;
        }
        machine.write(&self.dir, slot.vm).map_err(|e| slot.fault(FaultKind::Internal, &e.to_string()))?;
        *slot.machine.lock() = Some(machine);
        Ok(())
    }
}

const ASKED: Power = Power::Paused { reason: PauseReason::Asked };

impl Hypervisor for Fake {
    fn info(&self) -> Result<HypervisorInfo> {
        self.faults.around("info", None, || {
            Ok(HypervisorInfo {
                version: image::VERSION.into(),
                machine_type: image::MACHINE_TYPE.into(),
                accelerator: Accelerator::Emulation { reason: "nothing here is real".into() },
                uefi_variables: None,
            })
        })
    }

    fn adopt(&self) -> Result<Vec<VmId>> {
        self.faults.around("adopt", None, || {
            for (vm, machine) in Machine::all(&self.dir).map_err(|e| Fault::new(FaultKind::Internal, e.to_string()))? {
                let slot = self.slot(vm);
                *slot.frozen.lock() = None;
                slot.machine.lock().get_or_insert(machine);
            }
            let asides = Machine::all_aside(&self.dir).map_err(|e| Fault::new(FaultKind::Internal, e.to_string()))?;
            self.asides.lock().extend(asides);
            let slots = self.slots.lock();
            let mut found: Vec<VmId> =
                slots.iter().filter(|(_, slot)| slot.machine.lock().is_some()).map(|(vm, _)| *vm).collect();
            found.sort();
            Ok(found)
        })
    }

    fn check(&self, machine: &keyframe_agent_api::Machine, memory: Option<&Path>) -> Result<()> {
        self.faults.around("check", None, || match memory {
            Some(image) => image::read(image)?.fits(image, machine).map(drop),
            None => Ok(()),
        })
    }

    fn start(&self, vm: VmId, start: &Start<'_>) -> Result<()> {
        let slot = self.slot(vm);
        let _turn = slot.turn.lock();
        self.faults.around("start", None, || self.launch(&slot, start))
    }

    fn status(&self, vm: VmId) -> Result<VmStatus> {
        self.faults.around("status", None, || {
            let slot = self.slot(vm);
            let machine = slot.machine.lock().clone();
            // Memory is all in a moment later.
            if machine.as_ref().is_some_and(|machine| machine.pending > Bytes(0)) {
                self.change(&slot, |machine| machine.pending = Bytes(0))?;
            }
            let on = machine.is_some();
            Ok(VmStatus {
                vm,
                generation: Generation(0),
                power: machine.as_ref().map_or(Power::Off, |machine| machine.power.clone()),
                pid: machine.as_ref().map(|_| std::process::id()),
                since: machine.as_ref().map(|machine| machine.since),
                hypervisor: on.then(|| image::VERSION.into()),
                emulated: on,
                memory_pending: machine.as_ref().map_or(Bytes(0), |machine| machine.pending),
                vnc: None,
                console: None,
                machine: machine.map(|machine| machine.hardware),
            })
        })
    }

    fn stop(&self, vm: VmId, how: StopHow) -> Result<Option<u32>> {
        let slot = self.slot(vm);
        self.faults.around("stop", None, || {
            if how == StopHow::Hard {
                // Whatever is under way ends with the process.
                self.end(&slot)?;
            }
            let _turn = slot.turn.lock();
            let silent = *slot.mood.lock() == Mood::Silent && slot.machine.lock().is_some();
            if silent && matches!(how, StopHow::Graceful { then_hard: false, .. }) {
                return Err(slot.fault(FaultKind::Deadline, "the guest did not power off in time"));
            }
            self.end(&slot).map(|()| None)
        })
    }

    fn pause(&self, vm: VmId) -> Result<()> {
        self.with("pause", vm, |slot, _| self.change(slot, |machine| machine.power = ASKED))
    }

    fn resume(&self, vm: VmId) -> Result<()> {
        self.with("resume", vm, |slot, _| self.change(slot, |machine| machine.power = Power::Running))
    }

    fn reset(&self, vm: VmId) -> Result<()> {
        self.with("reset", vm, |slot, _| {
            let _stopped = slot.disks.lock();
            self.change(slot, |machine| machine.guest = Memory::default())
        })
    }

    fn add_disk(&self, vm: VmId, disk: &DiskSlot, blocks: &BlockAddress) -> Result<()> {
        self.with("add_disk", vm, |slot, machine| {
            if machine.hardware.disks.contains(disk) {
                return Ok(());
            }
            if machine.hardware.disks.iter().any(|other| other.slot == disk.slot || other.id == disk.id) {
                return Err(slot.fault(FaultKind::Conflict, "the slot or the disk is in use"));
            }
            self.change(slot, |machine| machine.add(disk, blocks))
        })
    }

    fn remove_disk(&self, vm: VmId, disk: DiskId, _deadline: Duration) -> Result<()> {
        self.with("remove_disk", vm, |slot, machine| {
            if *slot.mood.lock() == Mood::Silent && machine.hardware.disks.iter().any(|other| other.id == disk) {
                return Err(slot.fault(FaultKind::Deadline, "the guest has not let go of the disk in time"));
            }
            let mut disks = slot.disks.lock();
            disks.close(disk);
            self.change(slot, |machine| machine.take(disk))
        })
    }

    fn disk_resized(&self, vm: VmId, disk: DiskId) -> Result<()> {
        self.with("disk_resized", vm, |slot, machine| {
            if !machine.hardware.disks.iter().any(|other| other.id == disk) {
                return Err(slot.fault(FaultKind::NotFound, &format!("it has no disk {disk}")));
            }
            let mut disks = slot.disks.lock();
            match machine.wanted(self.options.disks).iter().find(|(id, _)| *id == disk) {
                Some(wanted) => disks.reopen(wanted).map(drop).map_err(|e| guest::trouble(wanted, &e)),
                None => Ok(()),
            }
        })
    }

    fn set_link(&self, vm: VmId, nic: NicId, up: bool) -> Result<()> {
        self.with("set_link", vm, |slot, machine| {
            if !machine.hardware.nics.iter().any(|other| other.id == nic) {
                return Err(slot.fault(FaultKind::NotFound, &format!("it has no interface {nic}")));
            }
            self.change(slot, |machine| machine.plug(nic, up))
        })
    }

    fn fix_identity(&self, vm: VmId, identity: &GuestIdentity, _deadline: Duration) -> Result<FixedIdentity> {
        self.with("fix_identity", vm, |slot, _| {
            let agent = *slot.mood.lock() != Mood::Silent;
            let done = *slot.mood.lock() == Mood::Willing;
            let macs = (!identity.macs.is_empty()).then_some(done);
            let copied = identity.host_name.is_some() || !identity.macs.is_empty();
            let plugged = agent && copied && macs != Some(false);
            self.change(slot, |machine| {
                machine.identity = done.then(|| identity.clone()).or(machine.identity.take());
                if plugged {
                    machine.plug_all();
                }
            })?;
            Ok(FixedIdentity {
                agent,
                host_name: identity.host_name.as_ref().map(|_| done),
                macs,
                clock: identity.clock.then_some(done),
                plugged,
                complaints: if done { Vec::new() } else { vec!["the guest agent does not answer".into()] },
            })
        })
    }

    fn freeze(&self, vm: VmId, _deadline: Duration, hold: Duration) -> Result<u32> {
        self.with("freeze", vm, |slot, machine| {
            // Takes the guest's step under way with it.
            let _stopped = slot.disks.lock();
            let mut frozen = slot.frozen.lock();
            match *slot.mood.lock() {
                Mood::Silent => return Err(slot.fault(FaultKind::Deadline, "the guest agent does not answer")),
                Mood::Refusing => return Err(slot.fault(FaultKind::Guest, "the guest agent says no")),
                Mood::Lying => {
                    return Err(slot.fault(FaultKind::Guest, "the guest agent says it froze, but it has not"));
                }
                Mood::Willing => {}
            }
            if frozen.is_some_and(|until| Instant::now() < until) {
                return Err(slot.fault(FaultKind::Conflict, "it is frozen already"));
            }
            *frozen = Some(Instant::now() + hold);
            Ok(u32::try_from(machine.hardware.disks.len().max(1)).unwrap_or(1))
        })
    }

    fn thaw(&self, vm: VmId) -> Result<()> {
        self.with("thaw", vm, |slot, _| match slot.frozen.lock().take() {
            Some(until) if Instant::now() < until => Ok(()),
            Some(_) => Err(slot.fault(FaultKind::Guest, "the time to hold it was over")),
            None => Err(slot.fault(FaultKind::Conflict, "it is not frozen")),
        })
    }

    fn capture(&self, vm: VmId, to: &Path, cut: &mut dyn Cut, cancel: &dyn Cancel) -> Result<Captured> {
        let slot = self.slot(vm);
        let _turn = slot.turn.lock();
        let captured = self.faults.around("capture", Some(cancel), || capture::capture(self, &slot, to, cut, cancel));
        cut.abandon();
        // What dies leaves its draft behind, what fails does not.
        if captured.as_ref().is_err_and(|fault| fault.kind != FaultKind::Unreachable) {
            image::discard(to);
        }
        captured
    }

    fn image(&self, image: &Path) -> Result<MemoryInfo> {
        self.faults.around("image", None, || image::read(image)?.info(image))
    }

    fn verify(&self, image: &Path, work: &Work) -> Result<MemoryInfo> {
        work.reached(1, 2);
        self.faults.around("verify", Some(work), || image::read(image)?.info(image))
    }

    fn compress(&self, image: &Path, work: &Work) -> Result<MemoryInfo> {
        work.reached(1, 2);
        self.faults.around("compress", Some(work), || {
            if work.cancelled() {
                return Err(Fault::new(FaultKind::Conflict, "compressing was given up"));
            }
            let mut found = image::read(image)?;
            found.compressed = true;
            found.write(image)?;
            found.info(image)
        })
    }

    fn set_aside(&self, vm: VmId, snapshot: SnapshotId) -> Result<Option<u32>> {
        self.with("set_aside", vm, |slot, machine| {
            if machine.power == Power::Running {
                return Err(slot.fault(FaultKind::Conflict, "it runs; pause it first"));
            }
            let failed = |e: std::io::Error| slot.fault(FaultKind::Internal, &e.to_string());
            machine.write_aside(&self.dir, snapshot, vm).map_err(failed)?;
            self.asides.lock().insert(snapshot, machine);
            self.end(slot).map(|()| None)
        })
    }

    fn is_aside(&self, snapshot: SnapshotId) -> bool {
        self.asides.lock().contains_key(&snapshot)
    }

    fn store_aside(&self, snapshot: SnapshotId, to: &Path, cancel: &dyn Cancel) -> Result<()> {
        self.faults.around("store_aside", None, || capture::store_aside(self, snapshot, to, cancel))
    }

    fn drop_aside(&self, snapshot: SnapshotId) -> Result<()> {
        self.faults.around("drop_aside", None, || self.kill_aside(snapshot))
    }

    fn console(&self, vm: VmId) -> Result<PathBuf> {
        self.with("console", vm, |_, _| Ok(self.dir.join(format!("{vm}.console"))))
    }

    fn remove(&self, vm: VmId) -> Result<()> {
        let slot = self.slot(vm);
        let _turn = slot.turn.lock();
        self.faults.around("remove", None, || {
            if slot.machine.lock().is_some() {
                return Err(slot.fault(FaultKind::Conflict, "it is on; stop it first"));
            }
            self.slots.lock().remove(&vm);
            Ok(())
        })
    }

    fn watch(&self, tell: Box<Tell>) {
        *self.listener.lock() = Some(tell.into());
    }
}

impl Machine {
    fn new(start: &Start<'_>, guest: Memory, power: Power) -> Machine {
        let hardware = start.machine.clone();
        let cables = hardware.nics.iter().map(|nic| (nic.id, nic.link_up && !start.new_identity)).collect();
        Machine {
            blocks: hardware.disks.iter().map(|disk| (disk.id, (start.blocks)(&disk.volume))).collect(),
            power,
            since: Timestamp::now(),
            guest,
            cables,
            identity: None,
            pending: if start.memory.is_some() { hardware.memory } else { Bytes(0) },
            hardware,
        }
    }
}
