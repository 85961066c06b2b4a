//! What each record does to the state. Running and recovering both come through here.

use super::Core;
use super::stop::Step;
use super::txn::Txn;
use crate::disk::entry::{Entry, levels_for};
use crate::disk::object::{State, Version, Volume};
use crate::disk::record::{NewClone, NewSnapshot, Record};
use crate::units::{Epoch, VersionId};

impl Core {
    /// Applies the record numbered `sequence`, or stops with nothing changed.
    pub(crate) fn apply(&mut self, record: &Record, sequence: u64) -> Step<()> {
        match record {
            Record::Write { head, family: _, lba, at, crcs } => self.apply_write(*head, *lba, *at, crcs, sequence),
            Record::Punch { head, from, to, kind } => self.apply_punch(*head, *from, *to, *kind, sequence),
            Record::CreateVolume { volume, head, blocks, time, name } => {
                let mut txn = Txn::new(self);
                txn.create_volume(*volume, *head, *blocks, *time, name)?;
                txn.commit()
            }
            Record::Resize { head, blocks } => {
                let mut txn = Txn::new(self);
                txn.change_version(*head, |v| v.blocks = *blocks)?;
                txn.commit()
            }
            Record::Rename { object, name } => {
                let mut txn = Txn::new(self);
                txn.rename(*object, name)?;
                txn.commit()
            }
            Record::Branch { time, snapshots, clones } => {
                let mut txn = Txn::new(self);
                for snapshot in snapshots {
                    txn.snapshot(snapshot, *time)?;
                }
                for clone in clones {
                    txn.clone_of(clone, *time)?;
                }
                txn.state.epoch.0 += 1;
                txn.commit()
            }
            Record::Revert { volume, target, head, time, keep } => {
                let mut txn = Txn::new(self);
                txn.revert(*volume, *target, *head, *time, keep)?;
                txn.state.epoch.0 += 1;
                txn.commit()
            }
            Record::DeleteSnapshot { version } => {
                let mut txn = Txn::new(self);
                txn.bury(*version)?;
                txn.commit()
            }
            Record::DeleteVolume { volume } => {
                let mut txn = Txn::new(self);
                txn.doom(*volume)?;
                txn.commit()
            }
            Record::ForgetVolume { volume } => {
                let mut txn = Txn::new(self);
                txn.forget(*volume)?;
                txn.state.epoch.0 += 1;
                txn.commit()
            }
            Record::Merge { ghost, to } => self.apply_merge(*ghost, *to, sequence),
            Record::Splice { ghost } => self.apply_splice(*ghost),
            Record::Trim { ghost, base, mask } => self.apply_trim(*ghost, *base, *mask, sequence),
            Record::Trimmed { ghost } => self.apply_trimmed(*ghost),
            Record::Grow { blocks } => {
                self.space.grow(*blocks)?;
                self.state.blocks = self.state.blocks.max(*blocks);
                Ok(())
            }
        }
    }
}

/// A version that hangs nowhere and holds nothing yet.
fn blank(id: VersionId, volume: VersionId, family: u32, time: u64) -> Version {
    Version {
        id,
        state: State::Head,
        family,
        volume,
        parent: VersionId::NONE,
        first_child: VersionId::NONE,
        prev_sibling: VersionId::NONE,
        next_sibling: VersionId::NONE,
        children: 0,
        epoch: Epoch(0),
        root: Entry::EMPTY,
        root_level: 1,
        blocks: 0,
        mapped: 0,
        owned: 0,
        cursor: 0,
        name: String::new(),
        name_next: VersionId::NONE,
        prev: VersionId::NONE,
        next: VersionId::NONE,
        created: time,
    }
}

