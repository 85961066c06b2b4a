//! The superblock: the roots of everything, as of the last checkpoint. Two copies, written one after the other.

use super::codec::{Malformed, Reader, Writer};
use super::entry::Entry;
use super::layout;
use crate::units::{BLOCK, Epoch, SECTORS_PER_BLOCK, VersionId};

/// First bytes of a pool's superblock.
pub(crate) const MAGIC: [u8; 8] = *b"KEYFRAME";
/// Version of the byte layout written by this code, and the newest it reads.
pub(crate) const FORMAT: u32 = 1;

/// Where the current copy of a fixed-place structure is, and its checksum.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct SlotRef {
    pub(crate) slot: u8,
    pub(crate) crc: u32,
}

/// The part of the state that a control operation may change.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct PoolState {
    pub(crate) epoch: Epoch,
    pub(crate) next_object: u32,
    pub(crate) blocks: u64,
    pub(crate) first_volume: VersionId,
    pub(crate) last_volume: VersionId,
    pub(crate) first_ghost: VersionId,
    pub(crate) first_doomed: VersionId,
    /// The ghost whose merge is under way.
    pub(crate) merging: VersionId,
    pub(crate) volumes: u32,
    pub(crate) snapshots: u64,
    pub(crate) ghosts: u64,
}

/// Everything a superblock says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Superblock {
    pub(crate) uuid: [u8; 16],
    /// Counts checkpoints.
    pub(crate) generation: u64,
    pub(crate) state: PoolState,
    pub(crate) journal_blocks: u64,
    /// Journal groups are padded to this many bytes.
    pub(crate) journal_align: u32,
    /// Journal position (never wraps) of the first group to replay.
    pub(crate) journal_tail: u64,
    /// Number of the first group to replay.
    pub(crate) journal_group: u64,
    /// Chain value that the first group to replay must carry.
    pub(crate) journal_chain: u32,
    /// Last record whose effect is part of this checkpoint.
    pub(crate) sequence: u64,
    pub(crate) table: Entry,
    pub(crate) names: Entry,
    pub(crate) space: SlotRef,
    /// Blocks with any allocated sector.
    pub(crate) used_blocks: u64,
    pub(crate) created: u64,
}

/// Why a block is not a usable superblock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Unusable {
    /// No magic: never was a superblock.
    Foreign,
    /// Magic and checksum are right, the format is newer.
    Newer(u32),
    /// Magic without the checksum that belongs to it.
    Damaged,
}

impl Superblock {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut w = Writer::default();
        let s = &self.state;
        w.bytes(&MAGIC).u32(FORMAT).bytes(&self.uuid).u64(self.generation);
        w.u32(s.epoch.0).u32(s.next_object).u64(s.blocks).u32(s.first_volume.0).u32(s.last_volume.0);
        w.u32(s.first_ghost.0).u32(s.first_doomed.0).u32(s.merging.0).u32(s.volumes).u64(s.snapshots).u64(s.ghosts);
        w.u64(self.journal_blocks).u32(self.journal_align).u64(self.journal_tail).u64(self.journal_group);
        w.u32(self.journal_chain).u64(self.sequence).bytes(&self.table.encode()).bytes(&self.names.encode());
        w.u8(self.space.slot).u32(self.space.crc).u64(self.used_blocks).u64(self.created);
        let mut out = w.0;
        out.resize(BLOCK as usize - 4, 0);
        let crc = crc32c::crc32c(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }

    pub(crate) fn decode(block: &[u8]) -> Result<Superblock, Unusable> {
        if block.len() < BLOCK as usize || block[..8] != MAGIC {
            return Err(Unusable::Foreign);
        }
        let (body, crc) = block[..BLOCK as usize].split_at(BLOCK as usize - 4);
        if crc32c::crc32c(body).to_le_bytes() != crc {
            return Err(Unusable::Damaged);
        }
        let format = u32::from_le_bytes([block[8], block[9], block[10], block[11]]);
        if format != FORMAT {
            return Err(Unusable::Newer(format));
        }
        let superblock = Self::fields(&body[12..]).map_err(|Malformed| Unusable::Damaged)?;
        if superblock.is_sane() { Ok(superblock) } else { Err(Unusable::Damaged) }
    }

    /// Numbers that later code multiplies, shifts or allocates by are within their limits.
    fn is_sane(&self) -> bool {
        (layout::MIN_POOL_BLOCKS..=layout::MAX_POOL_BLOCKS).contains(&self.state.blocks)
            && (layout::MIN_JOURNAL_BLOCKS..=layout::MAX_JOURNAL_BLOCKS).contains(&self.journal_blocks)
            && matches!(self.journal_align, 512 | 4096)
            && self.journal_tail < u64::MAX / 2
            && self.journal_group < u64::MAX / 2
            && self.sequence < u64::MAX / 2
            && self.generation < u64::MAX / 2
            && self.space.slot <= 1
            && self.used_blocks <= self.state.blocks
            && [self.table, self.names].iter().all(|e| e.at.0 < self.state.blocks * SECTORS_PER_BLOCK)
    }

    fn fields(body: &[u8]) -> Result<Superblock, Malformed> {
        let mut reader = Reader(body);
        let r = &mut reader;
        let entry = |r: &mut Reader<'_>| {
            let mut raw = [0; 16];
            raw.copy_from_slice(r.take(16)?);
            Entry::decode(&raw).ok_or(Malformed)
        };
        let mut uuid = [0; 16];
        uuid.copy_from_slice(r.take(16)?);
        Ok(Superblock {
            uuid,
            generation: r.u64()?,
            state: PoolState {
                epoch: Epoch(r.u32()?),
                next_object: r.u32()?,
                blocks: r.u64()?,
                first_volume: VersionId(r.u32()?),
                last_volume: VersionId(r.u32()?),
                first_ghost: VersionId(r.u32()?),
                first_doomed: VersionId(r.u32()?),
                merging: VersionId(r.u32()?),
                volumes: r.u32()?,
                snapshots: r.u64()?,
                ghosts: r.u64()?,
            },
            journal_blocks: r.u64()?,
            journal_align: r.u32()?,
            journal_tail: r.u64()?,
            journal_group: r.u64()?,
            journal_chain: r.u32()?,
            sequence: r.u64()?,
            table: entry(r)?,
            names: entry(r)?,
            space: SlotRef { slot: r.u8()?, crc: r.u32()? },
            used_blocks: r.u64()?,
            created: r.u64()?,
        })
    }
}
