//! The objects of a pool, one per sector: volumes and versions.
//!
//! A *volume* is a name with a head and a list of snapshots. A *version* is a head, a snapshot or a ghost: one node of the
//! family's tree. Lists are linked through the objects themselves, so that adding and removing touches a fixed number.

use super::codec::{Malformed, Reader, Writer};
use super::entry::{Entry, MAX_LEVELS, Page, span};
use crate::units::{Epoch, SECTOR, VersionId};

/// Longest name of a volume or snapshot, in bytes.
pub(crate) const MAX_NAME: usize = 200;

/// A named volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Volume {
    pub(crate) id: VersionId,
    pub(crate) name: String,
    /// Next object in the same bucket of the name index.
    pub(crate) name_next: VersionId,
    pub(crate) head: VersionId,
    /// Snapshots in creation order.
    pub(crate) first_snapshot: VersionId,
    pub(crate) last_snapshot: VersionId,
    pub(crate) snapshots: u32,
    /// Deleted; its versions follow in the background.
    pub(crate) doomed: bool,
    /// Neighbours in the pool's list of volumes, or of doomed volumes.
    pub(crate) prev: VersionId,
    pub(crate) next: VersionId,
    /// Seconds since the Unix epoch.
    pub(crate) created: u64,
}

/// What a version is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum State {
    Head,
    Snapshot,
    /// Deleted; stays until nothing depends on its place in the tree. `trimmed` when a trim found nothing left to drop.
    Ghost {
        trimmed: bool,
    },
}

/// One node of a family's tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Version {
    pub(crate) id: VersionId,
    pub(crate) state: State,
    /// The family's first volume; mixed into checksums.
    pub(crate) family: u32,
    pub(crate) volume: VersionId,
    pub(crate) parent: VersionId,
    pub(crate) first_child: VersionId,
    pub(crate) prev_sibling: VersionId,
    pub(crate) next_sibling: VersionId,
    pub(crate) children: u32,
    /// When it was frozen; 0 for a head.
    pub(crate) epoch: Epoch,
    pub(crate) root: Entry,
    pub(crate) root_level: u8,
    pub(crate) blocks: u64,
    /// Data blocks its map points to.
    pub(crate) mapped: u64,
    /// Of these, how many were born after the parent was frozen. Wraps below zero while the parent is being merged into this
    /// version: what this version drops meanwhile is still in the parent's count, which is added at the end.
    pub(crate) owned: u64,
    /// How far a merge of this ghost into its child has come.
    pub(crate) cursor: u64,
    /// Name of a snapshot; empty for heads and ghosts.
    pub(crate) name: String,
    pub(crate) name_next: VersionId,
    /// Neighbours in the volume's list of snapshots, or in the pool's list of ghosts.
    pub(crate) prev: VersionId,
    pub(crate) next: VersionId,
    pub(crate) created: u64,
}

/// Anything the object table holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Object {
    Volume(Volume),
    Version(Version),
}

impl Object {
    pub(crate) fn encode(&self) -> Page {
        let mut w = Writer::default();
        match self {
            Object::Volume(v) => {
                w.u8(1).u32(v.id.0).u32(v.name_next.0).u32(v.head.0).u32(v.first_snapshot.0).u32(v.last_snapshot.0);
                w.u32(v.snapshots).u8(u8::from(v.doomed)).u32(v.prev.0).u32(v.next.0).u64(v.created).short_str(&v.name);
            }
            Object::Version(v) => {
                let state = match v.state {
                    State::Head => 0,
                    State::Snapshot => 1,
                    State::Ghost { trimmed: false } => 2,
                    State::Ghost { trimmed: true } => 3,
                };
                w.u8(2).u32(v.id.0).u8(state).u32(v.family).u32(v.volume.0).u32(v.parent.0).u32(v.first_child.0);
                w.u32(v.prev_sibling.0).u32(v.next_sibling.0).u32(v.children).u32(v.epoch.0);
                w.bytes(&v.root.encode()).u8(v.root_level).u64(v.blocks).u64(v.mapped).u64(v.owned).u64(v.cursor);
                w.u32(v.name_next.0).u32(v.prev.0).u32(v.next.0).u64(v.created).short_str(&v.name);
            }
        }
        let mut page = Page::ZERO;
        page.0[..w.0.len()].copy_from_slice(&w.0);
        page
    }

