//! A machine, and what is said to its QEMU to take its memory and to give it back.

use std::io::{Read, Write, copy};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use keyframe_lab::console::Mark;
use keyframe_lab::guest::Guest;
use keyframe_lab::kvm::Accelerator;
use keyframe_lab::vm::{BOOT, Disk, Vm, VmSpec};
use keyframe_memory::serve::{Ready, Served};
use keyframe_memory::{Image, capture, capture_and_decline, replay};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{PASS, quiet};

/// How much of the guest's memory is rewritten and checked all the time.
const BUSY_MIB: u32 = 48;
/// For QEMU's own steps, which take milliseconds on a quiet host.
const STEP: Duration = Duration::from_secs(30);

pub(crate) struct Rig {
    guest: Guest,
    accelerator: Accelerator,
    folder: TempDir,
    root: PathBuf,
}

pub(crate) struct Machine {
    vm: Vm,
    folder: TempDir,
    /// The number of the last pass that was waited for.
    pub(crate) last_pass: u64,
}

/// A machine whose memory is still coming in.
pub(crate) struct Lazy {
    pub(crate) machine: Machine,
    /// From the start of QEMU.
    pub(crate) first_output: Duration,
    pub(crate) server: JoinHandle<keyframe_memory::Result<Served>>,
}

impl Rig {
    pub(crate) fn new() -> Result<Rig> {
        let guest = Guest::prepare()?;
        let accelerator = Accelerator::choose(&guest)?;
        let folder = tempfile::Builder::new().prefix("keyframe-memory-").tempdir()?;
        let root = folder.path().join("root.img");
        std::fs::copy(&guest.root_image, &root)?;
        Ok(Rig { guest, accelerator, folder, root })
    }

