//! What a demonstration plays on: the guest, a store with its two disks, and the questions asked of them.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::console::Mark;
use crate::guest::Guest;
use crate::kvm::Accelerator;
use crate::scratch;
use crate::stamps::{Journal, Stamps, check_file_system, is_wrecked};
use crate::store::Store;
use crate::vm::{Disk, Vm, VmSpec};

/// The guest and a store that holds its disks as the volumes `root` and `data`.
pub struct Scene {
    /// The store under test.
    pub store: Store,
    guest: Guest,
    accelerator: Accelerator,
    root_size: u64,
    data_size: u64,
    work: TempDir,
}

/// The two volumes of a machine.
#[derive(Clone, Debug)]
pub struct Pair {
    /// Disk A, with the operating system.
    pub root: String,
    /// Disk B.
    pub data: String,
}

/// The next progress line of the stamp writer comes twenty times a second, unless the host is very busy.
const PROGRESS: Duration = Duration::from_secs(30);

impl Pair {
    /// The volumes the guest was imported into.
    pub fn original() -> Pair {
        Pair { root: "root".into(), data: "data".into() }
    }

    /// The same volumes with a suffix, for a clone.
    pub fn named(&self, suffix: &str) -> Pair {
        Pair { root: format!("{}-{suffix}", self.root), data: format!("{}-{suffix}", self.data) }
    }

    /// A snapshot of both.
    pub fn at(&self, snapshot: &str) -> Pair {
        Pair { root: format!("{}@{snapshot}", self.root), data: format!("{}@{snapshot}", self.data) }
    }
}

impl Scene {
    /// Prepares the guest and makes an empty store, in a folder that goes with the scene.
    pub fn open(keyframe: &Path) -> Result<Scene> {
        ensure!(keyframe.is_file(), "no keyframe binary at {}; build it first", keyframe.display());
        let guest = Guest::prepare()?;
        let accelerator = Accelerator::choose(&guest)?;
        let work = scratch::work_folder()?;
        let store = Store::create(keyframe, &work.path().join("pool"), "4G")?;
        let size = |image: &Path| Ok::<_, std::io::Error>(image.metadata()?.len());
        let (root_size, data_size) = (size(&guest.root_image)?, size(&guest.data_image)?);
        Ok(Scene { store, guest, accelerator, root_size, data_size, work })
    }

    /// Puts the guest's two images into the store.
    pub fn import(&self) -> Result<()> {
        let Pair { root, data } = Pair::original();
        self.store.import(&self.guest.root_image, &root)?;
        self.store.import(&self.guest.data_image, &data)
    }

    /// Boots a machine from two volumes with its stamp writer running. Returns it with the stamps it found, which the
    /// writer has checked, logs included, and the time until the guest was up.
    pub fn boot(&self, name: &str, volumes: &Pair) -> Result<(Vm, Stamps, Duration)> {
        let disks = vec![self.disk(&volumes.root), self.disk(&volumes.data)];
        let spec = VmSpec { name, memory_mib: 256, disks, command_line: "lab=stamp" };
        let vm = Vm::boot(&spec, &self.guest, self.accelerator)?;
        let ready = vm.ready()?;
        let found = vm.expect(Mark::default(), PROGRESS, "STAMP-START", |line| {
            let (a, rest) = line.strip_prefix("STAMP-START a=")?.split_once(" b=")?;
            let (b, _) = rest.split_once(' ')?;
            Some(Stamps { a: a.parse().ok()?, b: b.parse().ok()? })
        })?;
        Ok((vm, found, ready))
    }

    /// Waits until the writer has written a stamp that was not there when this was called, and one above
    /// `floor`; returns its number.
    pub fn next_stamp(&self, vm: &Vm, floor: u64) -> Result<u64> {
        // The first line that comes may have been on its way already.
        let mut lines = 0;
        vm.expect(vm.console().mark(), PROGRESS, "STAMP", |line| {
            let stamp = line.strip_prefix("STAMP ")?.parse().ok()?;
            lines += 1;
            (lines >= 2 && stamp > floor).then_some(stamp)
        })
    }

    /// Snapshots both volumes at one instant.
    pub fn snapshot(&self, volumes: &Pair, name: &str) -> Result<Duration> {
        self.store.snapshot(&[&volumes.root, &volumes.data], name)
    }

    /// Clones both volumes of a snapshot.
    pub fn clone_pair(&self, from: &Pair, to: &Pair) -> Result<()> {
        self.store.clone_volume(&from.root, &to.root)?;
        self.store.clone_volume(&from.data, &to.data)
    }

    /// Puts both volumes back to a snapshot.
    pub fn revert(&self, snapshot: &Pair) -> Result<()> {
        self.store.revert(&snapshot.root)?;
        self.store.revert(&snapshot.data)
    }

    /// The stamps of a snapshot; fails unless it shows one instant.
    pub fn stamps(&self, snapshot: &Pair) -> Result<Stamps> {
        Stamps::read((&self.disk(&snapshot.root), self.root_size), (&self.disk(&snapshot.data), self.data_size))
            .with_context(|| format!("stamps of {}", snapshot.root))
    }

    /// Whether the guest has overwritten this place of a volume with garbage.
    pub fn is_wrecked(&self, volume: &str, offset: u64) -> Result<bool> {
        is_wrecked(&self.disk(volume), offset)
    }

    /// Fails unless both file systems of a snapshot are without fault and hold every promised record.
    pub fn check_file_systems(&self, snapshot: &Pair, stamps: Stamps, journal: Journal) -> Result<()> {
        for (export, log) in [(&snapshot.root, "/var/lib/stamps"), (&snapshot.data, "/stamps")] {
            check_file_system(&self.disk(export), &self.work.path().join("copy"), log, stamps, journal)
                .with_context(|| format!("file system of {export}"))?;
        }
        Ok(())
    }

    fn disk(&self, export: &str) -> Disk {
        self.store.disk(export)
    }
}
