//! A folder for each volume, in it a sparse file for the current state and one for each snapshot. Whatever is renamed into
//! place is whole, so that a killed agent leaves what was there before or after a call.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use keyframe_agent_api::{Bytes, CreateVolume, FaultKind, SnapshotId};
use parking_lot::{Mutex, RwLock};

use super::sparse::{self, BLOCK};
use crate::Result;
use crate::fault::{fault, of_io};

const HEAD: &str = "head.img";
const WISH: &str = "wish.json";

/// The volumes of one fake array.
#[derive(Debug)]
pub(super) struct Store {
    dir: PathBuf,
    name: String,
    /// Shared by writes of guests, alone for a snapshot: that makes it one instant.
    pub(super) instant: RwLock<()>,
    attached: Mutex<HashMap<String, u32>>,
}

/// Says what was done to which volume when a file fails.
fn to<T>(act: &str, what: &str, result: io::Result<T>) -> Result<T> {
    result.map_err(|error| of_io(format_args!("{act} {what}"), &error))
}

impl Store {
    pub(super) fn open(name: &str, dir: &Path) -> Result<Store> {
        to("make array", name, fs::create_dir_all(dir))?;
        for entry in to("open array", name, fs::read_dir(dir))? {
            let path = to("open array", name, entry)?.path();
            if path.file_name().is_some_and(|file| file.as_encoded_bytes().starts_with(b".")) {
                to("clean array", name, fs::remove_dir_all(path))?;
            }
        }
        Ok(Store { dir: dir.to_owned(), name: name.to_owned(), instant: RwLock::new(()), attached: Mutex::default() })
    }

    pub(super) fn head(&self, volume: &str) -> PathBuf {
        self.dir.join(volume).join(HEAD)
    }

    pub(super) fn image(&self, volume: &str, snapshot: SnapshotId) -> PathBuf {
        self.dir.join(volume).join(format!("{snapshot}.img"))
    }

    /// The file of a version, if it is there.
    pub(super) fn version(&self, volume: &str, snapshot: Option<SnapshotId>) -> Result<PathBuf> {
        let (path, what) = match snapshot {
            None => (self.head(volume), format!("{}/{volume}", self.name)),
            Some(id) => (self.image(volume, id), format!("{}/{volume}@{id}", self.name)),
        };
        if path.exists() { Ok(path) } else { Err(fault(FaultKind::NotFound, format!("there is no {what}"))) }
    }

    pub(super) fn volumes(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in to("list array", &self.name, fs::read_dir(&self.dir))? {
            let name = to("list array", &self.name, entry)?.file_name();
            names.extend(name.to_str().filter(|name| !name.starts_with('.')).map(str::to_owned));
        }
        names.sort();
        Ok(names)
    }

    pub(super) fn snapshots(&self, volume: &str) -> Result<Vec<SnapshotId>> {
        self.version(volume, None)?;
        let mut ids = Vec::new();
        for entry in to("list snapshots of", volume, fs::read_dir(self.dir.join(volume)))? {
            let name = to("list snapshots of", volume, entry)?.file_name();
            ids.extend(
                name.to_str().and_then(|name| name.strip_suffix(".img")).and_then(|id| id.parse::<SnapshotId>().ok()),
            );
        }
        Ok(ids)
    }

    pub(super) fn size(&self, volume: &str) -> Result<Bytes> {
        let path = self.version(volume, None)?;
        to("look at", volume, fs::metadata(path)).map(|found| Bytes(found.len()))
    }

    pub(super) fn wish(&self, volume: &str) -> Result<CreateVolume> {
        let text = to("read", volume, fs::read(self.dir.join(volume).join(WISH)))?;
        to("read", volume, serde_json::from_slice(&text).map_err(io::Error::from))
    }

    /// A volume made from a file, or empty.
    pub(super) fn create(&self, volume: &str, wish: &CreateVolume, from: Option<&Path>, size: Bytes) -> Result<()> {
        let new = self.dir.join(format!(".new-{volume}"));
        let make = || {
            fs::create_dir_all(&new)?;
            match from {
                Some(from) => sparse::copy(from, &new.join(HEAD))?,
                None => drop(fs::File::create(new.join(HEAD))?),
            }
            fs::OpenOptions::new().write(true).open(new.join(HEAD))?.set_len(size.0)?;
            fs::write(new.join(WISH), serde_json::to_vec(wish)?)?;
            fs::rename(&new, self.dir.join(volume))
        };
        to("make", volume, make())
    }