    pub(crate) fn image(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A file system of 32 MiB.
    pub(crate) fn small_disk(&self) -> Result<PathBuf> {
        let at = self.image("small");
        std::fs::create_dir(&at)?;
        mount("tmpfs", &at, "tmpfs", MountFlags::empty(), Some(c"size=32M")).context("mount a tmpfs; are we root?")?;
        Ok(at)
    }

    /// Every generation uses the same disk, one after the other; the guest writes nothing to it.
    fn spec<'a>(&self, name: &'a str) -> VmSpec<'a> {
        VmSpec { name, memory_mib: 256, disks: vec![Disk::File(self.root.clone())], command_line: "" }
    }

    pub(crate) fn boot(&self) -> Result<Machine> {
        let vm = Vm::boot(&self.spec("source"), &self.guest, self.accelerator)?;
        vm.ready()?;
        let mut machine = Machine { vm, folder: tempfile::tempdir()?, last_pass: 0 };
        machine.vm.tell(&format!("pages {BUSY_MIB}"))?;
        machine.sound_passes(2)?;
        Ok(machine)
    }

    fn wait_for_migration(&self, capabilities: &[&str]) -> Result<(Machine, PathBuf)> {
        let vm = Vm::await_migration(&self.spec("resumed"), &self.guest, self.accelerator)?;
        let mut machine = Machine { vm, folder: tempfile::tempdir()?, last_pass: 0 };
        machine.capabilities(capabilities, true)?;
        machine.vm.qmp().execute("migrate-set-parameters", json!({ "announce-rounds": 0 }))?;
        let socket = machine.folder.path().join("in");
        machine.vm.qmp().execute("migrate-incoming", json!({ "uri": uri(&socket) }))?;
        Ok((machine, socket))
    }

    pub(crate) fn resume(&self, image: &Path) -> Result<Lazy> {
        self.resume_and(image, |_| Ok(()))
    }

    /// Resumes a machine; does `then` as soon as the server is at work.
    pub(crate) fn resume_and(&self, image: &Path, then: impl FnOnce(&Path) -> Result<()>) -> Result<Lazy> {
        let began = Instant::now();
        let (mut machine, socket) = self.wait_for_migration(&["postcopy-ram"])?;
        let from = image.to_owned();
        let server = std::thread::spawn(move || Ready::open(&from)?.run(&socket, quiet));
        machine.go_on()?;
        then(image)?;
        machine.vm.expect(Mark::default(), BOOT, "any output", |line| (!line.is_empty()).then_some(()))?;
        Ok(Lazy { machine, first_output: began.elapsed(), server })
    }

    /// Loads everything, then lets the machine run.
    pub(crate) fn load_whole(&self, image: &Path) -> Result<Machine> {
        let (mut machine, socket) = self.wait_for_migration(&[])?;
        let stream = UnixStream::connect(&socket)?;
        replay(&Image::open(image)?, &stream)?;
        stream.shutdown(Shutdown::Write)?;
        machine.all_in()?;
        machine.go_on()?;
        Ok(machine)
    }

    /// Resumes a machine through a relay that breaks off in the middle, which to QEMU is a server that was killed.
    pub(crate) fn resume_interrupted(&self, image: &Path) -> Result<Machine> {
        let (mut machine, socket) = self.wait_for_migration(&["postcopy-ram"])?;
        let relay = machine.folder.path().join("relay");
        let listener = UnixListener::bind(&relay)?;
        let breaking = std::thread::spawn(move || -> Result<()> {
            let (server, qemu) = (listener.accept()?.0, UnixStream::connect(&socket)?);
            let (mut back_from, mut back_to) = (qemu.try_clone()?, server.try_clone()?);
            // It ends when either connection does, whichever way.
            std::thread::spawn(move || copy(&mut back_from, &mut back_to));
            // Slow enough that the machine runs before a third of its memory is there.
            let mut piece = vec![0; 64 << 10];
            let mut passed = 0;
            while passed < 40 << 20 {
                let n = (&server).read(&mut piece)?;
                ensure!(n > 0, "the server has ended after {passed} bytes");
                (&qemu).write_all(&piece[..n])?;
                passed += n;
                std::thread::sleep(Duration::from_millis(1));
            }
            qemu.shutdown(Shutdown::Both)?;
            server.shutdown(Shutdown::Both)?;
            Ok(())
        });
        let from = image.to_owned();
        let server = std::thread::spawn(move || Ready::open(&from)?.run(&relay, quiet));
        machine.go_on()?;
        breaking.join().expect("the relay does not panic")?;
        let failed = server.join().expect("the server does not panic").expect_err("it was cut off");
        println!("the first server says: {failed}");
        machine.migration("postcopy-paused")?;
        Ok(machine)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // Fails when nothing is mounted there, as in most tests.
        unmount(self.image("small"), UnmountFlags::DETACH).ok();
    }
}

impl Machine {
    fn capabilities(&mut self, names: &[&str], on: bool) -> Result<Value> {
        let states = names.iter().chain(&["events"]);
        let states: Vec<Value> =
            states.map(|name| json!({ "capability": name, "state": on || *name == "events" })).collect();
        self.vm.qmp().execute("migrate-set-capabilities", json!({ "capabilities": states }))
    }

    /// Takes the memory of the running machine.
    pub(crate) fn capture(&mut self, image: &Path) -> Result<()> {
        let socket = self.folder.path().join("out");
        let listener = UnixListener::bind(&socket)?;
        let from = self.vm.qmp().mark();
        self.begin_background(&socket)?;
        let (stream, _) = listener.accept()?;
        let captured = capture(stream, image, b"{}", quiet);
        std::fs::remove_file(&socket)?;
        let wanted = if captured.is_ok() { "completed" } else { "failed" };
        self.migration_since(wanted, from)?;
        println!("{:?}", captured?);
        Ok(())
    }

    /// Stops the machine, for good or until [`Machine::cont`].
    pub(crate) fn stop(&mut self) -> Result<()> {
        self.vm.qmp().execute("stop", json!({})).map(drop)
    }

    pub(crate) fn cont(&mut self) -> Result<()> {
        self.vm.qmp().execute("cont", json!({})).map(drop)
    }

