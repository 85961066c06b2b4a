//! The object table and the name index.
//!
//! Objects lie in a radix tree by number. Names lie in buckets by hash of (owner, name); a bucket holds the number of the first
//! object, further ones are linked through the objects themselves. Volumes are owned by nobody (0), snapshots by their volume.

use super::Core;
use super::stop::{Step, Stop};
use super::tree::{Tree, base_of};
use crate::disk::entry::{Entry, Identity, Rank, index, span};
use crate::disk::object::{Object, State};
use crate::units::{Epoch, Lba, Sector, VersionId};

/// Levels of the object table: a thousand million objects.
pub(crate) const TABLE_LEVELS: u8 = 6;
/// Levels of the name index: a million buckets.
pub(crate) const NAME_LEVELS: u8 = 4;

/// The bucket of a name.
pub(super) fn bucket(owner: VersionId, name: &str) -> u64 {
    let crc = crc32c::crc32c_append(crc32c::crc32c(&owner.0.to_le_bytes()), name.as_bytes());
    u64::from(crc) % span(NAME_LEVELS)
}

impl Object {
    /// The owner and the name under which the object is found; ghosts and heads have none.
    pub(crate) fn key(&self) -> Option<(VersionId, &str)> {
        match self {
            Object::Volume(v) => Some((VersionId::NONE, &v.name)),
            Object::Version(v) if v.state == State::Snapshot => Some((v.volume, &v.name)),
            Object::Version(_) => None,
        }
    }

    /// The next object in the same bucket.
    pub(crate) fn name_next(&self) -> VersionId {
        match self {
            Object::Volume(v) => v.name_next,
            Object::Version(v) => v.name_next,
        }
    }

    pub(super) fn set_name_next(&mut self, next: VersionId) {
        match self {
            Object::Volume(v) => v.name_next = next,
            Object::Version(v) => v.name_next = next,
        }
    }
}

/// Who an object's page is.
pub(crate) fn object_identity(id: u64) -> Identity {
    Identity { family: 0, rank: Rank::OBJECT, base: id }
}

impl Core {
    /// An object by number.
    pub(crate) fn object(&mut self, id: VersionId) -> Step<Option<Object>> {
        let key = u64::from(id.0);
        let entry = self.lookup(self.table, TABLE_LEVELS, Tree::TABLE, key)?;
        if !entry.is_pointer() {
            return Ok(None);
        }
        let page = self.page(entry, object_identity(key))?;
        Object::decode(page)
            .map(Some)
            .map_err(|_| Stop::bug("an object's page passed its checksum but cannot be decoded"))
    }

    /// The first object of a bucket.
    pub(super) fn bucket_head(&mut self, bucket: u64) -> Step<VersionId> {
        let entry = self.lookup(self.names, NAME_LEVELS, Tree::NAMES, bucket)?;
        Ok(VersionId(entry.at.0 as u32))
    }

    /// The object with this owner and name.
    pub(crate) fn find(&mut self, owner: VersionId, name: &str) -> Step<Option<Object>> {
        let mut next = self.bucket_head(bucket(owner, name))?;
        while let Some(id) = next.some() {
            let object =
                self.object(id)?.ok_or_else(|| Stop::bug("the name index refers to an object that is not there"))?;
            if object.key() == Some((owner, name)) {
                return Ok(Some(object));
            }
            next = object.name_next();
        }
        Ok(None)
    }

    /// Stores or removes objects. Stops, with nothing changed, unless everything needed is in memory.
    pub(super) fn put_objects(&mut self, objects: &[(VersionId, Option<Object>)]) -> Step<()> {
        for (id, _) in objects {
            let entry = self.lookup(self.table, TABLE_LEVELS, Tree::TABLE, u64::from(id.0))?;
            if entry.is_pointer() {
                self.page(entry, object_identity(u64::from(id.0)))?;
            }
        }
        self.prepare_metadata(objects.len() as u64 * u64::from(TABLE_LEVELS + 1))?;
        for (id, object) in objects {
            self.put_object(u64::from(id.0), object.as_ref())?;
        }
        Ok(())
    }

    fn put_object(&mut self, key: u64, object: Option<&Object>) -> Step<()> {
        let (root, leaf) = self.own_path(self.table, TABLE_LEVELS, Tree::TABLE, key, Epoch(0), |_, _| true)?;
        self.table = root;
        let i = index(1, Lba(key));
        let entry = self.page_mut(leaf)?.get(i);
        let new = match object {
            Some(object) => {
                let own = self.own_page(entry, true, object_identity(key), Epoch(0))?;
                *self.page_mut(own.at)? = object.encode();
                own
            }
            None => {
                if entry.is_pointer() {
                    self.free_page(entry.at);
                }
                Entry::EMPTY
            }
        };
        self.page_mut(leaf)?.set(i, new);
        Ok(())
    }

    /// Points buckets at their first objects. Same rules as [`Core::put_objects`].
    pub(super) fn put_buckets(&mut self, buckets: &[(u64, VersionId)]) -> Step<()> {
        for &(bucket, first) in buckets {
            let (root, leaf) = self.own_path(self.names, NAME_LEVELS, Tree::NAMES, bucket, Epoch(0), |_, _| true)?;
            self.names = root;
            let value = match first.some() {
                Some(id) => Entry::pointer(Sector(u64::from(id.0)), Epoch(0), 0),
                None => Entry::EMPTY,
            };
            self.page_mut(leaf)?.set(index(1, Lba(bucket)), value);
        }
        Ok(())
    }

    /// Makes sure that [`Core::put_buckets`] and [`Core::put_objects`] will not stop.
    pub(super) fn resolve_for_put(&mut self, objects: impl Iterator<Item = VersionId>, buckets: &[u64]) -> Step<()> {
        let mut sectors = 0;
        for id in objects {
            let key = u64::from(id.0);
            let entry = self.lookup(self.table, TABLE_LEVELS, Tree::TABLE, key)?;
            if entry.is_pointer() {
                self.page(entry, object_identity(key))?;
            }
            sectors += u64::from(TABLE_LEVELS + 1);
        }
        for &bucket in buckets {
            self.leaf(self.names, NAME_LEVELS, Tree::NAMES, base_of(1, bucket))?;
            sectors += u64::from(NAME_LEVELS);
        }
        self.prepare_metadata(sectors)
    }
}
