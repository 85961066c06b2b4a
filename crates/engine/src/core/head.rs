//! Writable heads in memory: what a write needs to know without looking up objects.

use std::collections::VecDeque;

use super::Core;
use super::stop::{Step, Stop};
use super::txn::{Past, Txn};
use crate::disk::entry::Entry;
use crate::disk::object::{Object, State, Version};
use crate::space::Run;
use crate::units::{Epoch, PoolBlock, VersionId};

/// A head that was used since the pool was opened.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    pub(crate) root: Entry,
    pub(crate) root_level: u8,
    pub(crate) blocks: u64,
    pub(crate) family: u32,
    /// Epoch of the parent: what was born later belongs to this head alone.
    parent_epoch: Epoch,
    /// The parent is being merged into this head: below the cursor, what was born after the grandparent is ours already.
    merge: Option<(u64, Epoch)>,
    pub(crate) mapped: u64,
    pub(crate) owned: u64,
    /// Differs from its object.
    dirty: bool,
    /// Blocks held for the next writes, and where the last ones were.
    pub(crate) runs: VecDeque<Run>,
    pub(crate) hint: PoolBlock,
}

impl Head {
    fn new(version: &Version, past: Past) -> Head {
        Head {
            root: version.root,
            root_level: version.root_level,
            blocks: version.blocks,
            family: version.family,
            parent_epoch: past.parent_epoch,
            merge: past.merge,
            mapped: version.mapped,
            owned: version.owned,
            dirty: false,
            runs: VecDeque::new(),
            hint: PoolBlock(0),
        }
    }

    /// Births later than this are the head's own, for a range that ends at `end`.
    pub(crate) fn threshold(&self, end: u64) -> Epoch {
        match self.merge {
            Some((cursor, below)) if end <= cursor => below,
            _ => self.parent_epoch,
        }
    }

    /// Nothing can refer to what this head once held.
    pub(crate) fn has_no_past(&self) -> bool {
        self.parent_epoch == Epoch(0)
    }

    pub(crate) fn touch(&mut self) {
        self.dirty = true;
    }
}

impl Core {
    /// The head in memory, loading it if need be.
    pub(crate) fn head(&mut self, id: VersionId) -> Step<&mut Head> {
        if !self.heads.contains_key(&id.0) {
            let version = self.stored_version(id)?;
            if version.state != State::Head {
                return Err(Stop::bug("a version that is no head was written"));
            }
            let past = Txn::new(self).past_of(&version)?;
            self.heads.insert(id.0, Head::new(&version, past));
        }
        self.heads.get_mut(&id.0).ok_or_else(|| Stop::bug("head vanished"))
    }

    pub(super) fn is_loaded_head(&self, id: VersionId) -> bool {
        self.heads.contains_key(&id.0)
    }

    /// A version as its object says; heads may be newer in memory.
    fn stored_version(&mut self, id: VersionId) -> Step<Version> {
        match self.object(id)? {
            Some(Object::Version(version)) => Ok(version),
            _ => Err(Stop::bug("a version refers to an object that is not there")),
        }
    }

    /// A version, with what memory knows better.
    pub(crate) fn version(&mut self, id: VersionId) -> Step<Version> {
        let mut version = self.stored_version(id)?;
        if let Some(head) = self.heads.get(&id.0) {
            version.root = head.root;
            version.root_level = head.root_level;
            version.blocks = head.blocks;
            version.mapped = head.mapped;
            version.owned = head.owned;
        }
        Ok(version)
    }

    /// Brings the head in memory in line after its object or its parent changed; drops it when it is a head no longer.
    pub(super) fn refresh_head(&mut self, id: VersionId, now: Option<(Version, Past)>) {
        let Some(old) = self.heads.remove(&id.0) else { return };
        match now {
            Some((version, past)) => {
                let head = Head { runs: old.runs, hint: old.hint, ..Head::new(&version, past) };
                self.heads.insert(id.0, head);
            }
            None => old.runs.into_iter().for_each(|run| self.space.return_run(run)),
        }
    }

    /// A detached head keeps no blocks to itself.
    pub(crate) fn return_run_of(&mut self, id: VersionId) {
        if let Some(head) = self.heads.get_mut(&id.0) {
            head.runs.drain(..).for_each(|run| self.space.return_run(run));
        }
    }

    /// No head keeps blocks to itself.
    pub(crate) fn return_all_runs(&mut self) {
        for head in self.heads.values_mut() {
            head.runs.drain(..).for_each(|run| self.space.return_run(run));
        }
    }

    /// All heads that differ from their objects.
    pub(crate) fn dirty_heads(&self) -> Vec<VersionId> {
        self.heads.iter().filter(|(_, h)| h.dirty).map(|(id, _)| VersionId(*id)).collect()
    }

    /// Before a checkpoint: objects take over what the heads in memory know.
    pub(crate) fn store_heads(&mut self) -> Step<()> {
        for id in self.dirty_heads() {
            let version = self.version(id)?;
            self.put_objects(&[(id, Some(Object::Version(version)))])?;
            if let Some(head) = self.heads.get_mut(&id.0) {
                head.dirty = false;
            }
        }
        Ok(())
    }
}
