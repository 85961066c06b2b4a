//! Turns and generations: one call about a machine at a time, and none that is older than the newest seen.
//!
//! The newest generation of a machine is stored before the call that brought it does anything, so that a delayed call of a
//! dead manager changes nothing, also after a restart.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use keyframe_agent_api::{Fault, FaultKind, Generation, VmId};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::durable::{Folder, with_spare};
use crate::fault::fault;
use crate::life::Life;

/// What is stored of a machine.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Seen {
    newest: Generation,
    /// The generation of the call that last started it; none once it has been stopped.
    started: Option<Generation>,
    /// Since then its guest may have run.
    #[serde(default)]
    ran: bool,
    /// The generation of the call that last reset it.
    #[serde(default)]
    reset: Option<Generation>,
}

/// The turns of all machines.
pub struct Turns {
    folder: Folder,
    busy: Mutex<HashSet<VmId>>,
    seen: Mutex<HashMap<VmId, Seen>>,
    /// Held from reading what is stored until it is stored changed.
    storing: Mutex<()>,
}

fn file(vm: VmId) -> String {
    format!("{vm}/generation")
}

impl Turns {
    /// Stored in `vms/VM/generation`.
    pub fn open(vms: PathBuf, life: Life) -> Result<Turns> {
        Ok(Turns {
            folder: Folder::open(vms, life)?,
            busy: Mutex::default(),
            seen: Mutex::default(),
            storing: Mutex::default(),
        })
    }

    fn seen(&self, vm: VmId) -> Result<Seen> {
        let mut seen = self.seen.lock();
        if let Some(known) = seen.get(&vm) {
            return Ok(*known);
        }
        let stored = self.folder.read(&file(vm))?.unwrap_or_default();
        seen.insert(vm, stored);
        Ok(stored)
    }

    fn store(&self, vm: VmId, new: Seen) -> Result<()> {
        let is_full = |fault: &Fault| fault.kind == FaultKind::NoSpace;
        with_spare(self.folder.path(), is_full, || self.folder.write(&file(vm), &new))?;
        self.seen.lock().insert(vm, new);
        Ok(())
    }

    /// The newest generation seen.
    pub fn newest(&self, vm: VmId) -> Result<Generation> {
        self.seen(vm).map(|seen| seen.newest)
    }

    /// Takes the machine's turn until the result is dropped, and stores the generation if it is new.
    pub fn take(&self, vm: VmId, generation: Generation) -> Result<Turn<'_>> {
        if !self.busy.lock().insert(vm) {
            let why = format!("another operation on machine {vm} is under way; try again when it is done");
            return Err(fault(FaultKind::Busy, why));
        }
        let turn = Turn { turns: self, vm };
        self.admit(vm, generation)?;
        Ok(turn)
    }

    /// Stores the generation if it is new, for a call that acts beside whoever has the turn.
    pub fn admit(&self, vm: VmId, generation: Generation) -> Result<()> {
        let _alone = self.storing.lock();
        let seen = self.seen(vm)?;
        if generation < seen.newest {
            let why = format!("machine {vm} is at generation {}; the call is of {generation}", seen.newest);
            return Err(fault(FaultKind::Stale, why));
        }
        if generation > seen.newest {
            self.store(vm, Seen { newest: generation, ..seen })?;
        }
        Ok(())
    }

    /// Remembers that the machine was stopped: whoever starts it then knows what is on its disks.
    pub fn stopped(&self, vm: VmId) -> Result<()> {
        self.change(vm, |seen| Seen { started: None, ran: false, ..seen })
    }

    fn change(&self, vm: VmId, change: impl FnOnce(Seen) -> Seen) -> Result<()> {
        let _alone = self.storing.lock();
        let seen = self.seen(vm)?;
        let new = change(seen);
        if new == seen { Ok(()) } else { self.store(vm, new) }
    }
}

/// A machine's turn; dropping it lets the next one in.
pub struct Turn<'a> {
    turns: &'a Turns,
    vm: VmId,
}

