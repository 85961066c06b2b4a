//! Control operations: what a caller asks, checked, and turned into one record. A refusal names the object and the way out.

use super::Core;
use super::stop::{Step, Stop};
use crate::disk::object::{MAX_NAME, Object, State, Version, Volume};
use crate::disk::record::{NewClone, NewSnapshot, Record};
use crate::error::{Error, ErrorKind};
use crate::units::{BLOCK, Bytes, MAX_VOLUME, VersionId};

/// Metadata pages that a snapshot may have to keep in memory at once for each volume.
const PAGES_PER_TARGET: usize = 16;
/// Most objects the table can hold.
const MAX_OBJECTS: u32 = 1 << 30;

/// Names are shown in paths, URLs and tables.
pub(crate) fn check_name(what: &str, name: &str) -> Result<(), Error> {
    let refuse = |why: &str| {
        let shown: String = name.chars().take(40).collect();
        let dots = if name.chars().count() > 40 { "…" } else { "" };
        Err(Error::new(ErrorKind::Invalid, format!("{what} name {shown:?}{dots}: {why}")))
    };
    if name.is_empty() {
        return refuse("must not be empty");
    }
    if name.len() > MAX_NAME {
        return refuse(&format!("is {} bytes long, the limit is {MAX_NAME}", name.len()));
    }
    if let Some(bad) = name.chars().find(|c| matches!(c, '/' | '@' | ',') || c.is_control() || c.is_whitespace()) {
        return refuse(&format!("must not contain {bad:?}"));
    }
    if name == "." || name == ".." || name.starts_with('-') {
        return refuse("must not be \".\" or \"..\" or start with \"-\"");
    }
    Ok(())
}

fn check_size(name: &str, size: Bytes) -> Result<u64, Error> {
    let refuse = |why: String| Err(Error::new(ErrorKind::Invalid, format!("size of volume {name}: {why}")));
    if size.0 == 0 {
        return refuse("must not be 0".into());
    }
    if !size.0.is_multiple_of(BLOCK) {
        return refuse(format!("{} bytes is not a multiple of {BLOCK}", size.0));
    }
    if size > MAX_VOLUME {
        return refuse(format!("{size} is above the limit of {MAX_VOLUME}"));
    }
    Ok(size.blocks())
}

fn no_such(what: &str, name: &str) -> Stop {
    Stop::Fail(Error::new(ErrorKind::NotFound, format!("no {what} named {name}")))
}

impl Core {
    /// A volume by name.
    pub(crate) fn volume_named(&mut self, name: &str) -> Step<Volume> {
        match self.find(VersionId::NONE, name)? {
            Some(Object::Volume(volume)) => Ok(volume),
            _ => Err(no_such("volume", name)),
        }
    }

    /// A snapshot by name.
    pub(crate) fn snapshot_named(&mut self, volume: &Volume, name: &str) -> Step<Version> {
        match self.find(volume.id, name)? {
            Some(Object::Version(version)) => Ok(version),
            _ => Err(no_such("snapshot", &format!("{}@{name}", volume.name))),
        }
    }

    /// The version that `volume` or `volume@snapshot` names.
    pub(crate) fn resolve(&mut self, target: &str) -> Step<Version> {
        match target.split_once('@') {
            Some((volume, snapshot)) => {
                let volume = self.volume_named(volume)?;
                self.snapshot_named(&volume, snapshot)
            }
            None => {
                let volume = self.volume_named(target)?;
                self.version(volume.head)
            }
        }
    }

    fn check_free_name(&mut self, owner: VersionId, name: &str, full: &str) -> Step<()> {
        match self.find(owner, name)? {
            None => Ok(()),
            Some(_) => {
                let what = if owner == VersionId::NONE { "volume" } else { "snapshot" };
                Err(Error::new(
                    ErrorKind::Exists,
                    format!("{what} {full} exists already; choose another name or delete it first"),
                )
                .into())
            }
        }
    }

    fn next_ids(&self, count: u32) -> Result<u32, Error> {
        let first = self.state.next_object;
        if first.checked_add(count).is_none_or(|end| end >= MAX_OBJECTS) || self.state.epoch.0 > u32::MAX - 8 {
            return Err(Error::new(
                ErrorKind::NoSpace,
                "the pool has used up its version numbers; copy its volumes to a new pool",
            ));
        }
        Ok(first)
    }

