//! What can be done to machines: each act takes the machine's turn, checks the generation, and asks the hypervisor.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use keyframe_agent_api::{
    ConfigureDisk, DiskId, DiskSlot, Fault, FaultKind, FixIdentity, FixedIdentity, GiveUp, InstantReport, PauseReason,
    Power, RemoveMachine, SetLink, SnapshotId, StartFrom, StartVm, StopHow, StopVm, TakeInstant, VmCall, VmId,
    VmStatus, VolumeRef,
};

use parking_lot::Mutex;

use crate::Result;
use crate::array::Arrays;
use crate::exports::Exports;
use crate::fault::fault;
use crate::hypervisor::{Hypervisor, Start};
use crate::images::Images;
use crate::instant::Instants;
use crate::room::Room;
use crate::turns::Turns;

/// How long a guest may take to let go of a disk.
const UNPLUG: Duration = Duration::from_secs(20);
/// How long a process that has ended may still be connected to a disk.
const LETTING_GO: Duration = Duration::from_secs(5);

/// The machines of this host.
pub struct Machines {
    pub(crate) arrays: Arrays,
    pub(crate) exports: Arc<Exports>,
    pub(crate) hypervisor: Arc<dyn Hypervisor>,
    pub(crate) instants: Arc<Instants>,
    pub(crate) turns: Turns,
    pub(crate) images: Images,
    pub(crate) room: Room,
    /// Those that were found or started, and have not been seen off since.
    pub(crate) known: Mutex<BTreeSet<VmId>>,
}

/// Something that a machine can be told without more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Act {
    /// The processors stand still.
    Pause,
    /// They go on.
    Resume,
    /// The reset button.
    Reset,
}

impl Machines {
    /// What a machine does. Waits for nobody.
    pub fn status(&self, vm: VmId) -> Result<VmStatus> {
        let mut status = self.hypervisor.status(vm)?;
        status.generation = self.turns.newest(vm)?;
        Ok(status)
    }

    /// Finds the machines that run since before this agent.
    pub fn adopt(&self) -> Result<()> {
        let found = self.hypervisor.adopt()?;
        for vm in &found {
            tracing::info!(%vm, "adopted a machine");
        }
        self.known.lock().extend(found);
        Ok(())
    }

