//! The engine's units. No bare integer crosses a function where it could be mistaken for another unit.

use std::fmt;

/// Bytes in a volume block: the granularity of mapping, allocation of data and checksums.
pub const BLOCK: u64 = 4096;
/// Bytes in a map node, and the granularity of physical addresses.
pub const SECTOR: u64 = 512;
/// Sectors in a block.
pub const SECTORS_PER_BLOCK: u64 = BLOCK / SECTOR;
/// Largest volume: seven levels of 32-way nodes over 4 KiB blocks.
pub const MAX_VOLUME: Bytes = Bytes(128 << 40);

/// A size or an offset in bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Bytes(pub u64);

impl Bytes {
    /// Whole blocks needed to hold this many bytes.
    pub fn blocks(self) -> u64 {
        self.0.div_ceil(BLOCK)
    }
}

impl fmt::Display for Bytes {
    /// Prints the size as people write it: the largest binary unit that keeps at most two decimals.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        if self.0 < 1024 {
            return write!(f, "{} B", self.0);
        }
        let mut unit = 0;
        let mut scaled = self.0 as f64 / 1024.0;
        while scaled >= 1024.0 && unit + 1 < UNITS.len() {
            scaled /= 1024.0;
            unit += 1;
        }
        let digits = if (scaled - scaled.round()).abs() < 0.005 { 0 } else { 2 };
        write!(f, "{scaled:.digits$} {}", UNITS[unit])
    }
}

/// A logical block of a volume, in units of [`BLOCK`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Lba(pub u64);

/// A physical place in the pool, in units of [`SECTOR`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Sector(pub u64);

impl Sector {
    /// The byte offset of this sector in the pool's backing file.
    pub fn offset(self) -> u64 {
        self.0 * SECTOR
    }

    /// The block that contains this sector.
    pub(crate) fn block(self) -> PoolBlock {
        PoolBlock(self.0 / SECTORS_PER_BLOCK)
    }
}

/// A physical block of the pool, in units of [`BLOCK`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct PoolBlock(pub u64);

impl PoolBlock {
    /// The byte offset of this block in the pool's backing file.
    pub fn offset(self) -> u64 {
        self.0 * BLOCK
    }

    /// The first sector of this block.
    pub(crate) fn sector(self) -> Sector {
        Sector(self.0 * SECTORS_PER_BLOCK)
    }
}

/// The pool-wide version clock. It ticks at every snapshot and clone; every map entry carries the tick of its birth.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Epoch(pub u32);

/// Names one version (head, snapshot or ghost) for the life of the pool; never used twice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct VersionId(pub u32);

impl VersionId {
    /// No version. Identifiers start at 1.
    pub const NONE: VersionId = VersionId(0);

    /// `None` for [`VersionId::NONE`].
    pub fn some(self) -> Option<VersionId> {
        (self.0 != 0).then_some(self)
    }
}

impl fmt::Display for VersionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_print_as_people_write_them() {
        let check = |bytes: u64, text: &str| assert_eq!(Bytes(bytes).to_string(), text);
        check(0, "0 B");
        check(1023, "1023 B");
        check(1024, "1 KiB");
        check(1536, "1.50 KiB");
        check(1 << 20, "1 MiB");
        check(10 << 30, "10 GiB");
        check((128 << 40) + (1 << 39), "128.50 TiB");
    }
}