    /// Takes the memory of the machine that stands still, and has it stay as it is.
    pub(crate) fn capture_at_rest(&mut self, image: &Path) -> Result<()> {
        let socket = self.folder.path().join("out");
        let listener = UnixListener::bind(&socket)?;
        let from = self.vm.qmp().mark();
        self.capabilities(&["postcopy-ram", "background-snapshot"], false)?;
        self.capabilities(&["return-path"], true)?;
        self.vm.qmp().execute("migrate", json!({ "uri": uri(&socket) }))?;
        let (stream, _) = listener.accept()?;
        let captured = capture_and_decline(stream, image, b"{}", quiet);
        std::fs::remove_file(&socket)?;
        self.migration_since("failed", from)?;
        println!("{:?}", captured?);
        let status = self.vm.qmp().execute("query-status", json!({}))?;
        ensure!(status["status"] == "paused", "the machine is {status}");
        Ok(())
    }

    /// QEMU refuses a snapshot for some 50 ms after it has finished another, or has just taken in its memory.
    fn begin_background(&mut self, socket: &Path) -> Result<()> {
        let deadline = Instant::now() + STEP;
        loop {
            let mut ask = || -> Result<Value> {
                self.capabilities(&["postcopy-ram", "return-path"], false)?;
                self.capabilities(&["background-snapshot"], true)?;
                self.vm.qmp().execute("migrate", json!({ "uri": uri(socket) }))
            };
            match ask() {
                Ok(_) => return Ok(()),
                Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(20)),
                Err(e) => return Err(e),
            }
        }
    }

    /// Waits until the device state is in, then lets the machine run.
    fn go_on(&mut self) -> Result<()> {
        let deadline = Instant::now() + STEP;
        loop {
            let status = self.vm.qmp().execute("query-status", json!({}))?;
            match status["status"].as_str() {
                Some("paused") => break,
                Some("inmigrate") if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(2)),
                _ => bail!("the machine is {status}"),
            }
        }
        self.vm.qmp().execute("cont", json!({}))?;
        Ok(())
    }

    /// Has QEMU listen for another page server.
    pub(crate) fn recover(&mut self) -> Result<PathBuf> {
        let socket = self.folder.path().join("again");
        self.vm.qmp().execute("migrate-recover", json!({ "uri": uri(&socket) }))?;
        Ok(socket)
    }

    /// Waits until QEMU has taken in everything.
    pub(crate) fn all_in(&mut self) -> Result<()> {
        self.migration("completed")
    }

    fn migration(&mut self, status: &str) -> Result<()> {
        self.migration_since(status, 0)
    }

    fn migration_since(&mut self, status: &str, from: usize) -> Result<()> {
        let last = |data: &Value| [status, "completed", "failed"].iter().any(|s| data["status"] == *s);
        let event = self.vm.qmp().wait_event_like("MIGRATION", from, STEP, last)?;
        ensure!(event["data"]["status"] == status, "not {status} but {event}");
        Ok(())
    }

    /// Waits for the guest to say that many more times that all its pages are as they should be.
    pub(crate) fn sound_passes(&mut self, count: usize) -> Result<()> {
        let from = self.vm.console().mark();
        let (mut seen, mut last) = (0, self.last_pass);
        let bad = self.vm.expect(from, PASS, "a check of all pages", |line| {
            let (number, bad) = pass(line)?;
            (seen, last) = (seen + 1, number);
            (bad != 0 || seen >= count).then_some(bad)
        })?;
        ensure!(bad == 0, "{bad} pages of the guest are wrong");
        self.last_pass = last;
        Ok(())
    }

    pub(crate) fn end(self) -> Result<()> {
        self.vm.kill()
    }
}

/// `PAGES pass bad`, as `guest/pages.c` writes it.
fn pass(line: &str) -> Option<(u64, u64)> {
    let (n, bad) = line.strip_prefix("PAGES ")?.trim().split_once(' ')?;
    Some((n.parse().ok()?, bad.parse().ok()?))
}

fn uri(socket: &Path) -> String {
    format!("unix:{}", socket.display())
}
