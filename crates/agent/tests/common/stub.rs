//! A machine that is nothing but a state: it can be frozen, and its memory is a line of text.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use keyframe_agent::Result;
use keyframe_agent::hypervisor::{BlockAddress, Cancel, Captured, Cut, Hypervisor, HypervisorInfo, News, Start, Tell};
use keyframe_agent::work::Work;
use keyframe_agent_api::{
    Accelerator, Bytes, CutMethod, DiskId, DiskSlot, Fault, FaultKind, FixedIdentity, GuestIdentity, Machine,
    MemoryInfo, NicId, PauseReason, Power, SnapshotId, StopHow, VmId, VmStatus,
};

type Changed = Box<Tell>;

#[derive(Default)]
pub(crate) struct Stub {
    power: Mutex<HashMap<VmId, Power>>,
    watchers: Mutex<Vec<Changed>>,
    /// What freezing and thawing answer.
    pub(crate) freezes: Mutex<Option<FaultKind>>,
    pub(crate) thaws: Mutex<Option<FaultKind>>,
    pub(crate) frozen: AtomicBool,
    /// A capture waits until it is cancelled.
    pub(crate) endless: AtomicBool,
    pub(crate) captures: AtomicU64,
    pub(crate) compresses: AtomicU64,
    /// Those that are under way.
    pub(crate) verifies: AtomicU64,
    pub(crate) resets: AtomicU64,
}

fn fault(kind: FaultKind, text: &str) -> Fault {
    Fault::new(kind, text)
}

fn planned(plan: &Mutex<Option<FaultKind>>, text: &str) -> Result<()> {
    plan.lock().unwrap().map_or(Ok(()), |kind| Err(fault(kind, text)))
}

impl Stub {
    pub(crate) fn set(&self, vm: VmId, power: Power) {
        self.power.lock().unwrap().insert(vm, power.clone());
        self.watchers.lock().unwrap().iter().for_each(|tell| tell(vm, News::Does(power.clone())));
    }

    pub(crate) fn running(&self) -> VmId {
        let vm = VmId::new();
        self.set(vm, Power::Running);
        vm
    }
}