    pub(crate) fn decode(page: &Page) -> Result<Object, Malformed> {
        let mut r = Reader(&page.0[..SECTOR as usize]);
        let id = |r: &mut Reader<'_>| r.u32().map(VersionId);
        match r.u8()? {
            1 => Ok(Object::Volume(Volume {
                id: id(&mut r)?,
                name_next: id(&mut r)?,
                head: id(&mut r)?,
                first_snapshot: id(&mut r)?,
                last_snapshot: id(&mut r)?,
                snapshots: r.u32()?,
                doomed: r.u8()? != 0,
                prev: id(&mut r)?,
                next: id(&mut r)?,
                created: r.u64()?,
                name: r.short_str()?,
            })),
            2 => Ok(Object::Version(Version {
                id: id(&mut r)?,
                state: match r.u8()? {
                    0 => State::Head,
                    1 => State::Snapshot,
                    2 => State::Ghost { trimmed: false },
                    3 => State::Ghost { trimmed: true },
                    _ => return Err(Malformed),
                },
                family: r.u32()?,
                volume: id(&mut r)?,
                parent: id(&mut r)?,
                first_child: id(&mut r)?,
                prev_sibling: id(&mut r)?,
                next_sibling: id(&mut r)?,
                children: r.u32()?,
                epoch: Epoch(r.u32()?),
                root: {
                    let mut raw = [0; 16];
                    raw.copy_from_slice(r.take(16)?);
                    Entry::decode(&raw).ok_or(Malformed)?
                },
                root_level: r.u8().and_then(|l| if (1..=MAX_LEVELS).contains(&l) { Ok(l) } else { Err(Malformed) })?,
                blocks: r.u64().and_then(|b| if b <= span(MAX_LEVELS) { Ok(b) } else { Err(Malformed) })?,
                mapped: r.u64()?,
                owned: r.u64()?,
                cursor: r.u64()?,
                name_next: id(&mut r)?,
                prev: id(&mut r)?,
                next: id(&mut r)?,
                created: r.u64()?,
                name: r.short_str()?,
            })),
            _ => Err(Malformed),
        }
    }
}

/// The root entry's offset within an encoded version.
const ROOT_OFFSET: usize = 38;

/// Brings the checksum of a version's root up to date within its encoded page; volumes have none.
pub(crate) fn refresh_root(page: &mut Page, crc_of: impl Fn(Entry) -> u32) {
    let mut raw = [0; 16];
    raw.copy_from_slice(&page.0[ROOT_OFFSET..ROOT_OFFSET + 16]);
    if page.0[0] != 2 {
        return;
    }
    if let Some(mut root) = Entry::decode(&raw).filter(|root| root.is_pointer()) {
        root.crc = crc_of(root);
        page.0[ROOT_OFFSET..ROOT_OFFSET + 16].copy_from_slice(&root.encode());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Sector;

    fn version() -> Version {
        Version {
            id: VersionId(5),
            state: State::Ghost { trimmed: true },
            family: 1,
            volume: VersionId(1),
            parent: VersionId(3),
            first_child: VersionId(6),
            prev_sibling: VersionId(7),
            next_sibling: VersionId(8),
            children: 2,
            epoch: Epoch(9),
            root: Entry::pointer(Sector(0xabcdef), Epoch(4), 0xdead_beef),
            root_level: 5,
            blocks: 1 << 22,
            mapped: 10,
            owned: 11,
            cursor: 12,
            name: "n".repeat(MAX_NAME),
            name_next: VersionId(13),
            prev: VersionId(14),
            next: VersionId(15),
            created: 16,
        }
    }

    #[test]
    fn objects_survive_their_bytes() {
        let object = Object::Version(version());
        assert_eq!(Object::decode(&object.encode()), Ok(object));
        let object = Object::Volume(Volume {
            id: VersionId(1),
            name: "vm1-root".into(),
            name_next: VersionId(2),
            head: VersionId(3),
            first_snapshot: VersionId(4),
            last_snapshot: VersionId(5),
            snapshots: 6,
            doomed: true,
            prev: VersionId(7),
            next: VersionId(8),
            created: 9,
        });
        assert_eq!(Object::decode(&object.encode()), Ok(object));
        assert_eq!(Object::decode(&Page::ZERO), Err(Malformed));
    }

    #[test]
    fn the_root_entry_lies_where_the_checkpoint_writes_its_checksum() {
        let version = version();
        let page = Object::Version(version.clone()).encode();
        assert_eq!(page.0[ROOT_OFFSET..ROOT_OFFSET + 16], version.root.encode());
    }
}
