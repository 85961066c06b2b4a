//! The background worker: commits what nobody flushed, checkpoints, and reclaims what deleted versions held.
//!
//! [`Keeper::step`] does one bounded piece of work. A thread calls it in production, the simulator wherever it likes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::checkpoint::Checkpoint;
use crate::core::PlantedBug;
use crate::disk::entry::{MAX_LEVELS, span};
use crate::disk::object::{Object, State};
use crate::disk::record::Record;
use crate::disk::superblock::Superblock;
use crate::error::{ErrorKind, Result};
use crate::shared::Shared;
use crate::trim::Trim;
use crate::units::{Epoch, VersionId};

/// Leaves that one merge step visits: up to 256 blocks freed under one hold of the lock.
const MERGE_LEAVES: u32 = 8;
/// Records that no flush asked for become durable after this long.
const COMMIT_INTERVAL: Duration = Duration::from_secs(1);

/// What a step did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Did {
    /// Nothing is left to do.
    Nothing,
    /// A piece of a commit or checkpoint.
    Housekeeping,
    /// A piece of reclaiming: may be slowed down.
    Reclaim,
}

/// The background worker's own state.
pub(crate) struct Keeper {
    shared: Arc<Shared>,
    superblock: Superblock,
    checkpoint: Option<Checkpoint>,
    /// Ghosts to look at.
    candidates: Vec<VersionId>,
    /// Ghosts with several children, by epoch.
    trims: BTreeMap<(Epoch, VersionId), ()>,
    trim: Option<Trim>,
    loaded: bool,
    last_commit: Instant,
    /// Ghosts that could not be read; left alone until the pool is opened again.
    damaged: Vec<VersionId>,
    /// A doomed volume could not be read; so are its followers left alone.
    doomed_is_damaged: bool,
    /// The ghost of the last merge step.
    at_work: Option<VersionId>,
}

impl Keeper {
    pub(crate) fn new(shared: Arc<Shared>, superblock: Superblock) -> Keeper {
        Keeper {
            shared,
            superblock,
            checkpoint: None,
            candidates: Vec::new(),
            trims: BTreeMap::new(),
            trim: None,
            loaded: false,
            last_commit: Instant::now(),
            damaged: Vec::new(),
            doomed_is_damaged: false,
            at_work: None,
        }
    }

    /// One bounded piece of work. An error has poisoned the pool.
    pub(crate) fn step(&mut self) -> Result<Did> {
        let result = self.try_step();
        if let Err(e) = &result {
            self.shared.poison(&e.to_string());
        }
        result
    }

    fn try_step(&mut self) -> Result<Did> {
        let (wants_commit, wants_checkpoint, space_wanted) = {
            let core = self.shared.lock();
            core.refuse_if_poisoned()?;
            let overdue = core.journal.buffered_bytes() > 0 && self.last_commit.elapsed() >= COMMIT_INTERVAL;
            let large = core.journal.buffered_bytes() > core.journal.group_limit();
            let space = core.admission.space_wanted;
            (overdue || large, core.wants_checkpoint() || core.cache_is_full_of_dirt(), space)
        };
        if self.checkpoint.is_some() {
            self.step_checkpoint()?;
            return Ok(Did::Housekeeping);
        }
        if wants_commit {
            self.commit()?;
            return Ok(Did::Housekeeping);
        }
        if wants_checkpoint {
            return match Checkpoint::begin(&self.shared, &self.superblock) {
                Ok(checkpoint) => {
                    self.checkpoint = Some(checkpoint);
                    Ok(Did::Housekeeping)
                }
                // Nothing was changed; deleting may still help.
                Err(e) if e.kind() == ErrorKind::NoSpace => {
                    // What waits for a checkpoint waits in vain until then.
                    self.reclaim().map(|did| if did == Did::Housekeeping { Did::Nothing } else { did })
                }
                Err(e) => Err(e),
            };
        }
        if space_wanted {
            return self.make_space();
        }
        self.reclaim()
    }

