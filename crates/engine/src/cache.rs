//! Metadata pages in memory: clean ones up to a limit (clock eviction), dirty ones until a checkpoint has written them.
//!
//! A page is *dirty in a generation*. Only pages of the current generation may be changed in place; while a checkpoint writes
//! the previous (frozen) generation, a change to one of its pages goes to a copy with a new address. Checksums of frozen pages
//! are known only once the checkpoint gets to them, so a parent copied meanwhile may hold an old one: [`PageCache::expected_crc`]
//! knows the newer value until no such parent can exist.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use crate::disk::entry::{Entry, FANOUT, Identity, Page, Rank};
use crate::units::Sector;

/// Counts checkpoints in memory; pages carry the generation that dirtied them, 0 when clean.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(crate) struct Generation(pub(crate) u64);

impl Generation {
    const CLEAN: Generation = Generation(0);
}

/// Sector addresses are well spread in their low bits; one multiplication is hash enough.
#[derive(Default)]
pub(crate) struct AddressHasher(u64);

impl Hasher for AddressHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for b in bytes {
            self.write_u64(u64::from(*b));
        }
    }
    fn write_u64(&mut self, v: u64) {
        self.0 = (self.0 ^ v).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(26);
    }
    fn write_u32(&mut self, v: u32) {
        self.write_u64(u64::from(v));
    }
}

/// A map keyed by addresses or numbers.
pub(crate) type AddressMap<K, V> = HashMap<K, V, BuildHasherDefault<AddressHasher>>;

struct Slot {
    at: Sector,
    identity: Identity,
    generation: Generation,
    recently_used: bool,
    page: Page,
}

/// A page that a checkpoint has to write.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct FrozenPage {
    pub(crate) rank: Rank,
    pub(crate) at: Sector,
    pub(crate) slot: u32,
}

/// All metadata pages in memory.
pub(crate) struct PageCache {
    slots: Vec<Slot>,
    free: Vec<u32>,
    index: AddressMap<Sector, u32>,
    /// Slots dirtied in the current and in the frozen generation; may name slots that moved on.
    dirty: Vec<u32>,
    frozen: Vec<u32>,
    hand: usize,
    limit: usize,
    /// Checksums computed by the running or last checkpoint, and by the one before.
    crcs: [AddressMap<Sector, u32>; 2],
}

/// Memory one cached page costs, bookkeeping included.
const SLOT_COST: usize = std::mem::size_of::<Slot>() + 32;

impl PageCache {
    /// A cache that keeps about `bytes` of clean pages.
    pub(crate) fn new(bytes: usize) -> PageCache {
        PageCache {
            slots: Vec::new(),
            free: Vec::new(),
            index: AddressMap::default(),
            dirty: Vec::new(),
            frozen: Vec::new(),
            hand: 0,
            limit: (bytes / SLOT_COST).max(1024),
            crcs: Default::default(),
        }
    }

    /// Most pages to keep.
    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    /// Pages in memory.
    pub(crate) fn len(&self) -> usize {
        self.index.len()
    }

    /// Pages dirtied in the current and the frozen generation.
    pub(crate) fn dirty_len(&self) -> usize {
        self.dirty.len() + self.frozen.len()
    }

    /// Pages dirtied since the last freeze.
    pub(crate) fn current_dirty(&self) -> usize {
        self.dirty.len()
    }

    pub(crate) fn get(&mut self, at: Sector) -> Option<&Page> {
        let slot = &mut self.slots[*self.index.get(&at)? as usize];
        slot.recently_used = true;
        Some(&slot.page)
    }

    pub(crate) fn contains(&self, at: Sector) -> bool {
        self.index.contains_key(&at)
    }

    /// The page, if it may be changed in place.
    pub(crate) fn get_mut(&mut self, at: Sector, current: Generation) -> Option<&mut Page> {
        let slot = &mut self.slots[*self.index.get(&at)? as usize];
        slot.recently_used = true;
        (slot.generation == current).then_some(&mut slot.page)
    }

    /// Adds a page read from the device; makes room by evicting clean pages.
    pub(crate) fn insert_clean(&mut self, at: Sector, identity: Identity, page: Page) {
        if self.contains(at) {
            return;
        }
        self.make_room();
        self.put(Slot { at, identity, generation: Generation::CLEAN, recently_used: true, page });
    }

    /// Adds a page made by the current generation, replacing whatever stale page had that address.
    pub(crate) fn insert_dirty(&mut self, at: Sector, identity: Identity, page: Page, current: Generation) {
        self.forget(at);
        let slot = self.put(Slot { at, identity, generation: current, recently_used: true, page });
        self.dirty.push(slot);
    }

    /// Drops a page whose address was freed. Frozen pages stay until their checkpoint is done with them.
    pub(crate) fn remove(&mut self, at: Sector, current: Generation) {
        if let Some(&i) = self.index.get(&at) {
            let generation = self.slots[i as usize].generation;
            if generation == current || generation == Generation::CLEAN {
                self.forget(at);
            }
        }
    }

    fn forget(&mut self, at: Sector) {
        if let Some(i) = self.index.remove(&at) {
            self.slots[i as usize].generation = Generation::CLEAN;
            self.slots[i as usize].at = Sector(u64::MAX);
            self.free.push(i);
        }
    }

    fn put(&mut self, slot: Slot) -> u32 {
        let at = slot.at;
        let i = match self.free.pop() {
            Some(i) => {
                self.slots[i as usize] = slot;
                i
            }
            None => {
                self.slots.push(slot);
                (self.slots.len() - 1) as u32
            }
        };
        self.index.insert(at, i);
        i
    }

