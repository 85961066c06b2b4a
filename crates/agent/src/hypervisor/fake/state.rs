//! A fake machine's process: a file in the driver's directory.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use keyframe_agent_api::{Bytes, DiskId, DiskSlot, GuestIdentity, NicId, Power, SnapshotId, Timestamp, VmId};
use serde::{Deserialize, Serialize};

use super::guest::Memory;
use crate::hypervisor::BlockAddress;

/// A machine that is on.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Machine {
    /// Its hardware as it is now.
    pub hardware: keyframe_agent_api::Machine,
    /// Where its disks' blocks are.
    pub blocks: BTreeMap<DiskId, BlockAddress>,
    /// What it does.
    pub power: Power,
    /// When it was started.
    pub since: Timestamp,
    /// Its guest's memory.
    pub guest: Memory,
    /// Which cables are in.
    pub cables: BTreeMap<NicId, bool>,
    /// What its guest was told about itself.
    pub identity: Option<GuestIdentity>,
    /// Memory that is still in the image it was started from.
    pub pending: Bytes,
}

impl Machine {
    /// The disks that the guest writes to, in the order of their slots.
    pub(super) fn wanted(&self, writes: bool) -> Vec<(DiskId, BlockAddress)> {
        let seen = |disk: &&DiskSlot| writes && !disk.read_only && !disk.firmware_variables;
        let mut disks: Vec<&DiskSlot> = self.hardware.disks.iter().filter(seen).collect();
        disks.sort_by_key(|disk| disk.slot);
        disks.iter().filter_map(|disk| self.blocks.get(&disk.id).map(|at| (disk.id, at.clone()))).collect()
    }

    /// The guest begins its next number with what it has then.
    fn begin_number(&mut self) {
        self.guest = Memory { count: self.guest.count + 1, written: 0 };
    }

    pub(super) fn add(&mut self, disk: &DiskSlot, blocks: &BlockAddress) {
        self.hardware.disks.push(disk.clone());
        self.blocks.insert(disk.id, blocks.clone());
        self.begin_number();
    }

    pub(super) fn take(&mut self, disk: DiskId) {
        self.hardware.disks.retain(|other| other.id != disk);
        self.blocks.remove(&disk);
        self.begin_number();
    }

    pub(super) fn plug(&mut self, nic: NicId, up: bool) {
        self.cables.insert(nic, up);
        for other in self.hardware.nics.iter_mut().filter(|other| other.id == nic) {
            other.link_up = up;
        }
    }

    /// The cables that are to be in.
    pub(super) fn plug_all(&mut self) {
        for nic in self.hardware.nics.iter().filter(|nic| nic.link_up) {
            self.cables.insert(nic.id, true);
        }
    }

    fn path(dir: &Path, vm: VmId) -> PathBuf {
        dir.join(format!("{vm}.json"))
    }

    pub(super) fn write(&self, dir: &Path, vm: VmId) -> io::Result<()> {
        fs::create_dir_all(dir)?;
        let draft = dir.join(format!("{vm}.new"));
        fs::write(&draft, serde_json::to_vec(self)?)?;
        fs::rename(draft, Machine::path(dir, vm))
    }

    pub(super) fn delete(dir: &Path, vm: VmId) -> io::Result<()> {
        match fs::remove_file(Machine::path(dir, vm)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    fn path_aside(dir: &Path, snapshot: SnapshotId) -> PathBuf {
        dir.join(format!("{snapshot}.aside"))
    }

    /// What was this machine's process becomes something that was set aside, in one moment.
    pub(super) fn write_aside(&self, dir: &Path, snapshot: SnapshotId, vm: VmId) -> io::Result<()> {
        self.write(dir, vm)?;
        fs::rename(Machine::path(dir, vm), Machine::path_aside(dir, snapshot))
    }

    pub(super) fn delete_aside(dir: &Path, snapshot: SnapshotId) -> io::Result<()> {
        match fs::remove_file(Machine::path_aside(dir, snapshot)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    /// All that were set aside.
    pub(super) fn all_aside(dir: &Path) -> io::Result<Vec<(SnapshotId, Machine)>> {
        Machine::named(dir, "aside")
    }

    /// All that are on.
    pub(super) fn all(dir: &Path) -> io::Result<Vec<(VmId, Machine)>> {
        Machine::named(dir, "json")
    }

    fn named<Id: std::str::FromStr>(dir: &Path, end: &str) -> io::Result<Vec<(Id, Machine)>> {
        fs::create_dir_all(dir)?;
        let mut found = Vec::new();
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            let id = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse().ok());
            if let Some(id) = id.filter(|_| path.extension().is_some_and(|found| found == end)) {
                found.push((id, serde_json::from_slice(&fs::read(&path)?)?));
            }
        }
        Ok(found)
    }
}