    /// Makes everything recorded so far durable.
    pub(crate) fn commit(&mut self) -> Result<()> {
        self.last_commit = Instant::now();
        self.shared.commit_buffer()
    }

    /// A whole checkpoint, finishing a running one first.
    pub(crate) fn checkpoint_now(&mut self) -> Result<()> {
        while self.checkpoint.is_some() {
            self.step_checkpoint()?;
        }
        self.shared.lock().refuse_if_poisoned()?;
        self.checkpoint = Some(Checkpoint::begin(&self.shared, &self.superblock)?);
        while self.checkpoint.is_some() {
            self.step_checkpoint()?;
        }
        Ok(())
    }

    /// A piece of the running checkpoint. If it fails the pool stops and the checkpoint is given up: no sync is tried twice.
    fn step_checkpoint(&mut self) -> Result<()> {
        let Some(mut checkpoint) = self.checkpoint.take() else { return Ok(()) };
        let sound = self.shared.lock().refuse_if_poisoned();
        let stepped = sound.and_then(|()| checkpoint.step(&self.shared));
        match stepped {
            Ok(Some(superblock)) => self.superblock = superblock,
            Ok(None) => self.checkpoint = Some(checkpoint),
            Err(e) => {
                self.shared.poison(&e.to_string());
                return Err(e);
            }
        }
        Ok(())
    }

    /// Somebody waits for space: freed blocks become usable, and ghosts are looked through once more.
    fn make_space(&mut self) -> Result<Did> {
        // Blocks that heads hold for their next writes are worth more to whoever waits.
        self.shared.lock().return_all_runs();
        self.commit()?;
        match self.checkpoint_now() {
            // The last blocks are taken; nothing was changed, and deleting may still help.
            Err(e) if e.kind() == ErrorKind::NoSpace => {}
            other => other?,
        }
        let mut did = self.reclaim()?;
        if did == Did::Nothing {
            let rounds = self.shared.lock().admission.space_rounds;
            if rounds.is_multiple_of(2) {
                self.loaded = false;
                did = self.reclaim()?;
            }
        }
        let mut core = self.shared.lock();
        core.admission.reclaiming = did != Did::Nothing || core.space.is_pinned();
        core.admission.space_rounds += 1;
        core.admission.space_wanted = false;
        core.admission.wake_all();
        self.shared.moved.notify_all();
        Ok(Did::Housekeeping)
    }

    // ---- reclaiming ----

    /// One step of deleting. Damage found here stops the one ghost, not the pool.
    fn reclaim(&mut self) -> Result<Did> {
        match self.reclaim_step() {
            Err(e) if matches!(e.kind(), ErrorKind::Corrupt | ErrorKind::Io) => {
                if !self.doomed_is_damaged && self.shared.lock().state.first_doomed.some().is_some() {
                    self.doomed_is_damaged = true;
                    return Ok(Did::Housekeeping);
                }
                let stuck = self.trim.take().map(|t| t.ghost()).or(self.at_work.take());
                match stuck {
                    Some(id) if !self.damaged.contains(&id) => {
                        self.damaged.push(id);
                        Ok(Did::Housekeeping)
                    }
                    _ => Ok(Did::Nothing),
                }
            }
            Err(e) if e.kind() == ErrorKind::NoSpace => {
                let waits = self.shared.lock().checkpoint_wanted;
                Ok(if waits { Did::Housekeeping } else { Did::Nothing })
            }
            other => other,
        }
    }

