//! A fake memory image: a few bytes of JSON.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use keyframe_agent_api::{Bytes, Fault, FaultKind, Machine, MemoryInfo};
use serde::{Deserialize, Serialize};

use super::guest::Memory;
use crate::Result;

/// The version that the fake says it is of.
pub(super) const VERSION: &str = "fake 1.0";
/// Its only machine type.
pub(super) const MACHINE_TYPE: &str = "fake-1.0";

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Image {
    pub(super) hypervisor: String,
    pub(super) machine_type: String,
    pub(super) memory: Bytes,
    pub(super) cpus: u32,
    pub(super) guest: Memory,
    pub(super) compressed: bool,
}

fn about(path: &Path, kind: FaultKind, why: impl std::fmt::Display) -> Fault {
    Fault::new(kind, format!("memory image {}: {why}", path.display()))
}

pub(super) fn read(path: &Path) -> Result<Image> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(about(path, FaultKind::NotFound, "it is not there"));
        }
        Err(e) => return Err(about(path, FaultKind::Internal, e)),
    };
    serde_json::from_slice(&bytes).map_err(|_| about(path, FaultKind::Corrupt, "it is not whole"))
}

/// Where an image is written.
pub(super) fn draft(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".partial");
    name.into()
}

/// Removes an image and its draft.
pub(super) fn discard(path: &Path) {
    for path in [draft(path), path.to_owned()] {
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => tracing::warn!("remove {}: {e}", path.display()),
            _ => {}
        }
    }
}

impl Image {
    pub(super) fn of(machine: &Machine, guest: Memory) -> Image {
        Image {
            hypervisor: VERSION.into(),
            machine_type: machine.machine_type.clone(),
            memory: machine.memory,
            cpus: machine.cpus,
            guest,
            compressed: false,
        }
    }

    pub(super) fn write(&self, path: &Path) -> Result<()> {
        let draft = draft(path);
        let text = serde_json::to_vec(self).map_err(|e| about(path, FaultKind::Internal, e))?;
        fs::write(&draft, text).and_then(|()| fs::rename(&draft, path)).map_err(|e| about(path, FaultKind::Internal, e))
    }

    pub(super) fn info(&self, path: &Path) -> Result<MemoryInfo> {
        let stored = fs::metadata(path).map_err(|e| about(path, FaultKind::NotFound, e))?.len();
        Ok(MemoryInfo {
            memory: self.memory,
            stored: Bytes(stored),
            hypervisor: self.hypervisor.clone(),
            emulated: true,
            compressed: self.compressed,
        })
    }

    /// The memory, if this machine can go on from it.
    pub(super) fn fits(&self, path: &Path, machine: &Machine) -> Result<Memory> {
        if self.hypervisor != VERSION {
            let why = format!("it is of {}, here is {VERSION}; its disks can be used", self.hypervisor);
            return Err(about(path, FaultKind::Unsupported, why));
        }
        let same =
            self.machine_type == machine.machine_type && self.memory == machine.memory && self.cpus == machine.cpus;
        if same { Ok(self.guest) } else { Err(about(path, FaultKind::Invalid, "it is of another machine")) }
    }
}
