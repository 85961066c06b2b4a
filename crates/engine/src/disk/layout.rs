//! Where things lie in a pool: groups, their bitmap pages, the tables above them, the journal.
//!
//! A pool is cut into groups of 4,096 blocks (16 MiB). A group's bitmap has one bit per sector and fills one block; it is kept
//! in two slots, the group's first two blocks, written alternately. 512 groups share a table page (which slot of each bitmap
//! is current, its checksum, its free count), again in two slots, blocks 2 and 3 of the first group of the span. The table
//! pages are described by the space root, again in two slots, in group 0. Fixed places at every level, so that writing the
//! allocator's own state never allocates.

use crate::units::{BLOCK, PoolBlock};

/// Blocks in a group.
pub(crate) const GROUP_BLOCKS: u64 = 4096;
/// Groups in a table page.
pub(crate) const GROUPS_PER_TABLE: u64 = 512;
/// Block of the first superblock copy; the second follows.
pub(crate) const SUPERBLOCKS: [PoolBlock; 2] = [PoolBlock(4), PoolBlock(5)];
/// First block of the two space roots.
const SPACE_ROOTS: u64 = 6;
/// Blocks in one space root: 8 bytes for each of 32,768 table pages, 256 TiB of pool.
pub(crate) const SPACE_ROOT_BLOCKS: u64 = 64;
/// First block of the journal.
pub(crate) const JOURNAL: PoolBlock = PoolBlock(SPACE_ROOTS + 2 * SPACE_ROOT_BLOCKS);
/// Most blocks of journal: it ends with group 0.
pub(crate) const MAX_JOURNAL_BLOCKS: u64 = GROUP_BLOCKS - JOURNAL.0;
/// Fewest blocks of journal: room for two of the largest groups and the gap at the wrap.
pub(crate) const MIN_JOURNAL_BLOCKS: u64 = 256;
/// Largest pool.
pub(crate) const MAX_POOL_BLOCKS: u64 = SPACE_ROOT_BLOCKS * BLOCK / 8 * GROUPS_PER_TABLE * GROUP_BLOCKS;
/// Smallest pool: one group.
pub(crate) const MIN_POOL_BLOCKS: u64 = GROUP_BLOCKS;

/// Number of a group.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct GroupNo(pub(crate) u32);

/// Number of a table page.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct TableNo(pub(crate) u32);

impl GroupNo {
    pub(crate) fn of(block: PoolBlock) -> GroupNo {
        GroupNo((block.0 / GROUP_BLOCKS) as u32)
    }
    pub(crate) fn first_block(self) -> PoolBlock {
        PoolBlock(u64::from(self.0) * GROUP_BLOCKS)
    }
    pub(crate) fn bitmap(self, slot: u8) -> PoolBlock {
        PoolBlock(self.first_block().0 + u64::from(slot))
    }
    pub(crate) fn table(self) -> TableNo {
        TableNo(self.0 / GROUPS_PER_TABLE as u32)
    }
    pub(crate) fn index_in_table(self) -> usize {
        (self.0 % GROUPS_PER_TABLE as u32) as usize
    }
    /// Blocks at the start of the group that hold fixed structures (group 0 also holds superblocks, space roots and journal).
    pub(crate) fn fixed_blocks(self, journal_blocks: u64) -> u64 {
        match self {
            GroupNo(0) => JOURNAL.0 + journal_blocks,
            _ if self.index_in_table() == 0 => 4,
            _ => 2,
        }
    }
}

impl TableNo {
    pub(crate) fn page(self, slot: u8) -> PoolBlock {
        PoolBlock(u64::from(self.0) * GROUPS_PER_TABLE * GROUP_BLOCKS + 2 + u64::from(slot))
    }
}

/// First block of a space root slot.
pub(crate) fn space_root(slot: u8) -> PoolBlock {
    PoolBlock(SPACE_ROOTS + u64::from(slot) * SPACE_ROOT_BLOCKS)
}

/// Groups in a pool of `blocks` blocks; the last may be partial.
pub(crate) fn groups_in(blocks: u64) -> u32 {
    blocks.div_ceil(GROUP_BLOCKS) as u32
}

/// Table pages in a pool of `blocks` blocks.
pub(crate) fn tables_in(blocks: u64) -> u32 {
    u64::from(groups_in(blocks)).div_ceil(GROUPS_PER_TABLE) as u32
}

/// Blocks of journal for a pool of `blocks` blocks: a thirty-second, within the limits.
pub(crate) fn journal_blocks_for(blocks: u64) -> u64 {
    (blocks / 32).clamp(MIN_JOURNAL_BLOCKS, MAX_JOURNAL_BLOCKS)
}