    fn reclaim_step(&mut self) -> Result<Did> {
        if !self.doomed_is_damaged && self.delete_doomed()? {
            return Ok(Did::Reclaim);
        }
        self.load_ghosts()?;
        let (merging, events) = {
            let mut core = self.shared.lock();
            (core.state.merging.some(), core.take_ghost_events())
        };
        self.candidates.extend(events);
        if let Some(id) = merging {
            if self.damaged.contains(&id) {
                // Its head still depends on how far it came: no other merge may take its place.
                return Ok(Did::Nothing);
            }
            self.merge_step(id)?;
            return Ok(Did::Reclaim);
        }
        while let Some(id) = self.candidates.pop() {
            match self.shared.attempt(|core| core.object(id))? {
                Some(Object::Version(v)) if matches!(v.state, State::Ghost { .. }) && !self.damaged.contains(&id) => {
                    if v.children <= 1 {
                        self.trims.remove(&(v.epoch, id));
                        let merged = self.merge_step(id);
                        if merged.as_ref().is_err_and(|e| e.kind() == ErrorKind::NoSpace) {
                            self.candidates.push(id);
                        }
                        return merged.map(|()| Did::Reclaim);
                    }
                    if v.state == (State::Ghost { trimmed: false }) {
                        self.trims.insert((v.epoch, id), ());
                    }
                }
                _ => {}
            }
        }
        self.trim_step()
    }

    /// A doomed volume loses its snapshots one by one, then its head, then its name plate.
    fn delete_doomed(&mut self) -> Result<bool> {
        self.shared.attempt(|core| {
            let Some(id) = core.state.first_doomed.some() else { return Ok(false) };
            if let Some(Object::Volume(volume)) = core.object(id)? {
                let record = match volume.first_snapshot.some() {
                    Some(version) => Record::DeleteSnapshot { version },
                    None => Record::ForgetVolume { volume: id },
                };
                core.execute_record(&record)?;
            }
            Ok(true)
        })
    }

    /// After opening, and when space is wanted: all ghosts are candidates again.
    fn load_ghosts(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.loaded, true) {
            return Ok(());
        }
        let mut next = self.shared.lock().state.first_ghost;
        while let Some(id) = next.some() {
            let Some(Object::Version(v)) = self.shared.attempt(|core| core.object(id))? else { break };
            next = v.next;
            self.candidates.push(id);
            if v.children > 1 {
                self.trims.insert((v.epoch, id), ());
            }
        }
        Ok(())
    }

    fn merge_step(&mut self, id: VersionId) -> Result<()> {
        self.at_work = Some(id);
        if let Some(trim) = self.trim.take() {
            // A merge changes what a trim walks over.
            self.trims.insert((trim.epoch(), trim.ghost()), ());
        }
        self.shared.attempt(|core| {
            let ghost = core.version(id)?;
            if ghost.cursor >= span(MAX_LEVELS) {
                core.execute_record(&Record::Splice { ghost: id })?;
                return Ok(());
            }
            let to = core.survey_merge(id, MERGE_LEAVES)?;
            core.execute_record(&Record::Merge { ghost: id, to })?;
            Ok(())
        })
    }

    fn trim_step(&mut self) -> Result<Did> {
        let (top_down, tight) = {
            let core = self.shared.lock();
            (core.planted == PlantedBug::TrimTopDown, core.space.available() < core.slop() / 4)
        };
        if tight {
            // A trim copies nodes before it frees anything; the last blocks belong to merges and checkpoints.
            return Ok(Did::Nothing);
        }
        let trim = match &mut self.trim {
            Some(trim) => trim,
            None => {
                // Larger epochs first: a ghost's children are trimmed before it.
                let next = if top_down { self.trims.pop_first() } else { self.trims.pop_last() };
                let Some(((_, id), ())) = next else { return Ok(Did::Nothing) };
                if self.damaged.contains(&id) {
                    return Ok(Did::Reclaim);
                }
                self.trim.insert(Trim::new(&self.shared, id)?)
            }
        };
        if trim.step(&self.shared)? {
            self.trim = None;
        }
        Ok(Did::Reclaim)
    }

    /// All ghosts are candidates again.
    pub(crate) fn look_again(&mut self) {
        self.loaded = false;
    }

    /// Nothing is waiting to be reclaimed.
    pub(crate) fn is_idle(&self) -> bool {
        let core = self.shared.lock();
        self.loaded
            && self.trim.is_none()
            && self.candidates.is_empty()
            && self.trims.is_empty()
            && (core.nothing_to_reclaim() || self.doomed_is_damaged || !self.damaged.is_empty())
    }

    /// The last superblock written.
    pub(crate) fn superblock(&self) -> &Superblock {
        &self.superblock
    }
}
