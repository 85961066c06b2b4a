//! The 16-byte map entry and the 512-byte page that holds 32 of them.
//!
//! One shape serves every level: where a thing is, when it was born, and the checksum of what it points to. The checksum is
//! mixed with the identity of the thing (family, level, position), so that a block read from the wrong place fails too.

use crate::units::{Epoch, Lba, PoolBlock, SECTOR, Sector};

/// Entries in a node.
pub(crate) const FANOUT: u64 = 32;
/// log2 of [`FANOUT`].
pub(crate) const FANOUT_BITS: u32 = 5;
/// Map levels of the largest volume.
pub(crate) const MAX_LEVELS: u8 = 7;

/// What an entry says about its range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// Never written.
    Empty,
    /// A node one level down, or at level 0 a data block; in the name index a value.
    Pointer,
    /// Reads as zeroes, asked for by a write of zeroes.
    Zero,
    /// Reads as zeroes, discarded.
    Discard,
}

/// A map entry: 8 bytes of sector and kind, 4 of birth, 4 of checksum.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Entry {
    pub(crate) kind: Kind,
    pub(crate) at: Sector,
    pub(crate) birth: Epoch,
    pub(crate) crc: u32,
}

impl Entry {
    pub(crate) const EMPTY: Entry = Entry { kind: Kind::Empty, at: Sector(0), birth: Epoch(0), crc: 0 };

    pub(crate) fn pointer(at: Sector, birth: Epoch, crc: u32) -> Entry {
        Entry { kind: Kind::Pointer, at, birth, crc }
    }

    pub(crate) fn hole(kind: Kind, birth: Epoch) -> Entry {
        Entry { kind, at: Sector(0), birth, crc: 0 }
    }

    pub(crate) fn is_pointer(self) -> bool {
        self.kind == Kind::Pointer
    }

    /// The same thing by identity: equal pointers share everything below, whatever the cached checksum says.
    pub(crate) fn same(self, other: Entry) -> bool {
        self.kind == other.kind && self.at == other.at && (self.is_pointer() || self.birth == other.birth)
    }

    pub(crate) fn block(self) -> PoolBlock {
        self.at.block()
    }

    pub(crate) fn encode(self) -> [u8; 16] {
        let kind = match self.kind {
            Kind::Empty => 0,
            Kind::Pointer => 1,
            Kind::Zero => 2,
            Kind::Discard => 3,
        };
        let mut out = [0; 16];
        out[..8].copy_from_slice(&(self.at.0 << 8 | kind).to_le_bytes());
        out[8..12].copy_from_slice(&self.birth.0.to_le_bytes());
        out[12..].copy_from_slice(&self.crc.to_le_bytes());
        out
    }

    /// Kinds this version does not know decode as `None`: the page is damaged or newer.
    pub(crate) fn decode(bytes: &[u8; 16]) -> Option<Entry> {
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[..8]);
        let word = u64::from_le_bytes(word);
        let kind = match word & 0xff {
            0 => Kind::Empty,
            1 => Kind::Pointer,
            2 => Kind::Zero,
            3 => Kind::Discard,
            _ => return None,
        };
        let half = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        Some(Entry { kind, at: Sector(word >> 8), birth: Epoch(half(8)), crc: half(12) })
    }
}

/// One sector of metadata: 32 entries, or one object.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(align(8))]
pub(crate) struct Page(pub(crate) [u8; SECTOR as usize]);

impl Page {
    pub(crate) const ZERO: Page = Page([0; SECTOR as usize]);

    /// A node whose whole range is described by one entry.
    pub(crate) fn filled(entry: Entry) -> Page {
        let mut page = Page::ZERO;
        if entry != Entry::EMPTY {
            for i in 0..FANOUT as usize {
                page.set(i, entry);
            }
        }
        page
    }

    /// The `i`-th entry. Kinds were checked when the page entered memory.
    pub(crate) fn get(&self, i: usize) -> Entry {
        let mut raw = [0; 16];
        raw.copy_from_slice(&self.0[i * 16..i * 16 + 16]);
        Entry::decode(&raw).unwrap_or(Entry::EMPTY)
    }

    pub(crate) fn set(&mut self, i: usize, entry: Entry) {
        self.0[i * 16..i * 16 + 16].copy_from_slice(&entry.encode());
    }

    pub(crate) fn entries(&self) -> impl Iterator<Item = Entry> + '_ {
        (0..FANOUT as usize).map(|i| self.get(i))
    }

    /// True when every entry has a kind this version knows.
    pub(crate) fn is_well_formed(&self) -> bool {
        self.0.chunks_exact(16).all(|raw| raw[0] <= 3)
    }
}

