//! A control operation's changes, collected aside and written at once, so that a miss half-way leaves nothing behind.

use std::collections::BTreeMap;

use super::names::bucket;
use super::stop::{Step, Stop};
use super::{Core, PlantedBug};
use crate::disk::object::{Object, State, Version, Volume};
use crate::disk::superblock::PoolState;
use crate::units::{Epoch, VersionId};

/// Changes on top of a core.
pub(super) struct Txn<'a> {
    core: &'a mut Core,
    pub(super) state: PoolState,
    objects: BTreeMap<u32, Option<Object>>,
    buckets: BTreeMap<u64, VersionId>,
    ghosts: Vec<VersionId>,
}

impl<'a> Txn<'a> {
    pub(super) fn new(core: &'a mut Core) -> Txn<'a> {
        let state = core.state.clone();
        Txn { core, state, objects: BTreeMap::new(), buckets: BTreeMap::new(), ghosts: Vec::new() }
    }

    fn object(&mut self, id: VersionId) -> Step<Object> {
        if let Some(object) = self.objects.get(&id.0) {
            return object.clone().ok_or_else(|| Stop::bug("an operation refers to an object it removed"));
        }
        match self.core.object(id)? {
            Some(Object::Version(_)) => Ok(Object::Version(self.core.version(id)?)),
            Some(object) => Ok(object),
            None => Err(Stop::bug("an operation refers to an object that is not there")),
        }
    }

    pub(super) fn version(&mut self, id: VersionId) -> Step<Version> {
        match self.object(id)? {
            Object::Version(v) => Ok(v),
            Object::Volume(_) => Err(Stop::bug("expected a version, found a volume")),
        }
    }

    pub(super) fn volume(&mut self, id: VersionId) -> Step<Volume> {
        match self.object(id)? {
            Object::Volume(v) => Ok(v),
            Object::Version(_) => Err(Stop::bug("expected a volume, found a version")),
        }
    }

    pub(super) fn put_version(&mut self, version: Version) {
        self.objects.insert(version.id.0, Some(Object::Version(version)));
    }

    pub(super) fn put_volume(&mut self, volume: Volume) {
        self.objects.insert(volume.id.0, Some(Object::Volume(volume)));
    }

    pub(super) fn remove(&mut self, id: VersionId) {
        self.objects.insert(id.0, None);
    }

    pub(super) fn change_version(&mut self, id: VersionId, change: impl FnOnce(&mut Version)) -> Step<()> {
        let mut version = self.version(id)?;
        change(&mut version);
        self.put_version(version);
        Ok(())
    }

    pub(super) fn change_volume(&mut self, id: VersionId, change: impl FnOnce(&mut Volume)) -> Step<()> {
        let mut volume = self.volume(id)?;
        change(&mut volume);
        self.put_volume(volume);
        Ok(())
    }

    // ---- names ----

    fn first_of(&mut self, bucket: u64) -> Step<VersionId> {
        match self.buckets.get(&bucket) {
            Some(&first) => Ok(first),
            None => self.core.bucket_head(bucket),
        }
    }

    /// Enters an object, already put, under its name.
    pub(super) fn add_name(&mut self, id: VersionId) -> Step<()> {
        let mut object = self.object(id)?;
        let Some((owner, name)) = object.key() else { return Ok(()) };
        let bucket = bucket(owner, name);
        let first = self.first_of(bucket)?;
        object.set_name_next(first);
        self.objects.insert(id.0, Some(object));
        self.buckets.insert(bucket, id);
        Ok(())
    }

    /// Takes an object out of the name index; call it before the object's name, owner or state changes.
    pub(super) fn remove_name(&mut self, id: VersionId) -> Step<()> {
        let object = self.object(id)?;
        let Some((owner, name)) = object.key() else { return Ok(()) };
        let bucket = bucket(owner, name);
        let first = self.first_of(bucket)?;
        if first == id {
            self.buckets.insert(bucket, object.name_next());
            return Ok(());
        }
        let mut at = first;
        while let Some(here) = at.some() {
            let mut previous = self.object(here)?;
            if previous.name_next() == id {
                previous.set_name_next(object.name_next());
                self.objects.insert(here.0, Some(previous));
                return Ok(());
            }
            at = previous.name_next();
        }
        Err(Stop::bug("an object is missing from its bucket"))
    }

    /// Changes an object's name; it must not be in the index under the old one.
    pub(super) fn set_name(&mut self, id: VersionId, name: &str) -> Step<()> {
        match self.object(id)? {
            Object::Volume(_) => self.change_volume(id, |v| v.name = name.to_owned()),
            Object::Version(_) => self.change_version(id, |v| v.name = name.to_owned()),
        }
    }

    // ---- lists ----

    /// Appends a volume, already put, to the pool's list.
    pub(super) fn append_volume(&mut self, id: VersionId) -> Step<()> {
        let last = std::mem::replace(&mut self.state.last_volume, id);
        match last.some() {
            Some(last) => self.change_volume(last, |v| v.next = id)?,
            None => self.state.first_volume = id,
        }
        self.state.volumes += 1;
        self.change_volume(id, |v| {
            v.prev = last;
            v.next = VersionId::NONE;
        })
    }

    pub(super) fn unlink_volume(&mut self, id: VersionId) -> Step<()> {
        let volume = self.volume(id)?;
        match volume.prev.some() {
            Some(prev) => self.change_volume(prev, |v| v.next = volume.next)?,
            None => self.state.first_volume = volume.next,
        }
        match volume.next.some() {
            Some(next) => self.change_volume(next, |v| v.prev = volume.prev)?,
            None => self.state.last_volume = volume.prev,
        }
        self.state.volumes -= 1;
        Ok(())
    }

    /// Appends a snapshot, already put, to its volume's list and enters its name.
    pub(super) fn append_snapshot(&mut self, volume: VersionId, id: VersionId) -> Step<()> {
        let mut owner = self.volume(volume)?;
        let last = std::mem::replace(&mut owner.last_snapshot, id);
        match last.some() {
            Some(last) => self.change_version(last, |v| v.next = id)?,
            None => owner.first_snapshot = id,
        }
        owner.snapshots += 1;
        self.put_volume(owner);
        self.state.snapshots += 1;
        self.change_version(id, |v| {
            v.prev = last;
            v.next = VersionId::NONE;
        })?;
        self.add_name(id)
    }

    /// Makes a version a ghost: no name, no volume, on the list of things to reclaim.
    pub(super) fn bury(&mut self, id: VersionId) -> Step<()> {
        let mut version = self.version(id)?;
        if version.state == State::Snapshot {
            self.remove_name(id)?;
            // Earlier calls may have changed this version's links.
            version = self.version(id)?;
            let mut owner = self.volume(version.volume)?;
            match version.prev.some() {
                Some(prev) => self.change_version(prev, |v| v.next = version.next)?,
                None => owner.first_snapshot = version.next,
            }
            match version.next.some() {
                Some(next) => self.change_version(next, |v| v.prev = version.prev)?,
                None => owner.last_snapshot = version.prev,
            }
            owner.snapshots -= 1;
            self.put_volume(owner);
            self.state.snapshots -= 1;
        } else {
            version.epoch = self.state.epoch;
        }
        let first = std::mem::replace(&mut self.state.first_ghost, id);
        if let Some(first) = first.some() {
            self.change_version(first, |v| v.prev = id)?;
        }
        version.state = State::Ghost { trimmed: false };
        version.name.clear();
        version.name_next = VersionId::NONE;
        version.volume = VersionId::NONE;
        version.cursor = 0;
        version.prev = VersionId::NONE;
        version.next = first;
        self.state.ghosts += 1;
        self.put_version(version);
        self.ghost_event(id);
        Ok(())
    }

    /// The background worker shall look at this ghost.
    pub(super) fn ghost_event(&mut self, id: VersionId) {
        self.ghosts.push(id);
    }

    pub(super) fn unlink_ghost(&mut self, id: VersionId) -> Step<()> {
        let ghost = self.version(id)?;
        match ghost.prev.some() {
            Some(prev) => self.change_version(prev, |v| v.next = ghost.next)?,
            None => self.state.first_ghost = ghost.next,
        }
        if let Some(next) = ghost.next.some() {
            self.change_version(next, |v| v.prev = ghost.prev)?;
        }
        self.state.ghosts -= 1;
        Ok(())
    }

    // ---- the family tree ----

    /// Hangs a version, already put, under a parent.
    pub(super) fn add_child(&mut self, parent: VersionId, id: VersionId) -> Step<()> {
        let mut p = self.version(parent)?;
        let first = std::mem::replace(&mut p.first_child, id);
        p.children += 1;
        self.put_version(p);
        if let Some(first) = first.some() {
            self.change_version(first, |v| v.prev_sibling = id)?;
        }
        self.change_version(id, |v| {
            v.parent = parent;
            v.prev_sibling = VersionId::NONE;
            v.next_sibling = first;
        })
    }

    /// Puts `new` where `old` hangs; `old` hangs nowhere afterwards.
    pub(super) fn replace_child(&mut self, old: VersionId, new: VersionId) -> Step<()> {
        let o = self.version(old)?;
        if let Some(prev) = o.prev_sibling.some() {
            self.change_version(prev, |v| v.next_sibling = new)?;
        } else if let Some(parent) = o.parent.some() {
            self.change_version(parent, |v| v.first_child = new)?;
        }
        if let Some(next) = o.next_sibling.some() {
            self.change_version(next, |v| v.prev_sibling = new)?;
        }
        self.change_version(new, |v| {
            v.parent = o.parent;
            v.prev_sibling = o.prev_sibling;
            v.next_sibling = o.next_sibling;
        })
    }

    /// Takes a leaf of the tree off its parent.
    pub(super) fn remove_child(&mut self, id: VersionId) -> Step<()> {
        let v = self.version(id)?;
        if let Some(prev) = v.prev_sibling.some() {
            self.change_version(prev, |x| x.next_sibling = v.next_sibling)?;
        } else if let Some(parent) = v.parent.some() {
            self.change_version(parent, |x| x.first_child = v.next_sibling)?;
        }
        if let Some(next) = v.next_sibling.some() {
            self.change_version(next, |x| x.prev_sibling = v.prev_sibling)?;
        }
        if let Some(parent) = v.parent.some() {
            self.change_version(parent, |x| x.children -= 1)?;
        }
        Ok(())
    }

    /// What a head with this parent may call its own: the parent's epoch, and how far a merge of the parent has come.
    pub(super) fn past_of(&mut self, version: &Version) -> Step<Past> {
        let Some(parent) = version.parent.some() else { return Ok(Past::default()) };
        let parent = self.version(parent)?;
        let mut past = Past { parent_epoch: parent.epoch, merge: None };
        if self.state.merging == parent.id && self.core.planted != PlantedBug::SkipMergeCursor {
            let below = match parent.parent.some() {
                Some(grandparent) => self.version(grandparent)?.epoch,
                None => Epoch(0),
            };
            past.merge = Some((parent.cursor, below));
        }
        Ok(past)
    }

    /// Writes everything, or stops with nothing written.
    pub(super) fn commit(mut self) -> Step<()> {
        let heads: Vec<VersionId> =
            self.objects.keys().map(|id| VersionId(*id)).filter(|id| self.core.is_loaded_head(*id)).collect();
        let mut refreshed = Vec::new();
        for id in heads {
            let version = match self.objects.get(&id.0) {
                Some(Some(Object::Version(v))) if v.state == State::Head => Some(v.clone()),
                _ => None,
            };
            let past = version.as_ref().map(|v| self.past_of(v)).transpose()?;
            refreshed.push((id, version.zip(past)));
        }
        let Txn { core, state, objects, buckets, ghosts } = self;
        let bucket_keys: Vec<u64> = buckets.keys().copied().collect();
        core.resolve_for_put(objects.keys().map(|id| VersionId(*id)), &bucket_keys)?;
        // Nothing below stops: everything is in memory and all metadata sectors are prepared.
        core.state = state;
        let objects: Vec<_> = objects.into_iter().map(|(id, object)| (VersionId(id), object)).collect();
        core.put_objects(&objects)?;
        let buckets: Vec<_> = buckets.into_iter().collect();
        core.put_buckets(&buckets)?;
        core.ghost_events.extend(ghosts);
        for (id, head) in refreshed {
            core.refresh_head(id, head);
        }
        Ok(())
    }
}

/// What lies behind a head.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Past {
    pub(super) parent_epoch: Epoch,
    pub(super) merge: Option<(u64, Epoch)>,
}
