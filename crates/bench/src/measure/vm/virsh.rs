//! A libvirt of its own: its folders are bound over the system's in this process's mount namespace, so that it neither sees nor
//! disturbs a libvirt that the machine may have. Needs root.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use keyframe_lab::guest::Guest;
use keyframe_lab::process::{Ending, Process, run_tool};
use keyframe_lab::scratch;

use crate::guest::{self, Followed};
use crate::place::Place;
use crate::servers::qcow2;
use crate::tool::tool;

const FOLDERS: [&str; 5] =
    ["/etc/libvirt", "/var/lib/libvirt", "/var/log/libvirt", "/var/cache/libvirt", "/run/libvirt"];
const SOCKET: &str = "/run/libvirt/libvirt-sock";
const PATIENCE: Duration = Duration::from_secs(30);
/// It is alone here, and there is neither systemd nor a security module to ask.
const QEMU: &str = "user = \"root\"\ngroup = \"root\"\nsecurity_driver = \"none\"\ncgroup_controllers = []\nnamespaces = []\n\
    stdio_handler = \"file\"\nremember_owner = 0\n";
/// The processor that Keyframe gives to emulated guests.
const FEATURES: [&str; 6] = ["ssse3", "sse4.1", "sse4.2", "popcnt", "cx16", "lahf_lm"];

/// A running libvirtd.
pub(super) struct Libvirt {
    folder: PathBuf,
    daemon: Option<Process>,
}

/// A machine of it.
pub(super) struct Domain<'a> {
    pub(super) name: String,
    pub(super) followed: Followed,
    pub(super) folder: PathBuf,
    libvirt: &'a Libvirt,
}

impl Libvirt {
    pub(super) fn start(place: &Place) -> Result<Libvirt> {
        let folder = place.file("libvirt");
        for target in FOLDERS {
            let mine = folder.join(target.trim_start_matches('/').replace('/', "-"));
            fs::create_dir_all(&mine)?;
            fs::create_dir_all(target).with_context(|| format!("create {target}"))?;
            run_tool(tool("mount").arg("--bind").arg(&mine).arg(target))?;
        }
        fs::write("/etc/libvirt/qemu.conf", QEMU)?;
        fs::write("/etc/libvirt/libvirtd.conf", "auth_unix_rw = \"none\"\n")?;
        let mut command = tool("libvirtd");
        command
            .args(["--config", "/etc/libvirt/libvirtd.conf", "--pid-file", "/run/libvirt/daemon.pid"])
            .stdout(Stdio::null());
        let mut daemon = Process::spawn("libvirtd", &mut command, Ending::Ask, &folder.join("libvirtd.log"))?;
        let deadline = Instant::now() + PATIENCE;
        while UnixStream::connect(SOCKET).is_err() {
            daemon.check_running()?;
            ensure!(Instant::now() < deadline, "libvirtd does not listen: {}", daemon.last_words());
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(Libvirt { folder, daemon: Some(daemon) })
    }

    pub(super) fn virsh(&self, line: &[&str]) -> Result<String> {
        run_tool(tool("virsh").args(["--quiet", "--connect", "qemu:///system"]).args(line))
    }

    /// Starts a machine of the test guest's two disks, in qcow2, and waits until its guest is busy.
    pub(super) fn boot(&self, guest: &Guest, name: &str, mib: u64) -> Result<Domain<'_>> {
        let folder = self.folder.join(name);
        fs::create_dir(&folder)?;
        let root = qcow2(&guest.root_image, folder.join("root.qcow2"))?;
        let data = qcow2(&guest.data_image, folder.join("data.qcow2"))?;
        let (orders, console) = (folder.join("orders.sock"), folder.join("console"));
        let text = describe(guest, name, mib, [&root, &data], [&console, &orders]);
        let file = folder.join("domain.xml");
        fs::write(&file, text)?;
        let followed = guest::follow(&console, &folder.join("tail.log"))?;
        self.virsh(&["define", &file.display().to_string()])?;
        self.virsh(&["start", name])?;
        let domain = Domain { name: name.to_owned(), followed, folder, libvirt: self };
        domain.wait("GUEST-READY")?;
        let open = guest::order(&orders, &format!("run {}; echo DONE", guest::fill(mib)))?;
        domain.wait("DONE")?;
        drop(open);
        Ok(domain)
    }
}

impl Domain<'_> {
    /// Runs `virsh VERB NAME MORE…`.
    pub(super) fn act(&self, verb: &str, more: &[&str]) -> Result<String> {
        let line: Vec<&str> = [verb, &self.name].into_iter().chain(more.iter().copied()).collect();
        self.libvirt.virsh(&line)
    }

    fn wait(&self, word: &str) -> Result<()> {
        let console = &self.followed.console;
        console.wait_for(Default::default(), guest::PATIENCE, word, |line| line.starts_with(word).then_some(()))
    }
}

impl Drop for Libvirt {
    fn drop(&mut self) {
        scratch::kill_those_of(&self.folder);
        drop(self.daemon.take());
        for target in FOLDERS {
            // Reached on the way out only; the namespace ends with this process.
            run_tool(tool("umount").arg("--lazy").arg(target)).ok();
        }
    }
}

fn describe(guest: &Guest, name: &str, mib: u64, disks: [&Path; 2], [console, orders]: [&Path; 2]) -> String {
    let features: Vec<String> =
        FEATURES.iter().map(|name| format!("<feature policy='require' name='{name}'/>")).collect();
    let disks: Vec<String> = ["vda", "vdb"]
        .iter()
        .zip(disks)
        .map(|(at, file)| {
            format!(
                "<disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='none' io='native'/>\
                 <source file='{}'/><target dev='{at}' bus='virtio'/></disk>",
                file.display()
            )
        })
        .collect();
    format!(
        "<domain type='qemu'><name>{name}</name><memory unit='MiB'>{mib}</memory><vcpu>1</vcpu>\
         <os><type arch='x86_64' machine='q35'>hvm</type><kernel>{}</kernel><initrd>{}</initrd>\
         <cmdline>console=ttyS0 quiet panic=-1 {}</cmdline></os><features><acpi/></features>\
         <cpu mode='custom' match='exact' check='none'><model fallback='allow'>qemu64</model>{}</cpu>\
         <devices><emulator>/usr/bin/qemu-system-x86_64</emulator>{}\
         <interface type='user'><model type='virtio'/></interface>\
         <serial type='file'><source path='{}' append='on'/><target port='0'/></serial>\
         <channel type='unix'><source mode='bind' path='{}'/><target type='virtio' name='lab'/></channel>\
         <video><model type='vga'/></video><memballoon model='none'/></devices></domain>",
        guest.kernel.display(),
        guest.initrd.display(),
        guest::BUSY,
        features.concat(),
        disks.concat(),
        console.display(),
        orders.display(),
    )
}
