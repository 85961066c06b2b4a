//! Journal records: every change of the pool's state, as the operation that makes it.
//!
//! Records are logical. Running and recovering apply the same record with the same code, so that a replayed pool is equal to
//! the one that crashed. A record is one atom: it is never split over two journal groups.

use super::codec::{Malformed, Reader, Writer};
use super::entry::{FANOUT, Kind, MAX_LEVELS, span};
use super::layout::MAX_POOL_BLOCKS;
use crate::units::{Lba, PoolBlock, SECTORS_PER_BLOCK, VersionId};

/// New blocks that a record brings into use at most for each object that it touches, when it carries no data.
const OTHER_BLOCKS: u64 = 16;

/// One snapshot of a group taken at one instant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NewSnapshot {
    pub(crate) volume: VersionId,
    pub(crate) id: VersionId,
    pub(crate) name: String,
}

/// A new volume whose head hangs under a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NewClone {
    pub(crate) source: VersionId,
    pub(crate) volume: VersionId,
    pub(crate) head: VersionId,
    pub(crate) name: String,
}

/// A change of state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    /// Consecutive blocks of a head now lie in consecutive pool blocks.
    /// The family is part of the data's checksums.
    Write {
        head: VersionId,
        family: u32,
        lba: Lba,
        at: PoolBlock,
        crcs: Vec<u32>,
    },
    /// A range of a head reads as zeroes from now on.
    Punch {
        head: VersionId,
        from: Lba,
        to: Lba,
        kind: Kind,
    },
    CreateVolume {
        volume: VersionId,
        head: VersionId,
        blocks: u64,
        time: u64,
        name: String,
    },
    Resize {
        head: VersionId,
        blocks: u64,
    },
    Rename {
        object: VersionId,
        name: String,
    },
    /// Snapshots of several heads, then clones of snapshots (of these too), all at one instant.
    Branch {
        time: u64,
        snapshots: Vec<NewSnapshot>,
        clones: Vec<NewClone>,
    },
    /// A new head under `target`; the old head becomes the snapshot `keep`, or is deleted when that is empty.
    Revert {
        volume: VersionId,
        target: VersionId,
        head: VersionId,
        time: u64,
        keep: String,
    },
    DeleteSnapshot {
        version: VersionId,
    },
    /// The name goes at once; snapshots and head follow in the background.
    DeleteVolume {
        volume: VersionId,
    },
    /// Background: the last trace of a doomed volume.
    ForgetVolume {
        volume: VersionId,
    },
    /// Background: the ghost's blocks below `to` were freed or left to its child.
    Merge {
        ghost: VersionId,
        to: Lba,
    },
    /// Background: the ghost is spliced out.
    Splice {
        ghost: VersionId,
    },
    /// Background: no child holds these blocks of the ghost; one bit per block from `base`.
    Trim {
        ghost: VersionId,
        base: Lba,
        mask: u32,
    },
    /// Background: a trim of the ghost has gone through.
    Trimmed {
        ghost: VersionId,
    },
    /// The backing file got larger and the pool uses it.
    Grow {
        blocks: u64,
    },
}

impl Record {
    /// Pool blocks that may come into use when this is applied, at most: those it names, and those of changed metadata.
    pub(crate) fn most_new_blocks(&self) -> u64 {
        match self {
            Record::Write { crcs, .. } => {
                let blocks = crcs.len() as u64;
                let leaves = blocks / FANOUT + 2;
                blocks + (leaves + 1) * u64::from(MAX_LEVELS) / SECTORS_PER_BLOCK + 2
            }
            Record::Branch { snapshots, clones, .. } => OTHER_BLOCKS * (1 + snapshots.len() + clones.len()) as u64,
            _ => OTHER_BLOCKS,
        }
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let mut w = Writer(std::mem::take(out));
        match self {
            Record::Write { head, family, lba, at, crcs } => {
                w.u8(1).u32(head.0).u32(*family).u64(lba.0).u64(at.0).u32(crcs.len() as u32);
                for crc in crcs {
                    w.u32(*crc);
                }
            }
            Record::Punch { head, from, to, kind } => {
                w.u8(2).u32(head.0).u64(from.0).u64(to.0).u8(if *kind == Kind::Zero { 1 } else { 0 });
            }
            Record::CreateVolume { volume, head, blocks, time, name } => {
                w.u8(3).u32(volume.0).u32(head.0).u64(*blocks).u64(*time).short_str(name);
            }
            Record::Resize { head, blocks } => {
                w.u8(4).u32(head.0).u64(*blocks);
            }
            Record::Rename { object, name } => {
                w.u8(5).u32(object.0).short_str(name);
            }
            Record::Branch { time, snapshots, clones } => {
                w.u8(6).u64(*time).u32(snapshots.len() as u32).u32(clones.len() as u32);
                for s in snapshots {
                    w.u32(s.volume.0).u32(s.id.0).short_str(&s.name);
                }
                for c in clones {
                    w.u32(c.source.0).u32(c.volume.0).u32(c.head.0).short_str(&c.name);
                }
            }
            Record::Revert { volume, target, head, time, keep } => {
                w.u8(7).u32(volume.0).u32(target.0).u32(head.0).u64(*time).short_str(keep);
            }
            Record::DeleteSnapshot { version } => {
                w.u8(8).u32(version.0);
            }
            Record::DeleteVolume { volume } => {
                w.u8(9).u32(volume.0);
            }
            Record::ForgetVolume { volume } => {
                w.u8(10).u32(volume.0);
            }
            Record::Merge { ghost, to } => {
                w.u8(11).u32(ghost.0).u64(to.0);
            }
            Record::Splice { ghost } => {
                w.u8(12).u32(ghost.0);
            }
            Record::Trim { ghost, base, mask } => {
                w.u8(13).u32(ghost.0).u64(base.0).u32(*mask);
            }
            Record::Trimmed { ghost } => {
                w.u8(14).u32(ghost.0);
            }
            Record::Grow { blocks } => {
                w.u8(15).u64(*blocks);
            }
        }
        *out = w.0;
    }

