//! Reclaiming what deleted versions held: merging a ghost into its only child, and trimming a ghost that still has several.
//!
//! These are the steps that change state. What to do next, and when, is decided by the background worker.

use super::names::TABLE_LEVELS;
use super::stop::{Step, Stop};
use super::tree::{Place, Tree};
use super::txn::Txn;
use super::{Core, PlantedBug};
use crate::disk::entry::{Entry, FANOUT, Kind, MAX_LEVELS, index, span};
use crate::disk::object::State;
use crate::units::{Epoch, Lba, VersionId};

/// A ghost, its only child, and what of the ghost's is its own.
#[derive(Clone, Copy)]
struct Merge {
    tree: Tree,
    /// The grandparent's epoch: what was born later is the ghost's.
    below: Epoch,
    range: (u64, u64),
    sequence: u64,
}

impl Merge {
    /// The merge leaves this place of the ghost alone: nothing there, an ancestor's, or the child's too.
    fn spares(&self, n: Place, c: Place) -> bool {
        !n.entry.is_pointer() || n.entry.birth <= self.below || n.same(c)
    }
}

/// What a walk ahead of a merge step may visit, and what it found.
struct Survey {
    leaves: u32,
    freed: u64,
}

impl Core {
    /// The places where a ghost and its only child begin, the level of both, and the merge's fixed part.
    fn merge_roots(&mut self, id: VersionId, to: u64, sequence: u64) -> Step<(Place, Place, u8, Merge)> {
        let ghost = self.version(id)?;
        if ghost.children > 1 || !matches!(ghost.state, State::Ghost { .. }) {
            return Err(Stop::bug("a merge of a version that is no ghost with one child"));
        }
        let child = match ghost.first_child.some() {
            Some(child) => {
                let child = self.version(child)?;
                Place { entry: child.root, level: child.root_level }
            }
            None => Place::NOTHING,
        };
        let below = match ghost.parent.some() {
            Some(parent) => self.version(parent)?.epoch,
            None => Epoch(0),
        };
        let place = Place { entry: ghost.root, level: ghost.root_level };
        let level = place.level.max(child.level);
        let merge = Merge { tree: Tree::map(ghost.family), below, range: (ghost.cursor, to), sequence };
        Ok((place, child, level, merge))
    }

    /// How far the next merge step of a ghost goes: everything up to there is in memory afterwards.
    pub(crate) fn survey_merge(&mut self, id: VersionId, leaves: u32) -> Step<Lba> {
        let (ghost, child, level, merge) = self.merge_roots(id, u64::MAX, 0)?;
        let mut survey = Survey { leaves, freed: 0 };
        let stopped = self.survey_pair(ghost, child, level, 0, merge, &mut survey)?;
        Ok(Lba(stopped.unwrap_or(span(MAX_LEVELS))))
    }

    /// Visits what the ghost holds and the child does not, within the range; the end of the leaf at which the survey ran out
    /// of leaves, if it did.
    fn survey_pair(
        &mut self,
        n: Place,
        c: Place,
        level: u8,
        base: u64,
        merge: Merge,
        survey: &mut Survey,
    ) -> Step<Option<u64>> {
        if level == 0 || merge.spares(n, c) {
            return Ok(None);
        }
        let ours = self.children(n, level, merge.tree, base)?;
        let theirs = self.children(c, level, merge.tree, base)?;
        if level == 1 {
            survey.leaves -= 1;
            survey.freed += ours.iter().zip(&theirs).filter(|(n, c)| !merge.spares(**n, **c)).count() as u64;
            return Ok((survey.leaves == 0).then_some(base + FANOUT));
        }
        for i in 0..FANOUT as usize {
            let child_base = base + i as u64 * span(level - 1);
            if child_base + span(level - 1) <= merge.range.0 || child_base >= merge.range.1 {
                continue;
            }
            if let Some(end) = self.survey_pair(ours[i], theirs[i], level - 1, child_base, merge, survey)? {
                return Ok(Some(end));
            }
        }
        Ok(None)
    }

    /// Applies a merge record: the ghost's own blocks from its cursor to `to` are freed, or left to its child.
    pub(super) fn apply_merge(&mut self, id: VersionId, to: Lba, sequence: u64) -> Step<()> {
        let (ghost, child, level, merge) = self.merge_roots(id, to.0, sequence)?;
        let mut survey = Survey { leaves: u32::MAX, freed: 0 };
        self.survey_pair(ghost, child, level, 0, merge, &mut survey)?;
        let mut txn = Txn::new(self);
        txn.state.merging = id;
        txn.change_version(id, |v| {
            v.cursor = to.0;
            v.owned = v.owned.wrapping_sub(survey.freed);
            v.mapped = v.mapped.saturating_sub(survey.freed);
        })?;
        if let Some(child) = txn.version(id)?.first_child.some() {
            // Its view of what it owns depends on the cursor.
            txn.change_version(child, |_| {})?;
        }
        txn.commit()?;
        // Everything was surveyed, nothing is allocated: this cannot stop.
        self.merge_pair(ghost, child, level, 0, merge)
    }