/// Blocks covered by one entry at `level` (level 0 is a data block).
pub(crate) fn span(level: u8) -> u64 {
    1 << (FANOUT_BITS * u32::from(level))
}

/// The index within a node at `level` of the entry that covers `lba`.
pub(crate) fn index(level: u8, lba: Lba) -> usize {
    ((lba.0 >> (FANOUT_BITS * u32::from(level - 1))) & (FANOUT - 1)) as usize
}

/// Levels needed to map `blocks` blocks; at least 1.
pub(crate) fn levels_for(blocks: u64) -> u8 {
    (1..=MAX_LEVELS).find(|&l| span(l) >= blocks).unwrap_or(MAX_LEVELS)
}

/// Who a checksummed thing is: mixed into its checksum.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Identity {
    /// Family of the volume, or 0 for the pool's own trees.
    pub(crate) family: u32,
    /// What sort of thing, and its level: see [`Rank`].
    pub(crate) rank: Rank,
    /// First block covered, or the object's number.
    pub(crate) base: u64,
}

/// The order in which dirty metadata is written: children always have a smaller rank than their parents.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub(crate) struct Rank(pub(crate) u8);

impl Rank {
    pub(crate) const DATA: Rank = Rank(0);
    pub(crate) const OBJECT: Rank = Rank(8);

    /// A node of a volume's map, levels 1 to 7.
    pub(crate) fn map(level: u8) -> Rank {
        Rank(level)
    }
    /// A node of the object table, levels 1 to 6.
    pub(crate) fn table(level: u8) -> Rank {
        Rank(8 + level)
    }
    /// A node of the name index, levels 1 to 4; level 1 holds values.
    pub(crate) fn names(level: u8) -> Rank {
        Rank(16 + level)
    }
    /// Whether the entries of a page of this rank carry checksums of metadata pages.
    pub(crate) fn has_metadata_children(self) -> bool {
        !matches!(self.0, 0 | 1 | 8 | 17)
    }
    /// Whether a page of this rank is made of entries.
    pub(crate) fn is_node(self) -> bool {
        self != Rank::OBJECT
    }
}

impl Identity {
    pub(crate) fn data(family: u32, lba: Lba) -> Identity {
        Identity { family, rank: Rank::DATA, base: lba.0 }
    }

    /// CRC-32C of the identity followed by `bytes`.
    pub(crate) fn checksum(self, bytes: &[u8]) -> u32 {
        let mut head = [0; 16];
        head[..8].copy_from_slice(&self.base.to_le_bytes());
        head[8..12].copy_from_slice(&self.family.to_le_bytes());
        head[12] = self.rank.0;
        crc32c::crc32c_append(crc32c::crc32c(&head), bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entry_bytes_are_fixed() {
        let entry = Entry::pointer(Sector(0x0102_0304_0506), Epoch(0x0a0b_0c0d), 0x1122_3344);
        assert_eq!(entry.encode(), [1, 6, 5, 4, 3, 2, 1, 0, 0x0d, 0x0c, 0x0b, 0x0a, 0x44, 0x33, 0x22, 0x11]);
        assert_eq!(Entry::decode(&entry.encode()), Some(entry));
        assert_eq!(Entry::hole(Kind::Discard, Epoch(7)).encode()[0], 3);
        assert_eq!(Entry::decode(&[9; 16]), None);
    }

    #[test]
    fn checksum_depends_on_identity() {
        let id = Identity::data(1, Lba(2));
        // Golden values: CRC-32C over 16 bytes of identity, then the content.
        assert_eq!(
            id.checksum(&[0; 4096]),
            crc32c::crc32c(&{
                let mut all = vec![2, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
                all.extend([0; 4096]);
                all
            })
        );
        assert_ne!(id.checksum(&[0; 4096]), Identity::data(1, Lba(3)).checksum(&[0; 4096]));
        assert_ne!(id.checksum(&[0; 4096]), Identity::data(2, Lba(2)).checksum(&[0; 4096]));
    }

    #[test]
    fn levels_cover_sizes() {
        let check = |blocks: u64, levels: u8| assert_eq!(levels_for(blocks), levels, "{blocks} blocks");
        check(1, 1);
        check(32, 1);
        check(33, 2);
        check(1 << 22, 5);
        check(1 << 35, 7);
        assert_eq!(index(1, Lba(33)), 1);
        assert_eq!(index(2, Lba(33)), 1);
        assert_eq!(span(2), 1024);
    }
}