    /// The first rungs of the ladder: a nearly full pool takes no new versions.
    fn check_headroom(&self, act: &str) -> Result<(), Error> {
        let free = self.free_for_writes();
        if free < self.slop().max(16) / 2 {
            let left = Bytes(free * BLOCK);
            return Err(Error::new(
                ErrorKind::NoSpace,
                format!("cannot {act}: the pool is nearly full ({left} left); delete snapshots or grow the pool"),
            ));
        }
        Ok(())
    }

    pub(crate) fn create_volume(&mut self, name: &str, size: Bytes, time: u64) -> Step<()> {
        check_name("volume", name)?;
        let blocks = check_size(name, size)?;
        self.check_free_name(VersionId::NONE, name, name)?;
        self.check_headroom("create a volume")?;
        let id = self.next_ids(2)?;
        let record = Record::CreateVolume {
            volume: VersionId(id),
            head: VersionId(id + 1),
            blocks,
            time,
            name: name.to_owned(),
        };
        self.execute_record(&record).map(|_| ())
    }

    /// Snapshots of several volumes at one instant; returns the record's number.
    pub(crate) fn snapshot(&mut self, targets: &[(String, String)], time: u64) -> Step<u64> {
        let mut snapshots = Vec::new();
        let first = self.next_ids(targets.len() as u32)?;
        self.check_headroom("take a snapshot")?;
        if targets.len() * PAGES_PER_TARGET > self.cache.limit() {
            let why = format!(
                "one snapshot of {} volumes does not fit the cache; give it more memory or take several",
                targets.len()
            );
            return Err(Error::new(ErrorKind::Invalid, why).into());
        }
        for (i, (volume_name, name)) in targets.iter().enumerate() {
            check_name("snapshot", name)?;
            let volume = self.volume_named(volume_name)?;
            self.check_free_name(volume.id, name, &format!("{volume_name}@{name}"))?;
            if targets[..i].iter().any(|(other, _)| other == volume_name) {
                return Err(Error::new(
                    ErrorKind::Invalid,
                    format!("volume {volume_name} is named twice in one snapshot"),
                )
                .into());
            }
            snapshots.push(NewSnapshot { volume: volume.id, id: VersionId(first + i as u32), name: name.clone() });
        }
        if snapshots.is_empty() {
            return Err(Error::new(ErrorKind::Invalid, "a snapshot needs at least one volume").into());
        }
        self.execute_record(&Record::Branch { time, snapshots, clones: Vec::new() })
    }

    /// A new volume from `volume@snapshot`, or from a live volume by way of a snapshot named `via`.
    pub(crate) fn clone_volume(&mut self, source: &str, name: &str, via: &str, time: u64) -> Step<u64> {
        check_name("volume", name)?;
        self.check_free_name(VersionId::NONE, name, name)?;
        self.check_headroom("clone")?;
        let id = self.next_ids(3)?;
        let mut snapshots = Vec::new();
        let from = match source.split_once('@') {
            Some(_) => self.resolve(source)?.id,
            None => {
                let volume = self.volume_named(source)?;
                check_name("snapshot", via)?;
                self.check_free_name(volume.id, via, &format!("{source}@{via}"))?;
                snapshots.push(NewSnapshot { volume: volume.id, id: VersionId(id + 2), name: via.to_owned() });
                VersionId(id + 2)
            }
        };
        let clone = NewClone { source: from, volume: VersionId(id), head: VersionId(id + 1), name: name.to_owned() };
        self.execute_record(&Record::Branch { time, snapshots, clones: vec![clone] })
    }

    fn refuse_if_attached(&self, id: VersionId, what: &str, act: &str) -> Result<(), Error> {
        match self.attachments(id) {
            0 => Ok(()),
            n => {
                let users = if n == 1 { "1 client".to_owned() } else { format!("{n} clients") };
                Err(Error::new(
                    ErrorKind::InUse,
                    format!("cannot {act} {what}: it is in use by {users}; disconnect first"),
                ))
            }
        }
    }

