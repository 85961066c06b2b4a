//! One group's bitmap: a byte per block, a bit per sector, and the holds on its blocks.

use std::sync::Arc;

use crate::disk::layout::{GROUP_BLOCKS, GroupNo};
use crate::units::{SECTORS_PER_BLOCK, Sector};

const BLOCKS: usize = GROUP_BLOCKS as usize;
type Mask = [u64; BLOCKS / 64];

/// A bitmap page in memory.
pub(crate) struct Group {
    /// Shared with a running checkpoint; copied when changed meanwhile.
    pub(crate) bits: Arc<[u8; BLOCKS]>,
    held: Mask,
    reserved: Option<Box<Mask>>,
    held_count: u32,
    available: u32,
    pub(crate) dirty: bool,
    /// A running checkpoint has yet to write this page.
    pub(crate) frozen: bool,
}

impl Group {
    /// A group that was never written: all free but its fixed blocks and what lies beyond the pool's end.
    pub(crate) fn fresh(number: GroupNo, pool_blocks: u64, journal_blocks: u64) -> Group {
        let mut bits = [0; BLOCKS];
        bits[..number.fixed_blocks(journal_blocks) as usize].fill(0xff);
        let end = (pool_blocks - number.first_block().0).min(GROUP_BLOCKS) as usize;
        bits[end..].fill(0xff);
        Group::with(bits)
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Group {
        let mut bits = [0; BLOCKS];
        bits.copy_from_slice(&bytes[..BLOCKS]);
        Group::with(bits)
    }

    fn with(bits: [u8; BLOCKS]) -> Group {
        let available = bits.iter().filter(|b| **b == 0).count() as u32;
        Group {
            bits: Arc::new(bits),
            held: [0; BLOCKS / 64],
            reserved: None,
            held_count: 0,
            available,
            dirty: false,
            frozen: false,
        }
    }

    pub(crate) fn available(&self) -> u32 {
        self.available
    }

    pub(crate) fn is_held(&self) -> bool {
        self.held_count > 0
    }

    fn holds(&self, i: usize) -> bool {
        self.held[i / 64] >> (i % 64) & 1 == 1
    }

    /// A bit for each of the 64 blocks from `word * 64` that may be taken.
    fn free_mask(&self, word: usize, replaying: bool) -> u64 {
        let bits = &self.bits[word * 64..word * 64 + 64];
        let used = bits.iter().enumerate().fold(0, |mask, (i, b)| mask | u64::from(*b != 0) << i);
        let reserved = self.reserved.as_ref().filter(|_| replaying).map_or(0, |r| r[word]);
        !(used | self.held[word] | reserved)
    }

    /// Free runs at or after `from`, each of at least `smallest` blocks, `want` blocks altogether at most.
    pub(crate) fn find(&self, from: usize, want: u64, smallest: u64, replaying: bool) -> Vec<(usize, u64)> {
        let (mut found, mut missing) = (Vec::new(), want);
        let mut run: Option<(usize, u64)> = None;
        for word in from / 64..BLOCKS / 64 {
            let mask = self.free_mask(word, replaying);
            let mut i = if word == from / 64 { from % 64 } else { 0 };
            if mask == 0 && run.is_none() {
                continue;
            }
            while i < 64 {
                let free = mask >> i & 1 == 1;
                let len = run.map_or(0, |r| r.1);
                if free && len < missing {
                    run = Some((run.map_or(word * 64 + i, |r| r.0), len + 1));
                    i += 1;
                    continue;
                }
                if let Some(whole) = run.take().filter(|r| r.1 >= smallest) {
                    missing -= whole.1;
                    found.push(whole);
                }
                if missing == 0 {
                    return found;
                }
                if !free {
                    // On to the next free block of this word.
                    i += ((mask >> i).trailing_zeros() as usize).clamp(1, 64 - i);
                }
            }
        }
        found.extend(run.filter(|r| r.1 >= smallest && missing > 0));
        found
    }

    /// Holds blocks; returns how many were not held before.
    pub(crate) fn hold(&mut self, start: usize, len: u64) -> u32 {
        let mut newly = 0;
        for i in start..start + len as usize {
            if !self.holds(i) {
                self.held[i / 64] |= 1 << (i % 64);
                newly += 1;
                self.available -= u32::from(self.bits[i] == 0);
            }
        }
        self.held_count += newly;
        newly
    }

    /// Ends a hold; false if there was none.
    pub(crate) fn unhold(&mut self, i: usize) -> bool {
        let held = self.holds(i);
        if held {
            self.held[i / 64] &= !(1 << (i % 64));
            self.held_count -= 1;
            self.available += u32::from(self.bits[i] == 0);
        }
        held
    }

    fn change(&mut self, i: usize, new: u8) -> (u8, u8) {
        let old = self.bits[i];
        Arc::make_mut(&mut self.bits)[i] = new;
        self.dirty = true;
        if !self.holds(i) {
            match (old == 0, new == 0) {
                (true, false) => self.available -= 1,
                (false, true) => self.available += 1,
                _ => {}
            }
        }
        (old, new)
    }

    /// Marks a whole block used; true if none of it was.
    pub(crate) fn set_block(&mut self, i: usize) -> bool {
        self.change(i, 0xff).0 == 0
    }

    /// Marks a sector used; true if none of its block was.
    pub(crate) fn set_sector(&mut self, sector: Sector) -> bool {
        let (i, bit) = place(sector);
        self.change(i, self.bits[i] | bit).0 == 0
    }

    /// Frees a whole block; true if it was used.
    pub(crate) fn clear_block(&mut self, i: usize) -> bool {
        self.change(i, 0).0 != 0
    }

    /// Frees a sector; true if that emptied its block.
    pub(crate) fn clear_sector(&mut self, sector: Sector) -> bool {
        let (i, bit) = place(sector);
        let (old, new) = self.change(i, self.bits[i] & !bit);
        old != 0 && new == 0
    }

    pub(crate) fn reserve(&mut self, i: usize) {
        self.reserved.get_or_insert_with(|| Box::new([0; BLOCKS / 64]))[i / 64] |= 1 << (i % 64);
    }

    pub(crate) fn is_reserved(&self) -> bool {
        self.reserved.is_some()
    }

    pub(crate) fn end_reservations(&mut self) {
        self.reserved = None;
    }
}

fn place(sector: Sector) -> (usize, u8) {
    let block = (sector.0 / SECTORS_PER_BLOCK % GROUP_BLOCKS) as usize;
    (block, 1 << (sector.0 % SECTORS_PER_BLOCK))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fresh_group_offers_all_but_its_fixed_blocks() {
        let group = Group::fresh(GroupNo(1), 3 * GROUP_BLOCKS, 300);
        assert_eq!(group.available(), 4094);
        assert_eq!(group.find(0, 64, 16, false), [(2, 64)]);
        let last = Group::fresh(GroupNo(2), 2 * GROUP_BLOCKS + 10, 300);
        assert_eq!(last.available(), 8);
    }

    #[test]
    fn holds_and_bits_are_counted_apart() {
        let mut group = Group::fresh(GroupNo(1), 2 * GROUP_BLOCKS, 300);
        assert_eq!(group.hold(10, 2), 2);
        assert_eq!(group.hold(11, 2), 1);
        assert_eq!(group.available(), 4091);
        assert!(group.set_block(10));
        assert!(group.unhold(10));
        assert_eq!(group.available(), 4091);
        assert!(group.clear_block(10));
        assert_eq!(group.available(), 4092);
        assert_eq!(group.find(9, 64, 1, false), [(9, 2), (13, 62)]);
        assert_eq!(group.find(9, 64, 16, false), [(13, 64)]);
        assert_eq!(group.find(4090, 64, 1, false), [(4090, 6)]);
    }

    #[test]
    fn a_block_is_empty_only_without_any_sector() {
        let mut group = Group::fresh(GroupNo(0), GROUP_BLOCKS, 300);
        let (a, b) = (Sector(8 * 1000), Sector(8 * 1000 + 7));
        assert!(group.set_sector(a));
        assert!(!group.set_sector(b));
        assert!(!group.clear_sector(a));
        assert!(group.clear_sector(b));
    }
}
