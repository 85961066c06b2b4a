//! When a freed block may be written again.
//!
//! A data block waits until the record that freed it is durable and no read that began before is still under way. A metadata
//! block waits until a checkpoint that no longer refers to any of its sectors is durable.

use std::collections::VecDeque;

use crate::cache::AddressMap;
use crate::units::{PoolBlock, Sector};

/// Something that left the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Freed {
    Block(PoolBlock),
    Sector(Sector),
}

impl Freed {
    pub(super) fn block(self) -> PoolBlock {
        match self {
            Freed::Block(block) => block,
            Freed::Sector(sector) => sector.block(),
        }
    }
}

/// Proof that a read was announced; must be handed back.
#[derive(Debug)]
#[must_use]
pub(crate) struct ReadTicket(u64);

/// Freed blocks in the order in which they were freed.
#[derive(Default)]
pub(super) struct Releases {
    /// (record, number of the free, block).
    blocks: VecDeque<(u64, u64, PoolBlock)>,
    frees: u64,
    /// Reads under way: (frees before the first of them began, how many).
    readers: VecDeque<(u64, u32)>,
    /// (generation, block); a block is released with the last generation that freed one of its sectors.
    metadata: VecDeque<(u64, PoolBlock)>,
    last_generation: AddressMap<u64, u64>,
}

impl Releases {
    pub(super) fn len(&self) -> u64 {
        (self.blocks.len() + self.last_generation.len()) as u64
    }

    pub(super) fn push(&mut self, freed: Freed, tag: u64) {
        match freed {
            Freed::Block(block) => {
                self.blocks.push_back((tag, self.frees, block));
                self.frees += 1;
            }
            Freed::Sector(sector) => {
                let block = sector.block();
                if self.last_generation.insert(block.0, tag) != Some(tag) {
                    self.metadata.push_back((tag, block));
                }
            }
        }
    }

    pub(super) fn begin_read(&mut self) -> ReadTicket {
        match self.readers.back_mut() {
            Some((frees, count)) if *frees == self.frees => *count += 1,
            _ => self.readers.push_back((self.frees, 1)),
        }
        ReadTicket(self.frees)
    }

    pub(super) fn end_read(&mut self, ticket: ReadTicket) {
        if let Ok(i) = self.readers.binary_search_by_key(&ticket.0, |r| r.0) {
            self.readers[i].1 -= 1;
        }
        while self.readers.front().is_some_and(|r| r.1 == 0) {
            self.readers.pop_front();
        }
    }

    /// The next data block to release, given that records up to `durable` are durable.
    pub(super) fn next_block(&mut self, durable: u64) -> Option<PoolBlock> {
        let &(record, number, block) = self.blocks.front()?;
        let read = self.readers.front().is_some_and(|&(frees, _)| frees <= number);
        if record > durable || read {
            return None;
        }
        self.blocks.pop_front();
        Some(block)
    }

    /// The next metadata block to release once `generation` is durable; the inner `None` is an entry that a later free outdated.
    pub(super) fn next_metadata_block(&mut self, generation: u64) -> Option<Option<PoolBlock>> {
        let &(tag, block) = self.metadata.front()?;
        if tag > generation {
            return None;
        }
        self.metadata.pop_front();
        let last = self.last_generation.get(&block.0) == Some(&tag);
        if last {
            self.last_generation.remove(&block.0);
        }
        Some(last.then_some(block))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_waits_for_its_record_and_for_older_readers() {
        let mut r = Releases::default();
        let reader = r.begin_read();
        r.push(Freed::Block(PoolBlock(1)), 10);
        let later = r.begin_read();
        assert_eq!(r.next_block(9), None);
        assert_eq!(r.next_block(10), None, "the reader began before the free");
        r.end_read(reader);
        assert_eq!(r.next_block(10), Some(PoolBlock(1)), "the other began after");
        r.end_read(later);
    }

    #[test]
    fn a_metadata_block_waits_for_its_last_free() {
        let mut r = Releases::default();
        r.push(Freed::Sector(Sector(8)), 5);
        r.push(Freed::Sector(Sector(9)), 6);
        assert_eq!(r.next_metadata_block(4), None);
        assert_eq!(r.next_metadata_block(5), Some(None));
        assert_eq!(r.next_metadata_block(5), None);
        assert_eq!(r.next_metadata_block(6), Some(Some(PoolBlock(1))));
    }
}
