//! Looking for what a ghost with several children may drop: blocks that none of its children holds.
//!
//! The walk goes down the ghost's tree with all children beside it and skips whatever any child shares. It holds the lock only
//! to fetch pages. That is safe because a child can only stop sharing, never start: what no child held a moment ago, none holds
//! now. It holds for trees, though, not for addresses: once a checkpoint has completed, an address that the walk remembers may
//! have another page. The walk then starts again from where it was; within one step no checkpoint can complete, because the
//! background worker does both.

use crate::core::tree::{Place, Tree, base_of};
use crate::disk::entry::{FANOUT, span};
use crate::disk::object::{Object, State, Version};
use crate::disk::record::Record;
use crate::error::{ErrorKind, Result};
use crate::shared::Shared;
use crate::units::{Epoch, Lba, VersionId};

/// Tries before a page that does not match is taken for damage.
const RESTARTS: u32 = 3;

struct Frame {
    level: u8,
    base: u64,
    next: usize,
    ghost: Vec<Place>,
    children: Vec<Vec<Place>>,
}

/// A trim under way.
pub(crate) struct Trim {
    ghost: VersionId,
    epoch: Epoch,
    tree: Tree,
    /// Blocks born at or before this belong to an ancestor.
    below: Epoch,
    /// The ancestor is a ghost too, so that we need not keep its blocks alive.
    parent_is_ghost: bool,
    stack: Vec<Frame>,
    cursor: u64,
    /// When the stack was built.
    era: u64,
    restarts: u32,
}

impl Trim {
    pub(crate) fn new(shared: &Shared, ghost: VersionId) -> Result<Trim> {
        let version = shared.attempt(|core| core.version(ghost))?;
        let parent = match version.parent.some() {
            Some(parent) => Some(shared.attempt(|core| core.version(parent))?),
            None => None,
        };
        let mut trim = Trim {
            ghost,
            epoch: version.epoch,
            tree: Tree::map(version.family),
            below: parent.as_ref().map_or(Epoch(0), |p| p.epoch),
            parent_is_ghost: parent.is_some_and(|p| matches!(p.state, State::Ghost { .. })),
            stack: Vec::new(),
            cursor: 0,
            era: 0,
            restarts: 0,
        };
        trim.start(shared, &version)?;
        Ok(trim)
    }

    pub(crate) fn ghost(&self) -> VersionId {
        self.ghost
    }

    pub(crate) fn epoch(&self) -> Epoch {
        self.epoch
    }

    fn start(&mut self, shared: &Shared, ghost: &Version) -> Result<()> {
        let mut roots = Vec::new();
        let mut next = ghost.first_child;
        while let Some(id) = next.some() {
            let child = shared.attempt(|core| core.version(id))?;
            roots.push(Place { entry: child.root, level: child.root_level });
            next = child.next_sibling;
        }
        let root = Place { entry: ghost.root, level: ghost.root_level };
        let level = roots.iter().map(|p| p.level).max().unwrap_or(1).max(root.level);
        self.era = shared.lock().era;
        self.stack.clear();
        if self.may_drop(root, &roots) {
            self.push(shared, root, &roots, level, 0)?;
        }
        Ok(())
    }

    /// Some block below `place` may be held by nobody.
    fn may_drop(&self, place: Place, children: &[Place]) -> bool {
        place.entry.is_pointer()
            && (place.entry.birth > self.below || self.parent_is_ghost)
            && !children.iter().any(|c| c.same(place))
    }

    fn push(&mut self, shared: &Shared, place: Place, children: &[Place], level: u8, base: u64) -> Result<()> {
        let fetch = |place: Place| -> Result<Vec<Place>> {
            shared.attempt(|core| core.children(place, level, self.tree, base)).map(|c| c.to_vec())
        };
        let ghost = fetch(place)?;
        // A child without a node here holds nothing here.
        let children =
            children.iter().filter(|c| c.entry.is_pointer()).map(|c| fetch(*c)).collect::<Result<Vec<_>>>()?;
        self.stack.push(Frame { level, base, next: 0, ghost, children });
        Ok(())
    }

    /// Goes on to the next leaf and drops what nobody holds of it; true when the trim is complete.
    pub(crate) fn step(&mut self, shared: &Shared) -> Result<bool> {
        match self.next_leaf(shared) {
            Err(e) if e.kind() == ErrorKind::Corrupt && self.restarts < RESTARTS => {
                self.restarts += 1;
                let Some(version) = self.still_a_ghost(shared)? else { return Ok(true) };
                self.start(shared, &version)?;
                Ok(false)
            }
            other => other,
        }
    }

    fn next_leaf(&mut self, shared: &Shared) -> Result<bool> {
        if shared.lock().era != self.era {
            let Some(version) = self.still_a_ghost(shared)? else { return Ok(true) };
            self.start(shared, &version)?;
        }
        while self.stack.last().is_some_and(|frame| frame.level > 1) {
            self.descend(shared)?;
        }
        let Some(leaf) = self.stack.last() else {
            let id = self.ghost;
            shared.attempt(|core| core.execute_record(&Record::Trimmed { ghost: id }))?;
            return Ok(true);
        };
        let (mask, base) = (self.mask(leaf), leaf.base);
        if mask != 0 {
            let ghost = self.ghost;
            shared.attempt(|core| core.execute_record(&Record::Trim { ghost, base: Lba(base), mask }))?;
        }
        self.stack.pop();
        self.cursor = base + FANOUT;
        Ok(false)
    }

    fn still_a_ghost(&self, shared: &Shared) -> Result<Option<Version>> {
        match shared.attempt(|core| core.object(self.ghost))? {
            Some(Object::Version(v)) if matches!(v.state, State::Ghost { .. }) => Ok(Some(v)),
            _ => Ok(None),
        }
    }

    /// Goes one level down to the next place where something may be dropped, or one level up.
    fn descend(&mut self, shared: &Shared) -> Result<()> {
        let Some(frame) = self.stack.last_mut() else { return Ok(()) };
        let (level, i) = (frame.level - 1, frame.next);
        if i == FANOUT as usize {
            self.stack.pop();
            return Ok(());
        }
        frame.next += 1;
        let base = frame.base + i as u64 * span(level);
        if base + span(level) <= base_of(1, self.cursor) {
            return Ok(());
        }
        let (place, kids) = (frame.ghost[i], frame.children.iter().map(|c| c[i]).collect::<Vec<_>>());
        if self.may_drop(place, &kids) {
            self.push(shared, place, &kids, level, base)?;
        }
        Ok(())
    }

    /// The blocks of a leaf that nobody holds.
    fn mask(&self, leaf: &Frame) -> u32 {
        let mut mask = 0;
        for (i, place) in leaf.ghost.iter().enumerate() {
            let kids: Vec<Place> = leaf.children.iter().map(|c| c[i]).collect();
            if self.may_drop(*place, &kids) {
                mask |= 1 << i;
            }
        }
        mask
    }
}
