//! Reading a version's map: which pool blocks hold a range, and how a range is stored.

use super::Core;
use super::stop::Step;
use super::tree::{Tree, base_of};
use crate::disk::entry::{Entry, FANOUT, Kind, index, span};
use crate::disk::object::State;
use crate::request::{Extent, ExtentKind};
use crate::units::{BLOCK, Lba, PoolBlock, VersionId};

/// What a reader needs to know of a version.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View {
    pub(crate) root: Entry,
    pub(crate) levels: u8,
    pub(crate) family: u32,
}

/// Consecutive blocks of a volume that lie in consecutive pool blocks, or nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) lba: u64,
    pub(crate) count: u64,
    /// `None`: reads as zeroes.
    pub(crate) at: Option<PoolBlock>,
    /// Index of the first block's checksum in the plan.
    pub(crate) crcs: usize,
}

/// Leaves that one description of a range may visit.
const LEAVES_PER_DESCRIPTION: u64 = 4096;

impl Core {
    /// The view of a version; of frozen ones a remembered one.
    pub(crate) fn view(&mut self, id: VersionId) -> Step<View> {
        if self.is_loaded_head(id) {
            let head = self.head(id)?;
            return Ok(View { root: head.root, levels: head.root_level, family: head.family });
        }
        if let Some(view) = self.views.get(&id.0) {
            return Ok(*view);
        }
        let version = self.version(id)?;
        if version.state == State::Head {
            self.head(id)?;
            return self.view(id);
        }
        let view = View { root: version.root, levels: version.root_level, family: version.family };
        self.views.insert(id.0, view);
        Ok(view)
    }

    /// Adds the pieces and checksums of `count` blocks from `first`.
    pub(crate) fn plan_read(
        &mut self,
        view: View,
        first: u64,
        count: u64,
        pieces: &mut Vec<Piece>,
        crcs: &mut Vec<u32>,
    ) -> Step<()> {
        let end = first + count;
        let mut lba = first;
        while lba < end {
            let stop = end.min(base_of(1, lba) + FANOUT);
            let leaf = self.leaf(view.root, view.levels, Tree::map(view.family), lba)?;
            for block in lba..stop {
                let entry = leaf.get(index(1, Lba(block)));
                let at = entry.is_pointer().then(|| entry.block());
                match pieces.last_mut() {
                    Some(last) if last.lba + last.count == block && last.continues(at) => last.count += 1,
                    _ => pieces.push(Piece { lba: block, count: 1, at, crcs: crcs.len() }),
                }
                if at.is_some() {
                    crcs.push(entry.crc);
                }
            }
            lba = stop;
        }
        Ok(())
    }

    /// Describes how `[first, end)` is stored; may stop early, but never without progress.
    pub(crate) fn describe(&mut self, view: View, first: u64, end: u64, max: usize, out: &mut Vec<Extent>) -> Step<()> {
        let mut lba = first;
        let mut budget = LEAVES_PER_DESCRIPTION;
        while lba < end && budget > 0 {
            let (entry, covered_until) = self.covering(view, lba)?;
            budget -= u64::from(covered_until - lba <= FANOUT);
            let kind = match entry.kind {
                Kind::Pointer => ExtentKind::Data,
                Kind::Zero => ExtentKind::Zero,
                Kind::Empty | Kind::Discard => ExtentKind::Hole,
            };
            let len = (covered_until.min(end) - lba) * BLOCK;
            let full = out.len() >= max;
            match out.last_mut() {
                Some(last) if last.kind == kind => last.len += len,
                _ if full => return Ok(()),
                _ => out.push(Extent { offset: lba * BLOCK, len, kind }),
            }
            lba = covered_until.min(end);
        }
        Ok(())
    }

    /// The lowest entry over a block, and the end of the range for which it speaks.
    fn covering(&mut self, view: View, lba: u64) -> Step<(Entry, u64)> {
        if lba >= span(view.levels) {
            return Ok((Entry::EMPTY, u64::MAX));
        }
        let tree = Tree::map(view.family);
        let mut entry = view.root;
        for level in (1..=view.levels).rev() {
            if !entry.is_pointer() {
                return Ok((entry, base_of(level, lba) + span(level)));
            }
            entry = self.page(entry, tree.identity(level, base_of(level, lba)))?.get(index(level, Lba(lba)));
        }
        Ok((entry, lba + 1))
    }
}

impl Piece {
    fn continues(&self, at: Option<PoolBlock>) -> bool {
        match (self.at, at) {
            (None, None) => true,
            (Some(start), Some(next)) => start.0 + self.count == next.0,
            _ => false,
        }
    }
}