impl Txn<'_> {
    fn claim(&mut self, id: VersionId) {
        self.state.next_object = self.state.next_object.max(id.0 + 1);
    }

    fn new_volume(&mut self, id: VersionId, head: VersionId, name: &str, time: u64) -> Step<()> {
        self.claim(id);
        self.claim(head);
        self.put_volume(Volume {
            id,
            name: name.to_owned(),
            name_next: VersionId::NONE,
            head,
            first_snapshot: VersionId::NONE,
            last_snapshot: VersionId::NONE,
            snapshots: 0,
            doomed: false,
            prev: VersionId::NONE,
            next: VersionId::NONE,
            created: time,
        });
        self.append_volume(id)?;
        self.add_name(id)
    }

    fn create_volume(&mut self, id: VersionId, head: VersionId, blocks: u64, time: u64, name: &str) -> Step<()> {
        let version = Version { blocks, root_level: levels_for(blocks), ..blank(head, id, id.0, time) };
        self.put_version(version);
        self.new_volume(id, head, name, time)
    }

    fn rename(&mut self, id: VersionId, name: &str) -> Step<()> {
        self.remove_name(id)?;
        self.set_name(id, name)?;
        self.add_name(id)
    }

    /// Inserts a snapshot between a volume's head and the head's parent.
    fn snapshot(&mut self, new: &NewSnapshot, time: u64) -> Step<()> {
        self.claim(new.id);
        let head_id = self.volume(new.volume)?.head;
        let head = self.version(head_id)?;
        let snapshot = Version {
            id: new.id,
            state: State::Snapshot,
            epoch: self.state.epoch,
            name: new.name.clone(),
            first_child: head_id,
            children: 1,
            created: time,
            ..head
        };
        self.put_version(snapshot);
        self.replace_child(head_id, new.id)?;
        self.change_version(head_id, |h| {
            h.parent = new.id;
            h.prev_sibling = VersionId::NONE;
            h.next_sibling = VersionId::NONE;
            h.owned = 0;
        })?;
        self.append_snapshot(new.volume, new.id)
    }

    /// Hangs a new volume's head under a snapshot.
    fn clone_of(&mut self, new: &NewClone, time: u64) -> Step<()> {
        self.add_head(new.source, new.head, new.volume, time)?;
        self.new_volume(new.volume, new.head, &new.name, time)
    }

    fn add_head(&mut self, source: VersionId, head: VersionId, volume: VersionId, time: u64) -> Step<()> {
        self.claim(head);
        let from = self.version(source)?;
        let version = Version {
            root: from.root,
            root_level: from.root_level,
            blocks: from.blocks,
            mapped: from.mapped,
            ..blank(head, volume, from.family, time)
        };
        self.put_version(version);
        self.add_child(source, head)
    }

    fn revert(&mut self, volume: VersionId, target: VersionId, head: VersionId, time: u64, keep: &str) -> Step<()> {
        let old = self.volume(volume)?.head;
        if keep.is_empty() {
            self.bury(old)?;
        } else {
            let epoch = self.state.epoch;
            self.change_version(old, |v| {
                v.state = State::Snapshot;
                v.epoch = epoch;
                v.name = keep.to_owned();
                v.created = time;
            })?;
            self.append_snapshot(volume, old)?;
        }
        self.add_head(target, head, volume, time)?;
        self.change_volume(volume, |v| v.head = head)
    }

    /// Takes a volume off the list and out of the name index; the background worker deletes what it held.
    fn doom(&mut self, id: VersionId) -> Step<()> {
        self.remove_name(id)?;
        self.unlink_volume(id)?;
        let first = std::mem::replace(&mut self.state.first_doomed, id);
        if let Some(first) = first.some() {
            self.change_volume(first, |v| v.prev = id)?;
        }
        self.change_volume(id, |v| {
            v.doomed = true;
            v.prev = VersionId::NONE;
            v.next = first;
        })
    }

    /// Removes a doomed volume that has no snapshots left; its head becomes a ghost.
    fn forget(&mut self, id: VersionId) -> Step<()> {
        let volume = self.volume(id)?;
        self.bury(volume.head)?;
        match volume.prev.some() {
            Some(prev) => self.change_volume(prev, |v| v.next = volume.next)?,
            None => self.state.first_doomed = volume.next,
        }
        if let Some(next) = volume.next.some() {
            self.change_volume(next, |v| v.prev = volume.prev)?;
        }
        self.remove(id);
        Ok(())
    }
}