impl Turn<'_> {
    /// The generation of the call that last started the machine.
    pub fn started(&self) -> Result<Option<Generation>> {
        self.turns.seen(self.vm).map(|seen| seen.started)
    }

    /// Whether the guest may have run since the machine was last started.
    pub fn has_run(&self) -> Result<bool> {
        self.turns.seen(self.vm).map(|seen| seen.ran)
    }

    /// Remembers which call starts the machine, before it does.
    pub fn starting(&self, generation: Generation) -> Result<()> {
        self.turns.change(self.vm, |seen| Seen { started: Some(generation), ran: false, ..seen })
    }

    /// Remembers that the guest runs, before it does: from then on its disks move away from the memory it began with.
    pub fn runs(&self) -> Result<()> {
        self.turns.change(self.vm, |seen| Seen { ran: true, ..seen })
    }

    /// Whether the call of this generation has reset the machine already.
    pub fn was_reset_by(&self, generation: Generation) -> Result<bool> {
        self.turns.seen(self.vm).map(|seen| seen.reset == Some(generation))
    }

    /// Remembers which call reset the machine, after it did.
    pub fn reset(&self, generation: Generation) -> Result<()> {
        self.turns.change(self.vm, |seen| Seen { reset: Some(generation), ..seen })
    }

    /// Forgets the machine.
    pub fn forget(&self) -> Result<()> {
        self.turns.folder.remove(&file(self.vm))?;
        self.turns.seen.lock().remove(&self.vm);
        // Other files in it, if any, are its driver's.
        std::fs::remove_dir(self.turns.folder.file(&self.vm.to_string())).unwrap_or(());
        Ok(())
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.turns.busy.lock().remove(&self.vm);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use keyframe_lab::mounted::Mounted;

    use super::*;

    fn kind<T>(result: Result<T>) -> Option<FaultKind> {
        result.err().map(|fault| fault.kind)
    }

    #[test]
    fn older_generations_are_refused_also_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Turns::open(dir.path().join("vms"), Life::new()).unwrap();
        let vm = VmId::new();
        let turns = open();
        drop(turns.take(vm, Generation(7)).unwrap());
        drop(turns.take(vm, Generation(7)).unwrap());
        assert_eq!(kind(turns.take(vm, Generation(6))), Some(FaultKind::Stale));
        let again = open();
        assert_eq!(kind(again.take(vm, Generation(6))), Some(FaultKind::Stale));
        assert_eq!(again.newest(vm).unwrap(), Generation(7));
        assert!(again.take(VmId::new(), Generation(1)).is_ok());
    }

    #[test]
    fn one_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let turns = Turns::open(dir.path().join("vms"), Life::new()).unwrap();
        let vm = VmId::new();
        let turn = turns.take(vm, Generation(1)).unwrap();
        assert_eq!(kind(turns.take(vm, Generation(2))), Some(FaultKind::Busy));
        assert_eq!(turns.newest(vm).unwrap(), Generation(1), "a refused call leaves no trace");
        turns.admit(vm, Generation(2)).unwrap();
        assert_eq!(kind(turns.admit(vm, Generation(1))), Some(FaultKind::Stale));
        drop(turn);
        assert!(turns.take(vm, Generation(2)).is_ok());
    }

    #[test]
    fn what_started_a_machine_is_remembered_until_it_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Turns::open(dir.path().join("vms"), Life::new()).unwrap();
        let vm = VmId::new();
        let first = open();
        let turn = first.take(vm, Generation(3)).unwrap();
        turn.starting(Generation(3)).unwrap();
        assert!(!turn.has_run().unwrap());
        turn.runs().unwrap();
        let turns = open();
        let turn = turns.take(vm, Generation(4)).unwrap();
        assert_eq!((turn.started().unwrap(), turn.has_run().unwrap()), (Some(Generation(3)), true));
        turns.stopped(vm).unwrap();
        assert_eq!((turn.started().unwrap(), turn.has_run().unwrap()), (None, false));
        turn.forget().unwrap();
        assert_eq!(turns.newest(vm).unwrap(), Generation(0));
        assert!(!dir.path().join("vms").join(vm.to_string()).exists());
    }

    /// Whoever takes all the room there is does not keep a machine from being stopped.
    #[test]
    fn a_full_file_system_is_in_the_way_of_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let Some(_small) = Mounted::over(dir.path(), "1m").unwrap() else { return };
        let turns = Turns::open(dir.path().join("vms"), Life::new()).unwrap();
        let vm = VmId::new();
        turns.admit(vm, Generation(1)).unwrap();
        let mut guest = std::fs::File::create(dir.path().join("guest")).unwrap();
        for generation in 2..100 {
            while guest.write_all(&[7; 4096]).is_ok() {}
            turns.admit(vm, Generation(generation)).unwrap();
        }
    }
}
