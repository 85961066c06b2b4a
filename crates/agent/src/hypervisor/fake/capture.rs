//! A capture with the guest at work: the order of things is that of the real one.
//!
//! ```text
//!  guest    … step ─ step ─│ stopped, its memory taken │─ step (waits at the gate) ─ …
//!  driver   arm ─ pass ────│                            │─ cut ─ image
//! ```

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use keyframe_agent_api::{Bytes, CutMethod, Fault, FaultKind, Power, SnapshotId};
use parking_lot::{Condvar, Mutex};

use super::image::{self, Image};
use super::{Fake, Slot};
use crate::Result;
use crate::hypervisor::{Cancel, Captured, Cut};

/// The steps of the guest between the arming and the instant.
const STEPS: usize = 3;
/// A gate that opens no more, or a server that has died, must not keep the capture.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks, when nothing rings.
const LOOK: Duration = Duration::from_millis(1);

pub(super) fn capture(fake: &Fake, slot: &Slot, to: &Path, cut: &mut dyn Cut, cancel: &dyn Cancel) -> Result<Captured> {
    let machine = slot.get()?;
    fake.change(slot, |machine| machine.pending = Bytes(0))?;
    let write = |contents: &[u8]| std::fs::write(image::draft(to), contents);
    write(b"").map_err(|e| slot.fault(FaultKind::Internal, &format!("write its image: {e}")))?;
    let (method, guest) = if machine.power == Power::Running {
        live(fake, slot, cut, cancel)?
    } else {
        cut.cut()?;
        (CutMethod::AtRest, machine.guest)
    };
    if fake.faults.is_full() {
        return Err(slot.fault(FaultKind::NoSpace, "store its memory: no space left on the device"));
    }
    if cancel.cancelled() {
        return Err(slot.fault(FaultKind::Deadline, "given up, as asked"));
    }
    // Its process may have been killed meanwhile.
    slot.get()?;
    Image::of(&machine.hardware, guest).write(to)?;
    let paused = if method == CutMethod::AtRest { Duration::ZERO } else { Duration::from_millis(1) };
    Ok(Captured { method, paused })
}

/// Stores the memory of what was set aside.
pub(super) fn store_aside(fake: &Fake, snapshot: SnapshotId, to: &Path, cancel: &dyn Cancel) -> Result<()> {
    let fault = |kind, why: &str| Fault::new(kind, format!("the memory of snapshot {snapshot}: {why}"));
    let there = || {
        let machine = fake.asides.lock().get(&snapshot).cloned();
        machine.ok_or_else(|| fault(FaultKind::NotFound, "the process that had it has ended"))
    };
    let machine = there()?;
    std::fs::write(image::draft(to), b"").map_err(|e| fault(FaultKind::Internal, &format!("write its image: {e}")))?;
    if fake.faults.is_full() {
        return Err(fault(FaultKind::NoSpace, "no space left on the device"));
    }
    if cancel.cancelled() {
        return Err(fault(FaultKind::Deadline, "given up, as asked"));
    }
    there()?;
    Image::of(&machine.hardware, machine.guest).write(to)
}

#[derive(Default)]
struct Bell {
    rung: Mutex<bool>,
    sound: Condvar,
}

fn live(fake: &Fake, slot: &Slot, cut: &mut dyn Cut, cancel: &dyn Cancel) -> Result<(CutMethod, super::Memory)> {
    let bell = Arc::new(Bell::default());
    let ring = Arc::clone(&bell);
    cut.arm(Box::new(move || {
        *ring.rung.lock() = true;
        ring.sound.notify_all();
    }))?;
    let steps = AtomicUsize::new(0);
    let (over, stopped) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Acquire) {
                if stopped.load(Ordering::Acquire) {
                    std::thread::sleep(LOOK / 10);
                    continue;
                }
                // A write that fails here fails the check of the one who looks at the disks.
                if fake.one_step(slot).is_err() {
                    break;
                }
                steps.fetch_add(1, Ordering::AcqRel);
            }
        });
        let until = Instant::now() + PATIENCE;
        let taken = loop {
            let mut rung = bell.rung.lock();
            if !*rung {
                bell.sound.wait_for(&mut rung, LOOK);
            }
            *rung = false;
            drop(rung);
            cut.mark();
            // Whoever has the disks has stopped the guest, between two steps.
            if steps.load(Ordering::Acquire) >= STEPS {
                stopped.store(true, Ordering::Release);
                if let Some(_still) = slot.disks.try_lock() {
                    break slot.get().map(|machine| machine.guest);
                }
            }
            if let Err(fault) = cut.pass() {
                break Err(fault);
            }
            if cancel.cancelled() || Instant::now() > until {
                break Err(slot.fault(FaultKind::Deadline, "given up"));
            }
            if slot.machine.lock().is_none() {
                break Err(slot.fault(FaultKind::Conflict, "its process has ended"));
            }
        };
        stopped.store(false, Ordering::Release);
        let done = taken.and_then(|guest| cut.cut().map(|()| (CutMethod::AtResume, guest)));
        // The guest's step may wait at the gate.
        over.store(true, Ordering::Release);
        cut.abandon();
        done
    })
}