    pub(super) fn resize(&self, volume: &str, size: Bytes) -> Result<()> {
        let open = fs::OpenOptions::new().write(true).open(self.head(volume));
        to("resize", volume, open.and_then(|file| file.set_len(size.0)))
    }

    pub(super) fn delete(&self, volume: &str) -> Result<()> {
        let gone = self.dir.join(format!(".gone-{volume}"));
        match fs::rename(self.dir.join(volume), &gone) {
            Ok(()) => to("delete", volume, fs::remove_dir_all(gone)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => to("delete", volume, Err(error)),
        }
    }

    /// Under [`instant`](Store::instant).
    pub(super) fn snapshot(&self, volume: &str, snapshot: SnapshotId) -> Result<()> {
        let beside = self.dir.join(volume).join(format!("{snapshot}.part"));
        let copied = sparse::copy(&self.version(volume, None)?, &beside);
        to("snapshot", volume, copied.and_then(|()| fs::rename(beside, self.image(volume, snapshot))))
    }

    pub(super) fn delete_snapshot(&self, volume: &str, snapshot: SnapshotId) -> Result<()> {
        match fs::remove_file(self.image(volume, snapshot)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => to("delete snapshot of", volume, Err(error)),
            _ => Ok(()),
        }
    }

    pub(super) fn revert(&self, volume: &str, snapshot: SnapshotId) -> Result<()> {
        let from = self.version(volume, Some(snapshot))?;
        let beside = self.dir.join(volume).join("head.part");
        to("revert", volume, sparse::copy(&from, &beside).and_then(|()| fs::rename(beside, self.head(volume))))
    }

    pub(super) fn attach(&self, volume: &str, by: i64) {
        let mut attached = self.attached.lock();
        let users = attached.entry(volume.to_owned()).or_default();
        *users = users.saturating_add_signed(by as i32);
    }

    pub(super) fn refuse_attached(&self, volume: &str, act: &str) -> Result<()> {
        match self.attached.lock().get(volume) {
            Some(users) if *users > 0 => {
                let why = format!("cannot {act} {}/{volume}: it is in use by {users} clients", self.name);
                Err(fault(FaultKind::Busy, why))
            }
            _ => Ok(()),
        }
    }

    /// Every version: a volume, and a snapshot of it or its current state.
    pub(super) fn versions(&self) -> Result<Vec<(String, Option<SnapshotId>)>> {
        let mut all = Vec::new();
        for volume in self.volumes()? {
            all.extend(self.snapshots(&volume)?.into_iter().map(|id| (volume.clone(), Some(id))));
            all.push((volume, None));
        }
        Ok(all)
    }

    /// Bytes of blocks that these have and no other version has at the same place.
    pub(super) fn only_in(&self, these: &HashSet<(String, Option<SnapshotId>)>) -> Result<Bytes> {
        let mut mine = HashSet::new();
        let mut others = HashSet::new();
        for (volume, snapshot) in self.versions()? {
            let path = self.version(&volume, snapshot)?;
            let into = if these.contains(&(volume.clone(), snapshot)) { &mut mine } else { &mut others };
            let read = sparse::each_block(&path, |offset, block| {
                into.insert((offset, block.to_vec()));
            });
            to("read", &volume, read)?;
        }
        Ok(Bytes(mine.difference(&others).count() as u64 * BLOCK))
    }

    /// The blocks of a version by offset.
    pub(super) fn blocks(&self, volume: &str, snapshot: Option<SnapshotId>) -> Result<BTreeMap<u64, Vec<u8>>> {
        let mut blocks = BTreeMap::new();
        let read = sparse::each_block(&self.version(volume, snapshot)?, |offset, block| {
            blocks.insert(offset, block.to_vec());
        });
        to("read", volume, read)?;
        Ok(blocks)
    }
}
