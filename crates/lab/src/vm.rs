//! One virtual machine: a QEMU process with its console, monitor, agent port and command port.
//!
//! Every device has a fixed PCI address, so that a saved machine state fits a machine started later.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::console::{Console, Mark};
use crate::guest::Guest;
use crate::kvm::Accelerator;
use crate::process::{Ending, Process};
use crate::qga::Agent;
use crate::qmp::{Qmp, connect_when_there};

/// What a disk of a machine is backed by.
#[derive(Clone, Debug)]
pub enum Disk {
    /// A raw image file.
    File(PathBuf),
    /// An export of an NBD server on a Unix socket.
    Nbd {
        /// The server's socket.
        socket: PathBuf,
        /// The export's name.
        export: String,
    },
}

/// What a machine is to be.
pub struct VmSpec<'a> {
    /// Shown in messages.
    pub name: &'a str,
    /// RAM in MiB.
    pub memory_mib: u32,
    /// In the order `/dev/vda`, `/dev/vdb`, …
    pub disks: Vec<Disk>,
    /// Added to the kernel command line, for example `lab=stamp`.
    pub command_line: &'a str,
}

/// A running machine; ended when dropped.
pub struct Vm {
    process: Process,
    console: Console,
    qmp: Qmp,
    channel: UnixStream,
    agent: Option<Agent>,
    sockets: TempDir,
    started: Instant,
    name: String,
}

/// Emulated, beside other machines, on a busy host: many times what a boot takes on a quiet one.
pub const BOOT: Duration = Duration::from_secs(180);
/// What the guest prints when something is wrong with its disks.
pub(crate) const COMPLAINTS: [&str; 5] =
    ["STAMP-BAD", "STAMP-FAILED", "PAGES-FAILED", "GUEST-NO-ROOT", "GUEST-NO-DATA"];
/// How long the disk waits for a server that went away, before the guest sees an error.
const RECONNECT_SECONDS: u32 = 300;

impl Vm {
    /// Starts the machine; returns as soon as its monitor answers.
    pub fn boot(spec: &VmSpec<'_>, guest: &Guest, accelerator: Accelerator) -> Result<Vm> {
        Vm::start(spec, guest, accelerator, &[])
    }

    /// Starts a machine that waits for `migrate-incoming` and then for `cont`; returns as soon as its monitor answers.
    pub fn await_migration(spec: &VmSpec<'_>, guest: &Guest, accelerator: Accelerator) -> Result<Vm> {
        Vm::start(spec, guest, accelerator, &["-incoming", "defer", "-S"])
    }

    fn start(spec: &VmSpec<'_>, guest: &Guest, accelerator: Accelerator, more: &[&str]) -> Result<Vm> {
        // Not below the repository: a Unix socket's path has room for about a hundred bytes.
        let sockets = tempfile::Builder::new().prefix("keyframe-vm-").tempdir()?;
        let started = Instant::now();
        let mut command = qemu(spec, guest, accelerator, sockets.path());
        command.args(more);
        let mut process = Process::spawn(spec.name, &mut command, Ending::Kill, &sockets.path().join("log"))?;
        let console = Console::follow(process.take_output().context("the machine has no console")?);
        let connect = || -> Result<(Qmp, UnixStream)> {
            let qmp = Qmp::connect(&sockets.path().join("qmp"), Duration::from_secs(20))?;
            let channel = connect_when_there(&sockets.path().join("lab"), Duration::from_secs(5))?;
            Ok((qmp, channel))
        };
        let (qmp, channel) = match connect() {
            Ok(both) => both,
            // A dead process explains itself better than a missing socket does.
            Err(e) => return Err(process.check_running().err().unwrap_or(e)),
        };
        let name = spec.name.to_owned();
        Ok(Vm { process, console, qmp, channel, agent: None, sockets, started, name })
    }

    /// Waits until the guest is up; returns the time since the start of its process.
    pub fn ready(&self) -> Result<Duration> {
        self.expect(Mark::default(), BOOT, "GUEST-READY", |line| line.starts_with("GUEST-READY").then_some(()))?;
        Ok(self.started.elapsed())
    }

