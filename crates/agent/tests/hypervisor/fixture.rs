//! A pool behind write gates, machines on it, and the two drivers.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use keyframe_agent::array::{Array, Arrays, Engine, EngineOptions};
use keyframe_agent::exports::Exports;
use keyframe_agent::hypervisor::fake::{Fake, FakeOptions};
use keyframe_agent::hypervisor::qemu::{Qemu, QemuConfig};
use keyframe_agent::hypervisor::{BlockAddress, Cancel, Cut, Hypervisor, Start};
use keyframe_agent::life::Life;
use keyframe_agent_api::{
    Accelerator, Bytes, CreateVolume, DirectBoot, DiskId, DiskSlot, Fault, FaultKind, Firmware, Machine, NicConnection,
    NicId, NicSlot, SnapshotId, SnapshotRef, VmId, VolumeRef, VolumeSource,
};
use keyframe_lab::guest::Guest;
use keyframe_nbd::gate::{GateSet, Hold, Mark};
use tempfile::TempDir;

/// Volumes on a pool of the engine, exported behind gates.
pub(crate) struct World {
    pub(crate) dir: TempDir,
    pub(crate) array: Arc<Engine>,
    exports: Exports,
}

pub(crate) fn volume(name: &str) -> VolumeRef {
    VolumeRef { array: "local".into(), volume: name.into() }
}

impl World {
    pub(crate) fn new() -> Result<World> {
        // Sockets have short paths only.
        let dir = tempfile::Builder::new().prefix("kf-hyp-").tempdir()?;
        let options =
            EngineOptions { pool: dir.path().join("pool"), create: Some(Bytes(4 << 30)), cache: Bytes(64 << 20) };
        let array = Arc::new(Engine::open("local", &options, Life::new())?);
        let arrays = Arrays::new([("local".to_owned(), Arc::clone(&array) as Arc<dyn Array>)]);
        let exports = Exports::start(&arrays, &dir.path().join("nbd.sock"))?;
        Ok(World { dir, array, exports })
    }

    pub(crate) fn empty(&self, name: &str, size: u64) -> Result<()> {
        self.array.create(name, &CreateVolume { source: VolumeSource::Empty, size: Some(Bytes(size)) })?;
        Ok(())
    }

    pub(crate) fn import(&self, name: &str, image: &Path) -> Result<()> {
        let source = VolumeSource::Image { path: image.display().to_string(), format: None };
        self.array.create(name, &CreateVolume { source, size: None })?;
        Ok(())
    }

    pub(crate) fn clone_of(&self, name: &str, snapshot: SnapshotId, new: &str) -> Result<()> {
        let source = VolumeSource::Snapshot(SnapshotRef { volume: volume(name), snapshot });
        self.array.create(new, &CreateVolume { source, size: None })?;
        Ok(())
    }

    pub(crate) fn address(&self, volume: &VolumeRef) -> BlockAddress {
        self.exports.address(volume)
    }

    /// A cut through volumes.
    pub(crate) fn cut(&self, names: &[&str]) -> TestCut {
        let volumes: Vec<VolumeRef> = names.iter().map(|name| volume(name)).collect();
        TestCut {
            array: Arc::clone(&self.array),
            gates: self.exports.gates(&volumes),
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            snapshot: SnapshotId::new(),
            hold: None,
            mark: None,
            fail_arm: None,
            fail_cut: None,
            log: Vec::new(),
            on_cut: None,
        }
    }
}

/// Notes what it is told, and does it.
pub(crate) struct TestCut {
    array: Arc<Engine>,
    gates: GateSet,
    names: Vec<String>,
    pub(crate) snapshot: SnapshotId,
    hold: Option<Hold>,
    mark: Option<Mark>,
    pub(crate) fail_arm: Option<FaultKind>,
    pub(crate) fail_cut: Option<FaultKind>,
    pub(crate) log: Vec<&'static str>,
    pub(crate) on_cut: Option<Box<dyn Fn() + Send>>,
}

impl Cut for TestCut {
    fn arm(&mut self, on_write: Box<dyn Fn() + Send + Sync>) -> keyframe_agent::Result<()> {
        self.log.push("arm");
        if let Some(kind) = self.fail_arm {
            return Err(Fault::new(kind, "arm: as planned"));
        }
        let hold = self.gates.arm(Duration::from_secs(5), on_write);
        self.hold = Some(hold.map_err(|e| Fault::new(FaultKind::Internal, format!("{e:?}")))?);
        Ok(())
    }

    fn mark(&mut self) {
        self.mark = self.hold.as_ref().map(Hold::mark);
    }

