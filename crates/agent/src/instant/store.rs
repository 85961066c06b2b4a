//! The reports of instants: `instants/SNAPSHOT.json`. A report that is there vouches for everything it tells of.

use std::io;
use std::path::{Path, PathBuf};

use keyframe_agent_api::{FaultKind, InstantReport, SnapshotId, TakeInstant};
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::durable::{Folder, remove_file};
use crate::fault::{fault, of_io};
use crate::life::Life;

/// A taken instant.
#[derive(Serialize, Deserialize)]
pub(super) struct Stored {
    pub(super) wish: TakeInstant,
    pub(super) report: InstantReport,
}

impl Stored {
    /// The report, if the same instant is asked for again. The generation and how it was to be taken may differ.
    pub(super) fn answer(self, snapshot: SnapshotId, wish: &TakeInstant) -> Result<InstantReport> {
        let same = self.wish.vm == wish.vm && self.wish.memory == wish.memory && {
            let sorted = |wish: &TakeInstant| {
                let mut volumes = wish.volumes.clone();
                volumes.sort();
                volumes
            };
            sorted(&self.wish) == sorted(wish)
        };
        if same {
            return Ok(self.report);
        }
        let why = format!("instant {snapshot} was taken of another machine, other volumes, or with another kind");
        Err(fault(FaultKind::Exists, why))
    }
}

pub(super) struct Store {
    folder: Folder,
}

fn file(snapshot: SnapshotId) -> String {
    format!("{snapshot}.json")
}

impl Store {
    pub(super) fn open(path: PathBuf, life: Life) -> Result<Store> {
        Ok(Store { folder: Folder::open(path, life)? })
    }

    pub(super) fn read(&self, snapshot: SnapshotId) -> Result<Option<Stored>> {
        self.folder.read(&file(snapshot))
    }

    pub(super) fn write(&self, snapshot: SnapshotId, stored: &Stored) -> Result<()> {
        self.folder.write(&file(snapshot), stored)
    }

    pub(super) fn remove(&self, snapshot: SnapshotId) -> Result<()> {
        self.folder.remove(&file(snapshot))
    }

    /// Makes the folder of memory images, or removes from it what no report vouches for. Other files are left alone.
    pub(super) fn sweep(&self, memory: &Path) -> Result<()> {
        let failed = |error: io::Error| of_io(format_args!("look through {}", memory.display()), &error);
        std::fs::create_dir_all(memory).map_err(failed)?;
        for entry in std::fs::read_dir(memory).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let rubbish = match name.split_once('.') {
                Some((id, "kfm")) => match id.parse() {
                    Ok(id) => !self.folder.file(&file(id)).try_exists().map_err(failed)?,
                    Err(_) => false,
                },
                _ => super::draft_of(&path).is_some(),
            };
            if rubbish {
                remove_file(&path)?;
            }
        }
        Ok(())
    }
}