    /// The volume continues from one of its snapshots; what it held becomes the snapshot `keep`, or goes.
    pub(crate) fn revert(&mut self, volume_name: &str, snapshot: &str, keep: Option<&str>, time: u64) -> Step<u64> {
        let volume = self.volume_named(volume_name)?;
        let target = self.snapshot_named(&volume, snapshot)?;
        self.refuse_if_attached(volume.head, volume_name, "revert")?;
        if let Some(keep) = keep {
            check_name("snapshot", keep)?;
            self.check_free_name(volume.id, keep, &format!("{volume_name}@{keep}"))?;
        }
        let head = VersionId(self.next_ids(1)?);
        let keep = keep.unwrap_or("").to_owned();
        self.execute_record(&Record::Revert { volume: volume.id, target: target.id, head, time, keep })
    }

    pub(crate) fn rename(&mut self, target: &str, name: &str) -> Step<()> {
        let (object, owner, full) = match target.split_once('@') {
            Some((volume_name, snapshot)) => {
                check_name("snapshot", name)?;
                let volume = self.volume_named(volume_name)?;
                (self.snapshot_named(&volume, snapshot)?.id, volume.id, format!("{volume_name}@{name}"))
            }
            None => {
                check_name("volume", name)?;
                (self.volume_named(target)?.id, VersionId::NONE, name.to_owned())
            }
        };
        self.check_free_name(owner, name, &full)?;
        self.execute_record(&Record::Rename { object, name: name.to_owned() }).map(|_| ())
    }

    pub(crate) fn delete_snapshot(&mut self, target: &str) -> Step<()> {
        let version = self.resolve(target)?;
        if version.state != State::Snapshot {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("{target} is not a snapshot; name it as VOLUME@SNAPSHOT"),
            )
            .into());
        }
        self.refuse_if_attached(version.id, target, "delete")?;
        self.execute_record(&Record::DeleteSnapshot { version: version.id }).map(|_| ())
    }

    /// Deletes a volume; with snapshots only if the caller agreed to lose them.
    pub(crate) fn delete_volume(&mut self, name: &str, with_snapshots: bool) -> Step<()> {
        let volume = self.volume_named(name)?;
        if volume.snapshots > 0 && !with_snapshots {
            let n = volume.snapshots;
            let what = if n == 1 { "1 snapshot".to_owned() } else { format!("{n} snapshots") };
            return Err(Error::new(
                ErrorKind::HasDependants,
                format!("volume {name} has {what}; delete them first or delete the volume with its snapshots"),
            )
            .into());
        }
        self.refuse_if_attached(volume.head, name, "delete")?;
        let mut next = volume.first_snapshot;
        while self.has_attachments() && next != VersionId::NONE {
            let snapshot = self.version(next)?;
            self.refuse_if_attached(next, &format!("{name}@{}", snapshot.name), "delete")?;
            next = snapshot.next;
        }
        self.execute_record(&Record::DeleteVolume { volume: volume.id }).map(|_| ())
    }

    /// Checks a new size; the caller empties what lies beyond it before [`Core::resize_volume`].
    pub(crate) fn check_resize(&mut self, name: &str, size: Bytes) -> Step<Version> {
        check_size(name, size)?;
        let volume = self.volume_named(name)?;
        let head = self.version(volume.head)?;
        if size.blocks() < head.blocks {
            self.refuse_if_attached(head.id, name, "shrink")?;
        }
        Ok(head)
    }

    pub(crate) fn resize_volume(&mut self, name: &str, size: Bytes) -> Step<()> {
        let head = self.check_resize(name, size)?;
        self.execute_record(&Record::Resize { head: head.id, blocks: size.blocks() }).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        let check = |name: &str, good: bool| assert_eq!(check_name("volume", name).is_ok(), good, "{name:?}");
        check("vm1-root", true);
        check("Ünïcode.2", true);
        check("", false);
        check("a/b", false);
        check("a@b", false);
        check("a b", false);
        check("..", false);
        check("-x", false);
        check(&"x".repeat(200), true);
        check(&"x".repeat(10_000), false);
    }

    #[test]
    fn sizes_are_checked() {
        let check = |size: u64, good: bool| assert_eq!(check_size("v", Bytes(size)).is_ok(), good, "{size}");
        check(0, false);
        check(4095, false);
        check(4096, true);
        check(MAX_VOLUME.0, true);
        check(MAX_VOLUME.0 + 4096, false);
    }
}