    fn make_room(&mut self) {
        let mut looked = 0;
        while self.index.len() >= self.limit && looked < 2 * self.slots.len() {
            self.hand = (self.hand + 1) % self.slots.len();
            looked += 1;
            let slot = &mut self.slots[self.hand];
            if slot.generation != Generation::CLEAN || slot.at == Sector(u64::MAX) {
                continue;
            }
            if std::mem::take(&mut slot.recently_used) {
                continue;
            }
            let at = slot.at;
            self.forget(at);
        }
    }

    /// The checksum that the page behind `entry` must have.
    pub(crate) fn expected_crc(&self, entry: Entry) -> u32 {
        let [newer, older] = &self.crcs;
        newer.get(&entry.at).or_else(|| older.get(&entry.at)).copied().unwrap_or(entry.crc)
    }

    /// Starts a checkpoint: what is dirty now is frozen. Returns how many pages that is.
    pub(crate) fn freeze(&mut self) -> usize {
        debug_assert!(self.frozen.is_empty(), "one checkpoint at a time");
        self.frozen = std::mem::take(&mut self.dirty);
        self.crcs.swap(0, 1);
        self.crcs[0].clear();
        self.frozen.len()
    }

    /// The frozen pages, in no order; pages freed since are left out.
    pub(crate) fn frozen_pages(&self, frozen: Generation) -> Vec<FrozenPage> {
        let slots = self.frozen.iter().map(|&i| (&self.slots[i as usize], i));
        slots
            .filter(|(slot, _)| slot.generation == frozen)
            .map(|(slot, i)| FrozenPage { rank: slot.identity.rank, at: slot.at, slot: i })
            .collect()
    }

    /// Fills in the checksums of a frozen page's children, computes its own and remembers it.
    pub(crate) fn seal(&mut self, slot: u32) {
        let (mut page, identity, at) = {
            let s = &self.slots[slot as usize];
            (s.page, s.identity, s.at)
        };
        self.fill_crcs(&mut page, identity);
        self.crcs[0].insert(at, identity.checksum(&page.0));
        self.slots[slot as usize].page = page;
    }

    /// A frozen page, once sealed.
    pub(crate) fn frozen_page(&self, slot: u32) -> &Page {
        &self.slots[slot as usize].page
    }

    /// Brings the checksums of a page's metadata children up to date.
    pub(crate) fn fill_crcs(&self, page: &mut Page, identity: Identity) {
        if identity.rank == Rank::OBJECT {
            crate::disk::object::refresh_root(page, |entry| self.expected_crc(entry));
        } else if identity.rank.has_metadata_children() {
            for i in 0..FANOUT as usize {
                let mut entry = page.get(i);
                if entry.is_pointer() {
                    let crc = self.expected_crc(entry);
                    if crc != entry.crc {
                        entry.crc = crc;
                        page.set(i, entry);
                    }
                }
            }
        }
    }

    /// True while checksums computed by a checkpoint may be newer than those in parents.
    pub(crate) fn has_unsettled_crcs(&self) -> bool {
        !self.crcs[0].is_empty() || !self.crcs[1].is_empty()
    }

    /// Ends a checkpoint: the frozen pages are clean now.
    pub(crate) fn thaw(&mut self, frozen: Generation) {
        for i in std::mem::take(&mut self.frozen) {
            let slot = &mut self.slots[i as usize];
            if slot.generation == frozen {
                slot.generation = Generation::CLEAN;
            }
        }
        self.make_room();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(base: u64) -> Identity {
        Identity { family: 1, rank: Rank::map(1), base }
    }

    #[test]
    fn eviction_spares_dirty_pages() {
        let mut cache = PageCache::new(0);
        let current = Generation(1);
        cache.insert_dirty(Sector(1), identity(0), Page::ZERO, current);
        for i in 2..5000 {
            cache.insert_clean(Sector(i), identity(i), Page::ZERO);
        }
        assert!(cache.contains(Sector(1)));
        assert_eq!(cache.len(), cache.limit());
    }

    #[test]
    fn frozen_pages_cannot_be_changed_in_place() {
        let mut cache = PageCache::new(0);
        cache.insert_dirty(Sector(1), identity(0), Page::ZERO, Generation(1));
        assert!(cache.get_mut(Sector(1), Generation(1)).is_some());
        cache.freeze();
        assert!(cache.get_mut(Sector(1), Generation(2)).is_none());
        cache.remove(Sector(1), Generation(2));
        assert!(cache.contains(Sector(1)), "the checkpoint still needs it");
        assert_eq!(cache.frozen_pages(Generation(1)).len(), 1);
    }

    #[test]
    fn a_parent_copied_before_its_child_was_sealed_learns_the_checksum() {
        let mut cache = PageCache::new(0);
        let child = Entry::pointer(Sector(1), crate::units::Epoch(1), 0);
        cache.insert_dirty(Sector(1), identity(0), Page::ZERO, Generation(1));
        cache.freeze();
        let page = cache.frozen_pages(Generation(1))[0];
        cache.seal(page.slot);
        let mut parent = Page::ZERO;
        parent.set(3, child);
        cache.fill_crcs(&mut parent, Identity { family: 1, rank: Rank::map(2), base: 0 });
        assert_eq!(parent.get(3).crc, identity(0).checksum(&Page::ZERO.0));
    }
}