    /// All that run.
    pub fn list(&self) -> Result<Vec<VmStatus>> {
        let known: Vec<VmId> = self.known.lock().iter().copied().collect();
        // Side by side: one that hangs keeps nobody waiting longer than itself.
        let all: Vec<Result<VmStatus>> = std::thread::scope(|scope| {
            let asked: Vec<_> = known.into_iter().map(|vm| scope.spawn(move || self.status_or_hang(vm))).collect();
            asked
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|_| Err(fault(FaultKind::Internal, "a driver panicked"))))
                .collect()
        });
        let all = all.into_iter().collect::<Result<Vec<_>>>()?;
        Ok(all.into_iter().filter(|status| status.power != Power::Off).collect())
    }

    /// A machine whose process is there and does not answer counts as standing still, and blocks nobody's view of others.
    fn status_or_hang(&self, vm: VmId) -> Result<VmStatus> {
        match self.status(vm) {
            Err(fault) if fault.kind == FaultKind::Deadline => {
                tracing::warn!(%vm, "does not answer: {fault}");
                let bare = VmStatus::bare(vm, Power::Paused { reason: PauseReason::Crashed });
                Ok(VmStatus { generation: self.turns.newest(vm)?, ..bare })
            }
            status => status,
        }
    }

    /// Starts a machine, unless this very call has started it before. [`FaultKind::Conflict`] if it is on by another call,
    /// or has run and ended since this one.
    pub fn run(&self, vm: VmId, wish: &StartVm) -> Result<VmStatus> {
        let turn = self.turns.take(vm, wish.generation)?;
        if self.hypervisor.status(vm)?.power != Power::Off {
            if turn.started()? == Some(wish.generation) {
                return self.status(vm);
            }
            return Err(fault(FaultKind::Conflict, format!("machine {vm} is not off; stop it first")));
        }
        if turn.started()? == Some(wish.generation) && turn.has_run()? {
            let why = format!(
                "machine {vm} has run and ended since this call started it, so its disks are not what they were; \
                 start it by another call"
            );
            return Err(fault(FaultKind::Conflict, why));
        }
        let (memory, new_identity) = self.ready(wish)?;
        self.free(&wish.machine.disks)?;
        turn.starting(wish.generation)?;
        self.known.lock().insert(vm);
        let start = Start {
            machine: &wish.machine,
            blocks: &|volume| self.exports.address(volume),
            memory: memory.as_deref(),
            new_identity,
            paused: wish.paused,
            going: &|| turn.runs(),
        };
        // A conflict would say that it has run and ended.
        let failed = |e: Fault| if e.kind == FaultKind::Conflict { fault(FaultKind::Internal, e.message) } else { e };
        self.hypervisor.start(vm, &start).map_err(failed)?;
        self.status(vm)
    }

    /// Whether such a start could work, as far as that can be said before; the machine may be on meanwhile.
    pub fn check(&self, wish: &StartVm) -> Result<()> {
        let (memory, _) = self.ready(wish)?;
        self.hypervisor.check(&wish.machine, memory.as_deref())
    }

    /// Whether all is there that a start takes; the memory that it begins from, and whether it is a copy's.
    fn ready(&self, wish: &StartVm) -> Result<(Option<PathBuf>, bool)> {
        if let Some(boot) = &wish.machine.direct_boot {
            for path in [Some(&boot.kernel), boot.initrd.as_ref()].into_iter().flatten() {
                self.images.check(Path::new(path))?;
            }
        }
        for disk in &wish.machine.disks {
            self.arrays.of(&disk.volume)?.volume(&disk.volume.volume)?;
        }
        match &wish.from {
            StartFrom::Cold => Ok((None, false)),
            StartFrom::Memory { snapshot, new_identity } => {
                let image = self.instants.image(*snapshot);
                self.hypervisor.image(&image)?;
                Ok((Some(image), *new_identity))
            }
        }
    }

    /// Refuses disks that somebody else can write to. Whoever connects is refused in any case; this says why.
    fn free(&self, disks: &[DiskSlot]) -> Result<()> {
        let volumes: Vec<VolumeRef> = disks.iter().map(|disk| disk.volume.clone()).collect();
        self.exports.wait_until_free(&volumes, LETTING_GO)
    }

    /// Stops it; off already is a success. The plug can be pulled whatever else is under way, which fails then.
    pub fn stop(&self, vm: VmId, wish: &StopVm) -> Result<VmStatus> {
        let turn = match wish.how {
            StopHow::Hard => self.turns.admit(vm, wish.generation).map(|()| None),
            StopHow::Graceful { .. } => self.turns.take(vm, wish.generation).map(Some),
        }?;
        if let Some(turn) = &turn {
            // One that stands still is let go, so that it can hear.
            turn.runs()?;
        }
        if let Some(process) = self.hypervisor.stop(vm, wish.how)? {
            self.exports.take_from(process, LETTING_GO)?;
        }
        self.turns.stopped(vm)?;
        self.status(vm)
    }

    /// Gives up a machine that stands still, and keeps its memory for an instant that has been taken of it: beside whatever is
    /// started instead if there is room for both, and else at once.
    pub fn give_up(&self, vm: VmId, wish: &GiveUp) -> Result<VmStatus> {
        let _turn = self.turns.take(vm, wish.generation)?;
        let status = self.hypervisor.status(vm)?;
        if status.power == Power::Off {
            if self.hypervisor.is_aside(wish.snapshot) || self.instants.has_memory(wish.snapshot)? {
                return self.status(vm);
            }
            return Err(fault(FaultKind::Conflict, format!("machine {vm} has ended, and its memory with it")));
        }
        if status.power == Power::Running {
            return Err(fault(FaultKind::Conflict, format!("machine {vm} runs; pause it before it is given up")));
        }
        let beside =
            match self.room.ask(wish.snapshot, &status, self.instants.memory(), |of| self.hypervisor.is_aside(of)) {
                Ok(true) => {
                    let done = self.hypervisor.set_aside(vm, wish.snapshot);
                    self.room.settle(wish.snapshot, done.is_ok());
                    done
                }
                Ok(false) => Err(fault(FaultKind::Unsupported, "there is no room for its memory and another")),
                Err(e) => Err(fault(FaultKind::Unsupported, format!("see what room there is: {e}"))),
            };
        let process = match beside {
            Err(why) if why.kind == FaultKind::Unsupported => {
                tracing::info!(%vm, "its memory is stored before it is given up: {why}");
                self.instants.store_memory_of(wish.snapshot, vm)?;
                self.hypervisor.stop(vm, StopHow::Hard)?
            }
            done => done?,
        };
        if let Some(process) = process {
            self.exports.take_from(process, LETTING_GO)?;
        }
        self.turns.stopped(vm)?;
        self.status(vm)
    }

    /// Pauses, resumes, or resets it; a reset once for each generation.
    pub fn act(&self, vm: VmId, call: &VmCall, act: Act) -> Result<VmStatus> {
        let turn = self.turns.take(vm, call.generation)?;
        match act {
            Act::Pause => self.hypervisor.pause(vm),
            Act::Resume => turn.runs().and_then(|()| self.hypervisor.resume(vm)),
            // A guest that boots already is not interrupted by the repetition of that call.
            Act::Reset if turn.was_reset_by(call.generation)? => Ok(()),
            Act::Reset => self.hypervisor.reset(vm).and_then(|()| turn.reset(call.generation)),
        }?;
        self.status(vm)
    }

    /// Adds a disk to a running machine.
    pub fn add_disk(&self, vm: VmId, disk: DiskId, wish: &ConfigureDisk) -> Result<()> {
        if wish.disk.id != disk {
            return Err(fault(FaultKind::Invalid, format!("the path names disk {disk}, the body {}", wish.disk.id)));
        }
        let _turn = self.turns.take(vm, wish.generation)?;
        self.arrays.of(&wish.disk.volume)?.volume(&wish.disk.volume.volume)?;
        self.hypervisor.add_disk(vm, &wish.disk, &self.exports.address(&wish.disk.volume))
    }

    /// Takes a disk out of a running machine.
    pub fn remove_disk(&self, vm: VmId, disk: DiskId, call: &VmCall) -> Result<()> {
        let _turn = self.turns.take(vm, call.generation)?;
        self.hypervisor.remove_disk(vm, disk, UNPLUG)
    }

    /// Tells the guest that a disk has a new size.
    pub fn disk_resized(&self, vm: VmId, disk: DiskId, call: &VmCall) -> Result<()> {
        let _turn = self.turns.take(vm, call.generation)?;
        self.hypervisor.disk_resized(vm, disk)
    }

    /// Plugs a cable in or out.
    pub fn set_link(&self, vm: VmId, wish: &SetLink) -> Result<()> {
        let _turn = self.turns.take(vm, wish.generation)?;
        self.hypervisor.set_link(vm, wish.nic, wish.up)
    }

    /// Makes a copied guest notice who it is now.
    pub fn fix_identity(&self, vm: VmId, wish: &FixIdentity) -> Result<FixedIdentity> {
        let _turn = self.turns.take(vm, wish.generation)?;
        self.hypervisor.fix_identity(vm, &wish.identity, wish.deadline.into())
    }

    /// Forgets a machine that is off.
    pub fn remove(&self, vm: VmId, wish: &RemoveMachine) -> Result<()> {
        let turn = self.turns.take(vm, wish.generation)?;
        if self.hypervisor.status(vm)?.power != Power::Off {
            return Err(fault(FaultKind::Conflict, format!("machine {vm} is not off; stop it first")));
        }
        self.hypervisor.remove(vm)?;
        self.known.lock().remove(&vm);
        turn.forget()
    }

    /// Takes an instant of it.
    pub fn take_instant(&self, snapshot: SnapshotId, wish: &TakeInstant) -> Result<InstantReport> {
        let _turn = self.turns.take(wish.vm, wish.generation)?;
        self.instants.take(snapshot, wish)
    }
}