    fn pass(&mut self) -> keyframe_agent::Result<()> {
        match (&self.hold, self.mark.take()) {
            (Some(hold), Some(mark)) => hold.pass(mark).map_err(|e| Fault::new(FaultKind::Internal, format!("{e:?}"))),
            _ => Ok(()),
        }
    }

    fn cut(&mut self) -> keyframe_agent::Result<()> {
        self.log.push("cut");
        if let Some(kind) = self.fail_cut {
            return Err(Fault::new(kind, "cut: as planned"));
        }
        let names: Vec<&str> = self.names.iter().map(String::as_str).collect();
        self.array.snapshot(&names, self.snapshot)?;
        if let Some(hold) = self.hold.take() {
            hold.open().map_err(|e| Fault::new(FaultKind::Internal, format!("{e:?}")))?;
        }
        if let Some(act) = &self.on_cut {
            act();
        }
        Ok(())
    }

    fn abandon(&mut self) {
        self.hold = None;
    }
}

/// Never cancels, or after so many questions.
pub(crate) struct After(AtomicUsize);

impl After {
    pub(crate) fn never() -> After {
        After(AtomicUsize::new(usize::MAX))
    }
    pub(crate) fn questions(n: usize) -> After {
        After(AtomicUsize::new(n))
    }
}

impl Cancel for After {
    fn cancelled(&self) -> bool {
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_err()
    }
}

/// A machine with a root disk and an interface that leads nowhere.
pub(crate) fn machine(machine_type: &str, boot: Option<DirectBoot>, disks: &[&str]) -> Machine {
    let disk = |(slot, name): (usize, &&str)| DiskSlot {
        id: DiskId::new(),
        slot: u8::try_from(slot).expect("few disks"),
        volume: volume(name),
        read_only: false,
        firmware_variables: false,
    };
    Machine {
        name: "fixture".into(),
        uuid: uuid::Uuid::new_v4(),
        generation_id: uuid::Uuid::new_v4(),
        machine_type: machine_type.into(),
        cpus: 1,
        memory: Bytes::mib(256),
        firmware: Firmware::Bios,
        direct_boot: boot,
        disks: disks.iter().enumerate().map(disk).collect(),
        nics: vec![NicSlot {
            id: NicId::new(),
            slot: 0,
            mac: "52:54:00:00:00:01".into(),
            connection: NicConnection::User,
            link_up: true,
        }],
        cloud_init: None,
    }
}

/// One of the drivers, which can be made again on the same machines.
pub(crate) trait Bench {
    fn world(&self) -> &World;
    fn driver(&self) -> &dyn Hypervisor;
    /// Forgets the driver, as the death of an agent does, and makes another.
    fn again(&mut self);
    fn machine(&self) -> Machine;
    /// Returns when the guest is up.
    fn wait_up(&self, vm: VmId) -> Result<()>;
    /// `kill -9`.
    fn kill(&self, vm: VmId) -> Result<()>;
    /// The same to what was set aside; its process, if it has one.
    fn kill_aside(&self, snapshot: SnapshotId, process: Option<u32>) -> Result<()>;

    fn start(&self, vm: VmId, machine: &Machine, memory: Option<&Path>, paused: bool) -> keyframe_agent::Result<()> {
        let blocks = |volume: &VolumeRef| self.world().address(volume);
        self.driver()
            .start(vm, &Start { machine, blocks: &blocks, memory, new_identity: false, paused, going: &|| Ok(()) })
    }
}

pub(crate) struct FakeBench {
    world: World,
    pub(crate) fake: Fake,
}

impl FakeBench {
    pub(crate) fn new() -> Result<FakeBench> {
        let world = World::new()?;
        world.empty("root", 1 << 20)?;
        world.empty("data", 1 << 20)?;
        world.empty("more", 1 << 20)?;
        let fake = FakeBench::driver_of(&world);
        Ok(FakeBench { world, fake })
    }

    fn driver_of(world: &World) -> Fake {
        Fake::new(world.dir.path().join("vms"), FakeOptions::default())
    }
}

impl Bench for FakeBench {
    fn world(&self) -> &World {
        &self.world
    }
    fn driver(&self) -> &dyn Hypervisor {
        &self.fake
    }
    fn again(&mut self) {
        self.fake = FakeBench::driver_of(&self.world);
    }
    fn machine(&self) -> Machine {
        machine("fake-1.0", None, &["root", "data"])
    }
    fn wait_up(&self, vm: VmId) -> Result<()> {
        self.fake.step(vm, 10)?;
        Ok(())
    }
    fn kill(&self, vm: VmId) -> Result<()> {
        self.fake.kill(vm)?;
        Ok(())
    }

    fn kill_aside(&self, snapshot: SnapshotId, _: Option<u32>) -> Result<()> {
        self.fake.kill_aside(snapshot)?;
        Ok(())
    }
}

