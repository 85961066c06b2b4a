//! Table pages and the space root: where each bitmap page is, its checksum, and how much is free in it.

use crate::disk::layout::{GROUP_BLOCKS, GROUPS_PER_TABLE, GroupNo};
use crate::disk::superblock::SlotRef;
use crate::units::BLOCK;

/// What a table says about one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) struct GroupRef {
    /// The current slot; `None` when the group was never written.
    pub(super) slot: Option<u8>,
    pub(super) crc: u32,
    pub(super) free: u16,
}

impl GroupRef {
    /// Free blocks according to the last checkpoint.
    pub(super) fn free(self, number: GroupNo, pool_blocks: u64, journal_blocks: u64) -> u32 {
        match self.slot {
            Some(_) => u32::from(self.free),
            None => {
                let end = (pool_blocks - number.first_block().0).min(GROUP_BLOCKS);
                end.saturating_sub(number.fixed_blocks(journal_blocks)) as u32
            }
        }
    }
}

/// 512 groups.
pub(super) struct Table {
    pub(super) groups: Vec<GroupRef>,
    pub(super) dirty: bool,
}

impl Default for Table {
    fn default() -> Table {
        Table { groups: vec![GroupRef::default(); GROUPS_PER_TABLE as usize], dirty: false }
    }
}

impl Table {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(BLOCK as usize);
        for group in &self.groups {
            out.extend_from_slice(&group.crc.to_le_bytes());
            out.extend_from_slice(&group.free.to_le_bytes());
            out.extend_from_slice(&[group.slot.map_or(0, |s| s + 1), 0]);
        }
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Table {
        let groups = bytes
            .chunks_exact(8)
            .map(|raw| GroupRef {
                crc: u32::from_le_bytes([raw[0], raw[1], raw[2], raw[3]]),
                free: u16::from_le_bytes([raw[4], raw[5]]),
                slot: raw[6].checked_sub(1),
            })
            .collect();
        Table { groups, dirty: false }
    }
}

pub(super) fn encode_root(root: &[SlotRef]) -> Vec<u8> {
    let mut out = Vec::new();
    for table in root {
        out.extend_from_slice(&table.crc.to_le_bytes());
        out.extend_from_slice(&[table.slot, 0, 0, 0]);
    }
    out.resize(out.len().next_multiple_of(BLOCK as usize), 0);
    out
}

/// Decodes a space root of `tables` table pages. `None`: too short.
pub(crate) fn decode_root(bytes: &[u8], tables: u32) -> Option<Vec<SlotRef>> {
    let raw = bytes.get(..tables as usize * 8)?;
    Some(
        raw.chunks_exact(8)
            .map(|raw| SlotRef { crc: u32::from_le_bytes([raw[0], raw[1], raw[2], raw[3]]), slot: raw[4].min(2) })
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_survive_their_bytes() {
        let mut table = Table::default();
        table.groups[7] = GroupRef { slot: Some(1), crc: 0x0102_0304, free: 77 };
        let bytes = table.encode();
        assert_eq!(bytes.len(), 4096);
        assert_eq!(bytes[56..64], [4, 3, 2, 1, 77, 0, 2, 0]);
        assert_eq!(Table::decode(&bytes).groups, table.groups);
    }
}