    fn merge_pair(&mut self, n: Place, c: Place, level: u8, base: u64, merge: Merge) -> Step<()> {
        if merge.spares(n, c) {
            return Ok(());
        }
        if level == 0 {
            self.space.free_block(n.entry.block(), merge.sequence);
            return Ok(());
        }
        let ours = self.children(n, level, merge.tree, base)?;
        let theirs = self.children(c, level, merge.tree, base)?;
        for i in 0..FANOUT as usize {
            let child_base = base + i as u64 * span(level - 1);
            if child_base + span(level - 1) <= merge.range.0 || child_base >= merge.range.1 {
                continue;
            }
            self.merge_pair(ours[i], theirs[i], level - 1, child_base, merge)?;
        }
        if base + span(level) <= merge.range.1 && n.is_node_at(level) {
            self.free_page(n.entry.at);
        }
        Ok(())
    }

    /// Applies a splice record: the ghost leaves the tree, its child moves up.
    pub(super) fn apply_splice(&mut self, id: VersionId) -> Step<()> {
        let mut txn = Txn::new(self);
        let ghost = txn.version(id)?;
        txn.unlink_ghost(id)?;
        match ghost.first_child.some() {
            Some(child) => {
                txn.replace_child(id, child)?;
                txn.change_version(child, |v| v.owned = v.owned.wrapping_add(ghost.owned))?;
            }
            None => txn.remove_child(id)?,
        }
        if txn.state.merging == id {
            txn.state.merging = VersionId::NONE;
        }
        if let Some(parent) = ghost.parent.some() {
            txn.wants_trim(parent)?;
        }
        txn.remove(id);
        txn.commit()
    }

    /// Applies a trim record: the ghost drops the blocks in `mask` of the leaf at `base`.
    pub(super) fn apply_trim(&mut self, id: VersionId, base: Lba, mask: u32, sequence: u64) -> Step<()> {
        let ghost = self.version(id)?;
        let below = match ghost.parent.some() {
            Some(parent) => self.version(parent)?.epoch,
            None => Epoch(0),
        };
        let tree = Tree::map(ghost.family);
        self.leaf(ghost.root, ghost.root_level, tree, base.0)?;
        // For the path, and for storing the ghost at the end: nothing below stops.
        self.prepare_metadata(u64::from(ghost.root_level) + 2 * u64::from(TABLE_LEVELS + 1))?;

        let top_down = self.planted == PlantedBug::TrimTopDown;
        let owned = |entry: Entry, _| entry.is_pointer() && entry.birth > below;
        let (root, leaf) = self.own_path(ghost.root, ghost.root_level, tree, base.0, ghost.epoch, owned)?;
        let (mut freed, mut dropped) = (0, 0);
        for i in (0..32).filter(|i| mask >> i & 1 == 1) {
            let entry = self.page_mut(leaf)?.get(i);
            if entry.is_pointer() {
                dropped += 1;
                if entry.birth > below {
                    freed += 1;
                    self.space.free_block(entry.block(), sequence);
                }
            }
            self.page_mut(leaf)?.set(i, Entry::EMPTY);
        }
        let root = self.prune_empty(root, ghost.root_level, base.0)?;
        let mut txn = Txn::new(self);
        txn.change_version(id, |v| {
            v.root = root;
            v.owned = v.owned.wrapping_sub(freed);
            v.mapped = v.mapped.saturating_sub(dropped);
        })?;
        if let Some(parent) = ghost.parent.some().filter(|_| !top_down) {
            // What this ghost no longer holds, its parent may drop in turn.
            txn.wants_trim(parent)?;
        }
        txn.commit()
    }

    /// Drops the nodes on the path to `key` that hold nothing any more; the path is owned.
    fn prune_empty(&mut self, entry: Entry, level: u8, key: u64) -> Step<Entry> {
        if level == 0 || !entry.is_pointer() {
            return Ok(entry);
        }
        let i = index(level, Lba(key));
        let child = self.page_mut(entry.at)?.get(i);
        if level > 1 {
            let child = self.prune_empty(child, level - 1, key)?;
            self.page_mut(entry.at)?.set(i, child);
        }
        if self.page_mut(entry.at)?.entries().all(|e| e.kind == Kind::Empty) {
            self.free_page(entry.at);
            return Ok(Entry::EMPTY);
        }
        Ok(entry)
    }

    /// Applies a record that says that a trim has gone through.
    pub(super) fn apply_trimmed(&mut self, id: VersionId) -> Step<()> {
        let mut txn = Txn::new(self);
        txn.change_version(id, |v| {
            if let State::Ghost { trimmed } = &mut v.state {
                *trimmed = true;
            }
        })?;
        txn.commit()
    }
}

impl Txn<'_> {
    /// A ghost lost a child, or a child lost blocks: it is worth another look.
    fn wants_trim(&mut self, id: VersionId) -> Step<()> {
        if matches!(self.version(id)?.state, State::Ghost { .. }) {
            self.change_version(id, |v| v.state = State::Ghost { trimmed: false })?;
            self.ghost_event(id);
        }
        Ok(())
    }
}
