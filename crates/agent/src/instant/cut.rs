//! The cut through volumes of any arrays: their writes are held, then each array snapshots what lies on it.

use std::thread;
use std::time::Duration;

use keyframe_agent_api::{Fault, FaultKind, SnapshotId, Timestamp, VolumeRef};
use keyframe_nbd::gate::{GateSet, Hold, Mark};

use crate::Result;
use crate::array::{Arrays, OnArray};
use crate::fault::{fault, of_gate};
use crate::hypervisor::Cut;

/// The volumes of an instant, by array.
pub(super) struct Disks<'a> {
    arrays: Vec<OnArray<'a>>,
    snapshot: SnapshotId,
}

impl<'a> Disks<'a> {
    pub(super) fn new(arrays: &Arrays, volumes: &'a [VolumeRef], snapshot: SnapshotId) -> Result<Disks<'a>> {
        Ok(Disks { arrays: arrays.sort(volumes)?, snapshot })
    }

    /// All arrays at the same time, so that writes wait for the slowest only.
    pub(super) fn snapshot(&self) -> Result<()> {
        let one = |(array, volumes): &OnArray<'_>| array.snapshot(volumes, self.snapshot);
        if let [only] = &self.arrays[..] {
            return one(only);
        }
        thread::scope(|scope| {
            let running: Vec<_> = self.arrays.iter().map(|part| scope.spawn(move || one(part))).collect();
            let results: Vec<Result<()>> =
                running.into_iter().map(|thread| thread.join().unwrap_or_else(panicked)).collect();
            results.into_iter().collect()
        })
    }

    /// Whatever there is of the snapshots.
    pub(super) fn delete(&self) -> Result<()> {
        let each = self.arrays.iter().flat_map(|(array, volumes)| volumes.iter().map(move |volume| (array, volume)));
        let results: Vec<Result<()>> =
            each.map(|(array, volume)| array.delete_snapshot(volume, self.snapshot)).collect();
        results.into_iter().collect()
    }
}

fn panicked(_: Box<dyn std::any::Any + Send>) -> Result<()> {
    Err(fault(FaultKind::Internal, "an array's driver panicked"))
}

/// A cut behind the gates of the agent's exports.
pub(super) struct GatedCut<'a> {
    disks: &'a Disks<'a>,
    gates: GateSet,
    deadline: Duration,
    hold: Option<Hold>,
    mark: Option<Mark>,
    at: Option<Timestamp>,
    held: Duration,
    failed: Option<Fault>,
}

impl<'a> GatedCut<'a> {
    pub(super) fn new(disks: &'a Disks<'a>, gates: GateSet, deadline: Duration) -> GatedCut<'a> {
        GatedCut { disks, gates, deadline, hold: None, mark: None, at: None, held: Duration::ZERO, failed: None }
    }

    /// The longest that a write waited.
    pub(super) fn held(&self) -> Duration {
        self.held
    }

    /// When the cut was made.
    pub(super) fn at(&self) -> Option<Timestamp> {
        self.at
    }

    /// What went wrong here, if anything did, says more than what the hypervisor made of it.
    pub(super) fn blame(&mut self, other: Fault) -> Fault {
        self.failed.take().unwrap_or(other)
    }

    /// Holds the writes for the moment of the cut.
    pub(super) fn hold_and_cut(&mut self) -> Result<Timestamp> {
        let hold = self.gates.close(self.deadline).map_err(|error| of_gate(&error))?;
        let at = Timestamp::now();
        self.disks.snapshot()?;
        self.held = hold.open().map_err(|error| of_gate(&error))?.held;
        Ok(at)
    }

    fn try_cut(&mut self) -> Result<()> {
        let at = Timestamp::now();
        self.disks.snapshot()?;
        if let Some(hold) = self.hold.take() {
            self.held = hold.open().map_err(|error| of_gate(&error))?.longest_wait;
        }
        self.at = Some(at);
        Ok(())
    }

    fn note<T>(&mut self, result: Result<T>) -> Result<T> {
        if let Err(fault) = &result {
            self.failed.get_or_insert_with(|| fault.clone());
        }
        result
    }
}

impl Cut for GatedCut<'_> {
    fn arm(&mut self, on_write: Box<dyn Fn() + Send + Sync>) -> Result<()> {
        let armed = self.gates.arm(self.deadline, on_write).map_err(|error| of_gate(&error));
        self.hold = Some(self.note(armed)?);
        Ok(())
    }

    fn mark(&mut self) {
        self.mark = self.hold.as_ref().map(Hold::mark);
    }

    fn pass(&mut self) -> Result<()> {
        let passed = match (&self.hold, self.mark.take()) {
            (Some(hold), Some(mark)) => hold.pass(mark).map_err(|error| of_gate(&error)),
            _ => Ok(()),
        };
        self.note(passed)
    }

    fn cut(&mut self) -> Result<()> {
        let cut = self.try_cut();
        // On errors too: nobody waits for an instant that will not be.
        self.hold = None;
        self.note(cut)
    }

    fn abandon(&mut self) {
        self.hold = None;
    }
}