    pub(crate) fn decode(r: &mut Reader<'_>) -> Result<Record, Malformed> {
        let id = |r: &mut Reader<'_>| r.u32().map(VersionId);
        let lba =
            |r: &mut Reader<'_>| r.u64().and_then(|l| if l <= span(MAX_LEVELS) { Ok(Lba(l)) } else { Err(Malformed) });
        let place = |r: &mut Reader<'_>| {
            r.u64().and_then(|b| if b < MAX_POOL_BLOCKS { Ok(PoolBlock(b)) } else { Err(Malformed) })
        };
        Ok(match r.u8()? {
            1 => {
                let (head, family, lba, at) = (id(r)?, r.u32()?, lba(r)?, place(r)?);
                let count = r.u32()? as usize;
                let raw = r.take(count.checked_mul(4).ok_or(Malformed)?)?;
                let crcs = raw.chunks_exact(4).map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect();
                Record::Write { head, family, lba, at, crcs }
            }
            2 => Record::Punch {
                head: id(r)?,
                from: lba(r)?,
                to: lba(r)?,
                kind: if r.u8()? == 1 { Kind::Zero } else { Kind::Discard },
            },
            3 => Record::CreateVolume {
                volume: id(r)?,
                head: id(r)?,
                blocks: r.u64()?,
                time: r.u64()?,
                name: r.short_str()?,
            },
            4 => Record::Resize { head: id(r)?, blocks: r.u64()? },
            5 => Record::Rename { object: id(r)?, name: r.short_str()? },
            6 => {
                let time = r.u64()?;
                let (snapshots, clones) = (r.u32()?, r.u32()?);
                Record::Branch {
                    time,
                    snapshots: (0..snapshots)
                        .map(|_| Ok(NewSnapshot { volume: id(r)?, id: id(r)?, name: r.short_str()? }))
                        .collect::<Result<_, _>>()?,
                    clones: (0..clones)
                        .map(|_| Ok(NewClone { source: id(r)?, volume: id(r)?, head: id(r)?, name: r.short_str()? }))
                        .collect::<Result<_, _>>()?,
                }
            }
            7 => Record::Revert { volume: id(r)?, target: id(r)?, head: id(r)?, time: r.u64()?, keep: r.short_str()? },
            8 => Record::DeleteSnapshot { version: id(r)? },
            9 => Record::DeleteVolume { volume: id(r)? },
            10 => Record::ForgetVolume { volume: id(r)? },
            11 => Record::Merge { ghost: id(r)?, to: lba(r)? },
            12 => Record::Splice { ghost: id(r)? },
            13 => Record::Trim { ghost: id(r)?, base: lba(r)?, mask: r.u32()? },
            14 => Record::Trimmed { ghost: id(r)? },
            15 => Record::Grow { blocks: r.u64()? },
            _ => return Err(Malformed),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_their_bytes() {
        let v = VersionId;
        let all = [
            Record::Write { head: v(1), family: 9, lba: Lba(2), at: PoolBlock(3), crcs: vec![4, 5] },
            Record::Punch { head: v(1), from: Lba(2), to: Lba(9), kind: Kind::Zero },
            Record::Punch { head: v(1), from: Lba(2), to: Lba(9), kind: Kind::Discard },
            Record::CreateVolume { volume: v(1), head: v(2), blocks: 3, time: 4, name: "a".into() },
            Record::Resize { head: v(1), blocks: 2 },
            Record::Rename { object: v(1), name: "b".into() },
            Record::Branch {
                time: 1,
                snapshots: vec![NewSnapshot { volume: v(2), id: v(3), name: "s".into() }],
                clones: vec![NewClone { source: v(3), volume: v(4), head: v(5), name: "c".into() }],
            },
            Record::Revert { volume: v(1), target: v(2), head: v(3), time: 4, keep: String::new() },
            Record::DeleteSnapshot { version: v(1) },
            Record::DeleteVolume { volume: v(1) },
            Record::ForgetVolume { volume: v(1) },
            Record::Merge { ghost: v(1), to: Lba(64) },
            Record::Splice { ghost: v(1) },
            Record::Trim { ghost: v(1), base: Lba(32), mask: 7 },
            Record::Trimmed { ghost: v(1) },
            Record::Grow { blocks: 8192 },
        ];
        let mut bytes = Vec::new();
        for record in &all {
            record.encode(&mut bytes);
        }
        let mut reader = Reader(&bytes);
        for record in &all {
            assert_eq!(Record::decode(&mut reader).as_ref(), Ok(record));
        }
        assert!(reader.is_empty());
        assert_eq!(Record::decode(&mut Reader(&[200])), Err(Malformed));
        assert_eq!(Record::decode(&mut Reader(&bytes[..20])), Err(Malformed));
    }
}