    /// The serial console.
    pub fn console(&self) -> &Console {
        &self.console
    }

    /// The monitor.
    pub fn qmp(&mut self) -> &mut Qmp {
        &mut self.qmp
    }

    /// The guest agent; connects at the first use.
    pub fn agent(&mut self) -> Result<&mut Agent> {
        let agent = match self.agent.take() {
            Some(agent) => agent,
            None => Agent::connect(&self.sockets.path().join("qga"), BOOT)
                .with_context(|| format!("reach the guest agent of {}", self.name))?,
        };
        Ok(self.agent.insert(agent))
    }

    /// Sends one line to the guest's command port; see `guest/init` for what it understands.
    pub fn tell(&mut self, line: &str) -> Result<()> {
        writeln!(self.channel, "{line}").with_context(|| format!("tell {} '{line}'", self.name))
    }

    /// Waits on the console; a complaint of the guest ends the wait at once.
    pub fn expect<T>(
        &self,
        from: Mark,
        patience: Duration,
        what: &str,
        mut pick: impl FnMut(&str) -> Option<T>,
    ) -> Result<T> {
        let complaint = |line: &str| COMPLAINTS.iter().any(|c| line.starts_with(c)).then(|| anyhow!("it says: {line}"));
        self.console
            .wait_for(from, patience, what, |line| complaint(line).map(Err).or_else(|| pick(line).map(Ok)))
            .flatten()
            .with_context(|| format!("follow the guest {}", self.name))
    }

    /// Ends QEMU at once: to the guest, a power failure.
    pub fn kill(mut self) -> Result<()> {
        self.process.kill().with_context(|| format!("kill {}", self.name))
    }

    /// Waits until the guest has powered itself off.
    pub fn wait_off(mut self, patience: Duration) -> Result<()> {
        self.process.wait(patience).map(drop)
    }
}

fn qemu(spec: &VmSpec<'_>, guest: &Guest, accelerator: Accelerator, sockets: &Path) -> Command {
    let memory = spec.memory_mib;
    let socket = |id: &str| format!("socket,id={id},path={},server=on,wait=off", sockets.join(id).display());
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args(["-name", spec.name])
        .args(accelerator.options())
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
        .args(["-machine", "q35,usb=off,vmport=off,memory-backend=ram0"])
        .args(["-m", &memory.to_string()])
        .args(["-object", &format!("memory-backend-ram,id=ram0,size={memory}M")])
        .args(["-device", "virtio-serial-pci,id=vs0,bus=pcie.0,addr=0x3"])
        .args(["-chardev", &socket("qga")])
        .args(["-device", "virtserialport,bus=vs0.0,nr=1,chardev=qga,name=org.qemu.guest_agent.0"])
        .args(["-chardev", &socket("lab")])
        .args(["-device", "virtserialport,bus=vs0.0,nr=2,chardev=lab,name=lab"])
        .args(["-chardev", &socket("qmp"), "-mon", "chardev=qmp,mode=control"])
        .args(["-serial", "stdio"])
        .stdout(Stdio::piped());
    for (i, disk) in spec.disks.iter().enumerate() {
        let address = 0x5 + i;
        command.args(["-blockdev", &blockdev(i, disk).to_string()]).args([
            "-device",
            &format!("virtio-blk-pci,id=blk{i},drive=disk{i},bus=pcie.0,addr={address:#x},serial=disk{i}"),
        ]);
    }
    command.arg("-kernel").arg(&guest.kernel).arg("-initrd").arg(&guest.initrd);
    command.args(["-append", &format!("console=ttyS0 quiet panic=-1 {}", spec.command_line)]);
    command
}

fn blockdev(index: usize, disk: &Disk) -> Value {
    let file = match disk {
        Disk::File(path) => json!({ "driver": "file", "filename": path }),
        Disk::Nbd { socket, export } => json!({
            "driver": "nbd",
            "server": { "type": "unix", "path": socket },
            "export": export,
            "reconnect-delay": RECONNECT_SECONDS,
        }),
    };
    json!({ "driver": "raw", "node-name": format!("disk{index}"), "file": file, "discard": "unmap" })
}
