//! Changing the map of a head: writes point blocks at new places, punches make ranges read as zeroes.
//!
//! Both first look at everything they will touch (and stop on a miss), then change pages without stopping. What the head owned
//! is freed; what its past shares is left alone. One comparison of births decides.

use super::Core;
use super::head::Head;
use super::stop::{Step, Stop};
use super::tree::{Tree, base_of};
use crate::disk::entry::{Entry, FANOUT, Kind, index, levels_for, span};
use crate::space::Run;
use crate::units::{Epoch, Lba, PoolBlock, VersionId};

/// Leaves that one punch or merge step may visit: bounds the time under the lock.
pub(crate) const LEAVES_PER_STEP: u32 = 64;

impl Core {
    /// Applies a write record: `crcs.len()` blocks from `lba` now lie at `at` and onwards.
    pub(super) fn apply_write(
        &mut self,
        id: VersionId,
        lba: Lba,
        at: PoolBlock,
        crcs: &[u32],
        sequence: u64,
    ) -> Step<()> {
        let count = crcs.len() as u64;
        let end = lba.0 + count;
        let (root, level, family, blocks) = {
            let head = self.head(id)?;
            (head.root, head.root_level, head.family, head.blocks)
        };
        if count == 0 || end > blocks {
            return Err(Stop::bug("a write record lies outside its volume"));
        }
        let levels = levels_for(blocks).max(level);
        let tree = Tree::map(family);
        let leaves = (base_of(1, end - 1) - base_of(1, lba.0)) / FANOUT + 1;
        for leaf in 0..leaves {
            self.leaf(root, level, tree, base_of(1, lba.0) + leaf * FANOUT)?;
        }
        self.space.require(Run { start: at, len: count })?;
        self.prepare_metadata(leaves * u64::from(levels) + u64::from(levels))?;

        let mut head = self.take_head(id)?;
        let result = self.write_leaves(&mut head, levels, lba.0, end, at, crcs, sequence);
        self.put_head(id, head);
        result
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one record, used once")]
    fn write_leaves(
        &mut self,
        head: &mut Head,
        levels: u8,
        start: u64,
        end: u64,
        at: PoolBlock,
        crcs: &[u32],
        sequence: u64,
    ) -> Step<()> {
        self.raise(head, levels)?;
        let birth = self.state.epoch;
        let mut lba = start;
        while lba < end {
            let stop = end.min(base_of(1, lba) + FANOUT);
            let leaf = self.own_leaf(head, lba, birth)?;
            for block in lba..stop {
                let offset = (block - start) as usize;
                let place = PoolBlock(at.0 + offset as u64);
                let old = self.page_mut(leaf)?.get(index(1, Lba(block)));
                self.drop_block(head, old, block, sequence);
                head.mapped += 1;
                head.owned = head.owned.wrapping_add(1);
                let new = Entry::pointer(place.sector(), birth, crcs[offset]);
                self.page_mut(leaf)?.set(index(1, Lba(block)), new);
                self.space.set_block(place)?;
            }
            lba = stop;
        }
        Ok(())
    }

    fn own_leaf(&mut self, head: &mut Head, lba: u64, birth: Epoch) -> Step<crate::units::Sector> {
        let view = head.clone();
        let owned = |entry: Entry, end: u64| entry.is_pointer() && entry.birth > view.threshold(end);
        let (root, leaf) = self.own_path(head.root, head.root_level, Tree::map(head.family), lba, birth, owned)?;
        head.root = root;
        Ok(leaf)
    }

    /// A head lets go of what an entry points to.
    fn drop_block(&mut self, head: &mut Head, old: Entry, lba: u64, sequence: u64) {
        if !old.is_pointer() {
            return;
        }
        head.mapped -= 1;
        if old.birth > head.threshold(lba + 1) {
            head.owned = head.owned.wrapping_sub(1);
            self.space.free_block(old.block(), sequence);
        }
    }

    /// Makes the tree high enough for `levels`.
    fn raise(&mut self, head: &mut Head, levels: u8) -> Step<()> {
        while head.root_level < levels {
            if head.root != Entry::EMPTY {
                let level = head.root_level + 1;
                let identity = Tree::map(head.family).identity(level, 0);
                let own = self.own_page(Entry::EMPTY, false, identity, self.state.epoch)?;
                self.page_mut(own.at)?.set(0, head.root);
                head.root = own;
            }
            head.root_level += 1;
        }
        Ok(())
    }

    /// Where a punch of `[from, to)` that starts at `from` must stop to stay within one step; everything up to there is in
    /// memory afterwards.
    pub(crate) fn survey_punch(&mut self, id: VersionId, from: Lba, to: Lba) -> Step<Lba> {
        let (root, level, family) = {
            let head = self.head(id)?;
            (head.root, head.root_level, head.family)
        };
        let mut budget = LEAVES_PER_STEP;
        let stopped = self.survey(root, level, Tree::map(family), 0, (from.0, to.0), &mut budget)?;
        Ok(Lba(stopped.unwrap_or(to.0).min(to.0)))
    }

    /// Visits the nodes below `entry` within the range; the end of the leaf at which the budget ran out, if it did.
    fn survey(
        &mut self,
        entry: Entry,
        level: u8,
        tree: Tree,
        base: u64,
        range: (u64, u64),
        budget: &mut u32,
    ) -> Step<Option<u64>> {
        if !entry.is_pointer() || level == 0 {
            return Ok(None);
        }
        let page = *self.page(entry, tree.identity(level, base))?;
        if level == 1 {
            *budget -= 1;
            return Ok((*budget == 0).then_some(base + FANOUT));
        }
        for (i, child) in page.entries().enumerate() {
            let child_base = base + i as u64 * span(level - 1);
            if child_base + span(level - 1) <= range.0 || child_base >= range.1 {
                continue;
            }
            if let Some(end) = self.survey(child, level - 1, tree, child_base, range, budget)? {
                return Ok(Some(end));
            }
        }
        Ok(None)
    }

    /// Applies a punch record.
    pub(super) fn apply_punch(&mut self, id: VersionId, from: Lba, to: Lba, kind: Kind, sequence: u64) -> Step<()> {
        let (root, level, family, blocks) = {
            let head = self.head(id)?;
            (head.root, head.root_level, head.family, head.blocks)
        };
        if from >= to || to.0 > blocks {
            return Err(Stop::bug("a punch record lies outside its volume"));
        }
        let mut unlimited = u32::MAX;
        self.survey(root, level, Tree::map(family), 0, (from.0, to.0), &mut unlimited)?;
        let levels = levels_for(blocks).max(level);
        self.prepare_metadata(4 * u64::from(levels))?;
        let mut head = self.take_head(id)?;
        let kind = if kind == Kind::Discard && head.has_no_past() { Kind::Empty } else { kind };
        let result = self.punch_from_root(&mut head, levels, (from.0, to.0), kind, sequence);
        self.put_head(id, head);
        result
    }

    fn punch_from_root(
        &mut self,
        head: &mut Head,
        levels: u8,
        range: (u64, u64),
        kind: Kind,
        sequence: u64,
    ) -> Step<()> {
        self.raise(head, levels)?;
        head.root = self.punch(head, head.root, head.root_level, 0, range, kind, sequence)?;
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "a recursion over a tree, its parameters are its frame")]
    fn punch(
        &mut self,
        head: &mut Head,
        entry: Entry,
        level: u8,
        base: u64,
        range: (u64, u64),
        kind: Kind,
        sequence: u64,
    ) -> Step<Entry> {
        let end = base + span(level);
        let whole = range.0 <= base && end <= range.1;
        if !entry.is_pointer() && (entry.kind == kind || (entry.kind == Kind::Empty && kind == Kind::Discard)) {
            return Ok(entry);
        }
        let hole = if kind == Kind::Empty { Entry::EMPTY } else { Entry::hole(kind, self.state.epoch) };
        if level == 0 {
            self.drop_block(head, entry, base, sequence);
            return Ok(hole);
        }
        let tree = Tree::map(head.family);
        if whole {
            if entry.is_pointer() {
                let page = *self.page(entry, tree.identity(level, base))?;
                for (i, child) in page.entries().enumerate() {
                    let child_base = base + i as u64 * span(level - 1);
                    self.punch(head, child, level - 1, child_base, range, kind, sequence)?;
                }
                if entry.birth > head.threshold(end) {
                    self.free_page(entry.at);
                }
            }
            return Ok(hole);
        }
        let owned = entry.is_pointer() && entry.birth > head.threshold(end);
        let own = self.own_page(entry, owned, tree.identity(level, base), self.state.epoch)?;
        for i in 0..FANOUT {
            let child_base = base + i * span(level - 1);
            if child_base + span(level - 1) <= range.0 || child_base >= range.1 {
                continue;
            }
            let old = self.page_mut(own.at)?.get(i as usize);
            let new = self.punch(head, old, level - 1, child_base, range, kind, sequence)?;
            self.page_mut(own.at)?.set(i as usize, new);
        }
        let page = *self.page_mut(own.at)?;
        let first = page.get(0);
        if !first.is_pointer() && page.entries().all(|e| e.kind == first.kind) {
            self.free_page(own.at);
            return Ok(if first.kind == Kind::Empty {
                Entry::EMPTY
            } else {
                Entry::hole(first.kind, self.state.epoch)
            });
        }
        Ok(own)
    }

    /// Takes a loaded head out for a change that cannot stop.
    fn take_head(&mut self, id: VersionId) -> Step<Head> {
        self.head(id)?;
        self.heads.remove(&id.0).ok_or_else(|| Stop::bug("head vanished"))
    }

    fn put_head(&mut self, id: VersionId, mut head: Head) {
        head.touch();
        self.heads.insert(id.0, head);
    }
}