impl Hypervisor for Stub {
    fn info(&self) -> Result<HypervisorInfo> {
        Ok(HypervisorInfo {
            version: "stub 1".into(),
            machine_type: "stub".into(),
            accelerator: Accelerator::Kvm,
            uefi_variables: None,
        })
    }
    fn adopt(&self) -> Result<Vec<VmId>> {
        self.frozen.store(false, Ordering::SeqCst);
        let power = self.power.lock().unwrap();
        Ok(power.iter().filter(|(_, power)| **power != Power::Off).map(|(vm, _)| *vm).collect())
    }
    fn check(&self, _: &Machine, _: Option<&Path>) -> Result<()> {
        Ok(())
    }
    fn start(&self, vm: VmId, start: &Start<'_>) -> Result<()> {
        let paused = Power::Paused { reason: PauseReason::Asked };
        if !start.paused {
            (start.going)()?;
        }
        self.set(vm, if start.paused { paused } else { Power::Running });
        Ok(())
    }
    fn status(&self, vm: VmId) -> Result<VmStatus> {
        let power = self.power.lock().unwrap().get(&vm).cloned().unwrap_or(Power::Off);
        Ok(VmStatus::bare(vm, power))
    }
    fn stop(&self, vm: VmId, _: StopHow) -> Result<Option<u32>> {
        self.set(vm, Power::Off);
        Ok(None)
    }
    fn pause(&self, vm: VmId) -> Result<()> {
        self.set(vm, Power::Paused { reason: PauseReason::Asked });
        Ok(())
    }
    fn resume(&self, vm: VmId) -> Result<()> {
        self.set(vm, Power::Running);
        Ok(())
    }
    fn reset(&self, _: VmId) -> Result<()> {
        self.resets.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
    fn add_disk(&self, _: VmId, _: &DiskSlot, _: &BlockAddress) -> Result<()> {
        Ok(())
    }
    fn remove_disk(&self, _: VmId, _: DiskId, _: Duration) -> Result<()> {
        Ok(())
    }
    fn disk_resized(&self, _: VmId, _: DiskId) -> Result<()> {
        Ok(())
    }
    fn set_link(&self, _: VmId, _: NicId, _: bool) -> Result<()> {
        Ok(())
    }
    fn fix_identity(&self, _: VmId, _: &GuestIdentity, _: Duration) -> Result<FixedIdentity> {
        Ok(FixedIdentity::default())
    }
    fn freeze(&self, _: VmId, _: Duration, _: Duration) -> Result<u32> {
        planned(&self.freezes, "the guest agent is silent")?;
        self.frozen.store(true, Ordering::SeqCst);
        Ok(2)
    }
    fn thaw(&self, _: VmId) -> Result<()> {
        self.frozen.store(false, Ordering::SeqCst);
        planned(&self.thaws, "the guest had thawed itself")
    }

    fn set_aside(&self, vm: VmId, _: SnapshotId) -> Result<Option<u32>> {
        Err(fault(FaultKind::Unsupported, &format!("machine {vm} cannot be set aside")))
    }
    fn is_aside(&self, _: SnapshotId) -> bool {
        false
    }
    fn store_aside(&self, snapshot: SnapshotId, _: &Path, _: &dyn Cancel) -> Result<()> {
        Err(fault(FaultKind::NotFound, &format!("nothing is set aside for {snapshot}")))
    }
    fn drop_aside(&self, _: SnapshotId) -> Result<()> {
        Ok(())
    }

    /// Lets writes pass for a while before the cut, as a hypervisor does that waits for its moment.
    fn capture(&self, _: VmId, to: &Path, cut: &mut dyn Cut, cancel: &dyn Cancel) -> Result<Captured> {
        self.captures.fetch_add(1, Ordering::SeqCst);
        let partial = PathBuf::from(format!("{}.partial", to.display()));
        let failed = |error: std::io::Error| fault(FaultKind::Internal, &error.to_string());
        fs::write(&partial, "half").map_err(failed)?;
        let give_up = |cut: &mut dyn Cut, fault: Fault| {
            cut.abandon();
            fs::remove_file(&partial).unwrap();
            Err(fault)
        };
        let (wake, wakes) = std::sync::mpsc::sync_channel(1);
        if let Err(fault) = cut.arm(Box::new(move || wake.try_send(()).unwrap_or(()))) {
            return give_up(cut, fault);
        }
        let mut left = 20;
        while left > 0 || self.endless.load(Ordering::SeqCst) {
            wakes.recv_timeout(Duration::from_millis(1)).unwrap_or(());
            cut.mark();
            if cancel.cancelled() {
                return give_up(cut, fault(FaultKind::Deadline, "cancelled"));
            }
            if let Err(fault) = cut.pass() {
                return give_up(cut, fault);
            }
            left = (left - 1_i32).max(0);
        }
        if let Err(fault) = cut.cut() {
            return give_up(cut, fault);
        }
        cut.abandon();
        fs::write(&partial, "whole").and_then(|()| fs::rename(&partial, to)).map_err(failed)?;
        Ok(Captured { method: CutMethod::AtResume, paused: Duration::from_millis(3) })
    }

    fn image(&self, image: &Path) -> Result<MemoryInfo> {
        match fs::read_to_string(image) {
            Ok(text) if text == "whole" => Ok(MemoryInfo {
                memory: Bytes::mib(1),
                stored: Bytes(5),
                hypervisor: "stub 1".into(),
                emulated: true,
                compressed: false,
            }),
            Ok(_) => Err(fault(FaultKind::Corrupt, "not whole")),
            Err(_) => Err(fault(FaultKind::NotFound, "no image")),
        }
    }
    fn verify(&self, image: &Path, work: &Work) -> Result<MemoryInfo> {
        work.reached(1, 4);
        self.verifies.fetch_add(1, Ordering::SeqCst);
        while self.endless.load(Ordering::SeqCst) {
            if work.cancelled() {
                self.verifies.fetch_sub(1, Ordering::SeqCst);
                return Err(fault(FaultKind::Conflict, "cancelled"));
            }
            std::thread::yield_now();
        }
        self.verifies.fetch_sub(1, Ordering::SeqCst);
        self.image(image)
    }
    fn compress(&self, image: &Path, work: &Work) -> Result<MemoryInfo> {
        self.compresses.fetch_add(1, Ordering::SeqCst);
        work.reached(1, 4);
        while self.endless.load(Ordering::SeqCst) {
            if work.cancelled() {
                return Err(fault(FaultKind::Conflict, "cancelled"));
            }
            std::thread::yield_now();
        }
        self.image(image).map(|info| MemoryInfo { compressed: true, ..info })
    }
    fn console(&self, _: VmId) -> Result<PathBuf> {
        Err(fault(FaultKind::NotFound, "no console"))
    }
    fn remove(&self, vm: VmId) -> Result<()> {
        self.power.lock().unwrap().remove(&vm);
        Ok(())
    }
    fn watch(&self, changed: Changed) {
        self.watchers.lock().unwrap().push(changed);
    }
}