pub(crate) struct QemuBench {
    world: World,
    guest: Guest,
    qemu: Option<Qemu>,
}

/// Emulated, on a busy host.
pub(crate) const BOOT: Duration = Duration::from_secs(120);

impl QemuBench {
    pub(crate) fn new() -> Result<QemuBench> {
        let guest = Guest::prepare()?;
        let world = World::new()?;
        world.import("root", &guest.root_image)?;
        world.import("data", &guest.data_image)?;
        world.empty("more", 16 << 20)?;
        let qemu = QemuBench::driver_of(&world)?;
        Ok(QemuBench { world, guest, qemu: Some(qemu) })
    }

    fn driver_of(world: &World) -> Result<Qemu> {
        let mut config = QemuConfig::new(world.dir.path().join("vms"), vec![helper()?.into()]);
        // The same everywhere; whether KVM works is not the question here.
        config.accelerator = Some(Accelerator::Emulation { reason: "a test".into() });
        Ok(Qemu::new(config))
    }

    pub(crate) fn file(&self, vm: VmId, name: &str) -> PathBuf {
        self.world.dir.path().join("vms").join(vm.to_string()).join(name)
    }

    pub(crate) fn console(&self, vm: VmId) -> String {
        String::from_utf8_lossy(&std::fs::read(self.file(vm, "console.log")).unwrap_or_default()).into_owned()
    }

    /// Waits for text that comes behind the first `from` bytes of the console.
    pub(crate) fn wait_console(&self, vm: VmId, from: usize, text: &str) -> Result<()> {
        let until = Instant::now() + BOOT;
        loop {
            let console = self.console(vm);
            if console.get(from..).is_some_and(|new| new.contains(text)) {
                return Ok(());
            }
            let tail: String = console.chars().rev().take(300).collect::<Vec<_>>().into_iter().rev().collect();
            ensure!(Instant::now() < until, "no {text} on the console of {vm}; it ends: {tail}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub(crate) fn boot(&self, command_line: &str) -> DirectBoot {
        DirectBoot {
            kernel: self.guest.kernel.display().to_string(),
            initrd: Some(self.guest.initrd.display().to_string()),
            command_line: format!("console=ttyS0 quiet panic=-1 {command_line}"),
        }
    }

    pub(crate) fn sizes(&self) -> Result<(u64, u64)> {
        Ok((self.guest.root_image.metadata()?.len(), self.guest.data_image.metadata()?.len()))
    }

    pub(crate) fn pid(&self, vm: VmId) -> Result<u32> {
        self.driver().status(vm)?.pid.context("it has no process")
    }
}

/// Machines outlive their driver, but not their test.
impl Drop for QemuBench {
    fn drop(&mut self) {
        self.again();
        let driver = self.qemu.take().expect("there is always one");
        if let Err(fault) = driver.adopt() {
            eprintln!("{fault}");
        }
        let found = std::fs::read_dir(self.world.dir.path().join("vms"));
        for entry in found.into_iter().flatten().flatten() {
            if let Some(vm) = entry.file_name().to_str().and_then(|name| name.parse::<VmId>().ok())
                && let Err(fault) = driver.stop(vm, keyframe_agent_api::StopHow::Hard)
            {
                eprintln!("{fault}");
            }
        }
    }
}

impl Bench for QemuBench {
    fn world(&self) -> &World {
        &self.world
    }
    fn driver(&self) -> &dyn Hypervisor {
        self.qemu.as_ref().expect("there is always one")
    }
    fn again(&mut self) {
        self.qemu = None;
        self.qemu = Some(QemuBench::driver_of(&self.world).expect("it was made before"));
    }
    fn machine(&self) -> Machine {
        machine("pc-q35-10.0", Some(self.boot("")), &["root", "data"])
    }
    fn wait_up(&self, vm: VmId) -> Result<()> {
        self.wait_console(vm, 0, "GUEST-READY")
    }
    fn kill(&self, vm: VmId) -> Result<()> {
        kill(self.pid(vm)?)
    }

    fn kill_aside(&self, _: SnapshotId, process: Option<u32>) -> Result<()> {
        kill(process.context("what is set aside has no process")?)
    }
}

fn kill(pid: u32) -> Result<()> {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid)?).context("no process")?;
    Ok(rustix::process::kill_process(pid, rustix::process::Signal::KILL)?)
}

/// The example `helper`, which cargo builds with the tests.
pub(crate) fn helper() -> Result<PathBuf> {
    let test = std::env::current_exe()?;
    let helper = test.ancestors().nth(2).context("where are we?")?.join("examples/helper");
    ensure!(helper.is_file(), "{} is not there; cargo build --examples", helper.display());
    Ok(helper)
}
