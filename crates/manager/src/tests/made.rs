//! The world that the kit plays each kind of job in: prepared once by a manager, then copied for each run, byte for byte, so
//! that hundreds of runs cost no more preparation than one.

use std::path::Path;
use std::time::Duration;

use keyframe_model::agent::{Bytes, DiskId, MemoryState, SnapshotId, TemplateId, VmId};
use keyframe_model::memory::Loader;
use keyframe_model::{Disk, Hardware, SnapshotKind, Trouble, VmState};
use tempfile::TempDir;

use super::site::{Site, call, caller, done, make, snap, wish};
use crate::Manager;
use crate::agent::Agent;
use crate::request::{DiskAttach, DiskContent, DiskSpec, StopRequest, TemplateCreate, TemplateSource};

/// How the machine is before the job.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Before {
    Stopped,
    Running,
    Paused,
    /// Off, and in error.
    Broken,
    /// Running, and the snapshots have memory.
    WithMemory,
    /// The same, but stopped.
    StoppedWithMemory,
}

impl Before {
    fn memory(self) -> bool {
        matches!(self, Before::WithMemory | Before::StoppedWithMemory)
    }
}

/// What a kind finds: a machine whose guest has written between its snapshots, and a template of the first of them.
///
/// ```text
///           one ────────── two ─────────── three ─────────── now
///  disks    boot old data  boot data more  boot data         boot data fresh
/// ```
#[derive(Clone)]
pub(super) struct Found {
    pub(super) vm: VmId,
    pub(super) hardware: Hardware,
    /// It is in all snapshots.
    pub(super) data: DiskId,
    /// It is in none.
    pub(super) fresh: DiskId,
    pub(super) snapshot: SnapshotId,
    pub(super) child: SnapshotId,
    pub(super) grandchild: SnapshotId,
    pub(super) template: TemplateId,
    /// What `snapshot` consists of, and what `template` does, with the snapshot of its volumes.
    pub(super) of_snapshot: Hardware,
    pub(super) of_template: (Hardware, SnapshotId),
    /// What the host says of the memory of `snapshot`, and what it would load it with.
    pub(super) memory: MemoryState,
    pub(super) loader: Loader,
}

/// A world of its own for one run.
pub(super) struct Made {
    pub(super) site: Site,
    pub(super) agent: Agent,
    pub(super) found: Found,
    pub(super) image: String,
}

/// What worlds are copied from.
pub(super) struct Mold {
    dir: TempDir,
    found: Found,
}

/// Kills of processes are played here and no power failures, so nobody needs to wait for a disk.
fn folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    tempfile::tempdir_in(memory).or_else(|_| tempfile::tempdir()).expect("a folder for a world")
}

/// Sockets are those of the dead, which nobody needs.
fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let (kind, to) = (entry.file_type()?, to.join(entry.file_name()));
        if kind.is_dir() {
            std::fs::create_dir(&to)?;
            copy(&entry.path(), &to)?;
        } else if kind.is_file() {
            std::fs::copy(entry.path(), &to)?;
        }
    }
    Ok(())
}

impl Mold {
    pub(super) async fn of(before: Before) -> Mold {
        let dir = folder();
        let site = Site::on(folder(), true).await;
        let found = prepare(&site, before).await;
        site.fall_silent().await;
        copy(&site.path(""), dir.path()).unwrap();
        Mold { dir, found }
    }

    /// Its guests write nothing any more: when they would is different each time.
    pub(super) async fn cast(&self) -> Made {
        let dir = folder();
        copy(self.dir.path(), dir.path()).unwrap();
        let site = Site::on(dir, false).await;
        // Whatever is lost once is lost to the step that asks.
        let (agent, image) = (site.client_with(Duration::ZERO), site.image(9));
        Made { site, agent, found: self.found.clone(), image }
    }
}

async fn prepare(site: &Site, before: Before) -> Found {
    let manager = site.manager().await;
    let vm = make(&manager, wish(site, "web", &[1, 2, 3], true)).await.vm;
    let write = || site.fake.step(vm.id, 7).map(drop).unwrap();
    let kind = if before.memory() { SnapshotKind::DiskAndMemory } else { SnapshotKind::Disk };
    write();
    let snapshot = snap(&manager, vm.id, "one", kind).await;
    write();
    detach(&manager, vm.id, vm.hardware.disks[1].id).await;
    let more = attach(&manager, vm.id).await;
    write();
    let child = snap(&manager, vm.id, "two", kind).await;
    detach(&manager, vm.id, more.id).await;
    write();
    let grandchild = snap(&manager, vm.id, "three", kind).await;
    let fresh = attach(&manager, vm.id).await.id;
    write();
    let source = TemplateSource::Snapshot { snapshot };
    let template = TemplateCreate { name: "golden".parse().unwrap(), description: String::new(), source };
    let template = manager.create_template(&call(), template).await.unwrap();
    done(&manager, template.id).await;
    match before {
        Before::Running | Before::WithMemory => {}
        Before::Paused => drop(done(&manager, manager.pause_vm(&call(), vm.id).await.unwrap().id).await),
        Before::Stopped | Before::Broken | Before::StoppedWithMemory => {
            let stop = StopRequest { hard: true, ..StopRequest::default() };
            done(&manager, manager.stop_vm(&call(), vm.id, stop).await.unwrap().id).await;
        }
    }
    let now = manager.vm(&caller(), vm.id).await.unwrap().vm;
    manager.stop().await;
    let mut tx = site.catalog.write().await.unwrap();
    // Its address is a path that is another one in each world.
    let host = tx.hosts().await.unwrap().remove(0);
    tx.delete_host(host.id, host.generation).await.unwrap();
    if before == Before::Broken {
        let mut vm = tx.vm(vm.id).await.unwrap();
        vm.state = VmState::Error { trouble: Trouble { reason: "a test says so".to_owned(), spoilt: true } };
        tx.update_vm(&mut vm).await.unwrap();
    }
    tx.commit().await.unwrap();
    let agent = site.client();
    let mut tx = site.catalog.read().await.unwrap();
    let template = tx.template(template.template.unwrap()).await.unwrap();
    Found {
        vm: vm.id,
        hardware: now.hardware,
        data: vm.hardware.disks[2].id,
        fresh,
        snapshot,
        child,
        grandchild,
        of_snapshot: tx.snapshot(snapshot).await.unwrap().hardware,
        of_template: (template.hardware, template.snapshot),
        template: template.id,
        memory: agent.probe_instant(snapshot, &[]).await.unwrap().memory,
        loader: Loader::from(&agent.host().await.unwrap()),
    }
}

async fn detach(manager: &Manager, vm: VmId, disk: DiskId) {
    let job = manager.detach_disk(&call(), vm, disk).await.unwrap();
    done(manager, job.id).await;
}

/// The one that was added last.
async fn attach(manager: &Manager, vm: VmId) -> Disk {
    let disk = DiskSpec { content: DiskContent::Empty, size: Some(Bytes(1 << 14)), ..DiskSpec::default() };
    let job = manager.attach_disk(&call(), vm, DiskAttach::at(disk, Some(9))).await.unwrap();
    done(manager, job.id).await;
    let disks = manager.vm(&caller(), vm).await.unwrap().vm.hardware.disks;
    disks.into_iter().find(|disk| disk.slot == 9).unwrap()
}
