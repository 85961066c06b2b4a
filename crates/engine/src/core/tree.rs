//! Walking radix trees: the maps of volumes, the object table and the name index have one shape.

use super::Core;
use super::stop::Step;
use crate::disk::entry::{Entry, FANOUT, Identity, Page, Rank, index, span};
use crate::units::{Epoch, Lba, Sector};

/// Which tree a page belongs to.
#[derive(Clone, Copy)]
pub(crate) struct Tree {
    pub(crate) family: u32,
    rank: fn(u8) -> Rank,
}

impl Tree {
    pub(crate) const TABLE: Tree = Tree { family: 0, rank: Rank::table };
    pub(crate) const NAMES: Tree = Tree { family: 0, rank: Rank::names };

    /// The map of a volume.
    pub(crate) fn map(family: u32) -> Tree {
        Tree { family, rank: Rank::map }
    }

    /// Who the page at `level` is whose range starts at `base`.
    pub(crate) fn identity(self, level: u8, base: u64) -> Identity {
        Identity { family: self.family, rank: (self.rank)(level), base }
    }
}

/// A place in a map: an entry and the level of what it points to. A tree that is lower than its neighbours stands under
/// virtual nodes whose first child it is, so that trees of different heights can be walked together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Place {
    pub(crate) entry: Entry,
    pub(crate) level: u8,
}

impl Place {
    pub(crate) const NOTHING: Place = Place { entry: Entry::EMPTY, level: 0 };

    /// Both places share everything below.
    pub(crate) fn same(self, other: Place) -> bool {
        self.entry.same(other.entry) && (self.level == other.level || !self.entry.is_pointer())
    }

    /// The `i`-th child, given the page if this place is a real node at `level`.
    pub(crate) fn child(self, level: u8, i: usize, page: Option<&Page>) -> Place {
        if !self.entry.is_pointer() {
            return Place { entry: self.entry, level: level - 1 };
        }
        if self.level < level {
            return if i == 0 { self } else { Place { entry: Entry::EMPTY, level: level - 1 } };
        }
        Place { entry: page.map_or(Entry::EMPTY, |p| p.get(i)), level: level - 1 }
    }

    /// Whether this place is a stored node at `level`.
    pub(crate) fn is_node_at(self, level: u8) -> bool {
        self.entry.is_pointer() && self.level == level
    }
}

/// The start of the range of the node at `level` that covers `key`.
pub(crate) fn base_of(level: u8, key: u64) -> u64 {
    key / span(level) * span(level)
}

impl Core {
    /// The children of a place at `level`, a copy.
    pub(crate) fn children(
        &mut self,
        place: Place,
        level: u8,
        tree: Tree,
        base: u64,
    ) -> Step<[Place; FANOUT as usize]> {
        let page =
            if place.is_node_at(level) { Some(*self.page(place.entry, tree.identity(level, base))?) } else { None };
        let mut out = [Place::NOTHING; FANOUT as usize];
        for (i, child) in out.iter_mut().enumerate() {
            *child = place.child(level, i, page.as_ref());
        }
        Ok(out)
    }

    /// The level-1 entry that covers `key`, or the hole above it.
    pub(crate) fn lookup(&mut self, root: Entry, levels: u8, tree: Tree, key: u64) -> Step<Entry> {
        if key >= span(levels) {
            return Ok(Entry::EMPTY);
        }
        let mut entry = root;
        for level in (1..=levels).rev() {
            if !entry.is_pointer() {
                break;
            }
            entry = self.page(entry, tree.identity(level, base_of(level, key)))?.get(index(level, Lba(key)));
        }
        Ok(entry)
    }

    /// The leaf that covers `key`: its page, or the entry that describes its whole range.
    pub(crate) fn leaf(&mut self, root: Entry, levels: u8, tree: Tree, key: u64) -> Step<Page> {
        if key >= span(levels) {
            return Ok(Page::ZERO);
        }
        let mut entry = root;
        for level in (2..=levels).rev() {
            if !entry.is_pointer() {
                return Ok(Page::filled(entry));
            }
            entry = self.page(entry, tree.identity(level, base_of(level, key)))?.get(index(level, Lba(key)));
        }
        if !entry.is_pointer() {
            return Ok(Page::filled(entry));
        }
        Ok(*self.page(entry, tree.identity(1, base_of(1, key)))?)
    }

    /// Makes the path to the leaf over `key` changeable in place; returns the new root and the leaf's address.
    ///
    /// `owned(entry, end)` says whether the page behind an entry whose range ends at `end` is this tree's alone. All pages on
    /// the path are in memory and `levels` metadata sectors are prepared.
    pub(super) fn own_path(
        &mut self,
        root: Entry,
        levels: u8,
        tree: Tree,
        key: u64,
        birth: Epoch,
        owned: impl Fn(Entry, u64) -> bool,
    ) -> Step<(Entry, Sector)> {
        let mut new_root = root;
        let mut entry = root;
        let mut parent: Option<(Sector, usize)> = None;
        for level in (1..=levels).rev() {
            let base = base_of(level, key);
            let own = self.own_page(entry, owned(entry, base + span(level)), tree.identity(level, base), birth)?;
            if own != entry {
                match parent {
                    Some((at, i)) => self.page_mut(at)?.set(i, own),
                    None => new_root = own,
                }
            }
            let i = index(level, Lba(key));
            parent = Some((own.at, i));
            entry = self.page_mut(own.at)?.get(i);
        }
        let leaf = parent.map_or(Sector(0), |(at, _)| at);
        Ok((new_root, leaf))
    }
}
