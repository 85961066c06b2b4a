//! Where a machine's files are, and the record beside its process from which a later agent knows it.
//!
//! A folder belongs to a process. The first is called as the machine is; while the process in it is set aside, what is started
//! instead has another, `VM-1` or, should that be set aside as well, `VM-2`. The logs are the machine's and stay where they are.
//!
//! The record holds what was *wished*: an agent that dies in the middle of stopping a guest for a moment leaves a process
//! that stands still and a record that says it should run, and the next agent makes one agree with the other.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use keyframe_agent_api::{Accelerator, DiskId, Machine, SnapshotId, Timestamp, VmId};
use serde::{Deserialize, Serialize};

use crate::durable::with_spare;
use crate::hypervisor::BlockAddress;

/// Files and sockets of one machine's process.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) dir: PathBuf,
    sockets: PathBuf,
    /// The machine's first folder.
    home: PathBuf,
}

/// A Unix socket's path has room for 107 bytes; the longest name here takes this many.
const LONGEST_DIR: usize = 107 - "/memory.sock".len();

impl Place {
    /// Sockets go below `short` where the path would not fit otherwise.
    pub(super) fn new(machines: &Path, short: &Path, vm: VmId, number: u32) -> Place {
        let more = if number == 0 { String::new() } else { format!("-{number}") };
        let dir = machines.join(format!("{vm}{more}"));
        let fits = dir.as_os_str().len() <= LONGEST_DIR;
        let sockets = if fits { dir.clone() } else { short.join(format!("{}{more}", vm.uuid().simple())) };
        Place { dir, sockets, home: machines.join(vm.to_string()) }
    }

    /// Whose folder has that name, and which of its folders it is.
    pub(super) fn parse(name: &str) -> Option<(VmId, u32)> {
        const ID: usize = "00000000-0000-0000-0000-000000000000".len();
        let (vm, more) = name.split_at_checked(ID)?;
        let number = if more.is_empty() { 0 } else { more.strip_prefix('-')?.parse().ok()? };
        Some((vm.parse().ok()?, number))
    }

    /// The name of the folder, which no other process of a machine shares.
    pub(super) fn name(&self) -> String {
        self.dir.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Whether it is the machine's first, in which other things of the machine are, too.
    pub(super) fn is_home(&self) -> bool {
        self.dir == self.home
    }

    /// Leaves it as if no process had been here.
    pub(super) fn leave(&self) -> io::Result<()> {
        self.sweep();
        if !self.is_home() {
            return self.remove();
        }
        remove_file(&self.record());
        Ok(())
    }

    pub(super) fn create(&self) -> io::Result<()> {
        fs::create_dir_all(&self.home)?;
        fs::create_dir_all(&self.dir)?;
        fs::create_dir_all(&self.sockets)
    }

    /// Removes everything, whatever is there.
    pub(super) fn remove(&self) -> io::Result<()> {
        self.drop_image();
        for dir in [&self.sockets, &self.dir] {
            match fs::remove_dir_all(dir) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        Ok(())
    }

    /// Removes what a process that is gone has left.
    pub(super) fn sweep(&self) {
        for path in [self.qmp(), self.agent(), self.console(), self.vnc(), self.memory(), self.pid(), self.pending()] {
            remove_file(&path);
        }
        // Whatever the guest's file systems were ended with it. Of the next guest nobody may say that it is frozen.
        remove_file(&self.frozen());
        self.drop_image();
        for path in [self.damage(), self.spare(), self.kept()] {
            remove_file(&path);
        }
    }

    /// Gives the machine a name of its own for an image: [`image`](Place::image). One on another file system gets it there,
    /// and is led to from here.
    pub(super) fn keep_image(&self, image: &Path) -> io::Result<()> {
        match fs::hard_link(image, self.image()) {
            Err(e) if e.kind() == io::ErrorKind::CrossesDevices => {}
            done => return done,
        }
        let there = image.with_file_name(self.name()).with_extension("loading");
        // This first, because it is how the other is found.
        std::os::unix::fs::symlink(&there, self.image())?;
        remove_file(&there);
        fs::hard_link(image, there)
    }

    /// Removes that name.
    pub(super) fn drop_image(&self) {
        if let Ok(there) = fs::read_link(self.image()) {
            remove_file(&there);
        }
        remove_file(&self.image());
    }

    /// Puts the log of the last process aside, so that what is in the log is of the next one.
    pub(super) fn new_log(&self) -> io::Result<()> {
        match fs::rename(self.log(), self.home.join("qemu.log.old")) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    pub(super) fn qmp(&self) -> PathBuf {
        self.sockets.join("qmp.sock")
    }
    /// A second monitor, while memory comes.
    pub(super) fn spare(&self) -> PathBuf {
        self.sockets.join("spare.sock")
    }
    /// Which of the process's sockets is our end of that.
    pub(super) fn kept(&self) -> PathBuf {
        self.dir.join("memory.spare")
    }
    pub(super) fn agent(&self) -> PathBuf {
        self.sockets.join("qga.sock")
    }
    pub(super) fn console(&self) -> PathBuf {
        self.sockets.join("console.sock")
    }
    pub(super) fn vnc(&self) -> PathBuf {
        self.sockets.join("vnc.sock")
    }
    /// Memory goes through here, out or in.
    pub(super) fn memory(&self) -> PathBuf {
        self.sockets.join("memory.sock")
    }
    pub(super) fn pid(&self) -> PathBuf {
        self.dir.join("pid")
    }
    pub(super) fn log(&self) -> PathBuf {
        self.home.join("qemu.log")
    }
    pub(super) fn console_log(&self) -> PathBuf {
        self.home.join("console.log")
    }
    pub(super) fn seed(&self) -> PathBuf {
        self.dir.join("seed.img")
    }
    /// What the page server says about itself.
    pub(super) fn pending(&self) -> PathBuf {
        self.dir.join("memory.pending")
    }
    /// Why no page server can do it, if that is so.
    pub(super) fn damage(&self) -> PathBuf {
        self.dir.join("memory.damage")
    }
    /// The image that its memory comes from, whatever becomes of that under its own name.
    pub(super) fn image(&self) -> PathBuf {
        self.dir.join("memory.kfm")
    }
    /// There while file systems may be frozen.
    pub(super) fn frozen(&self) -> PathBuf {
        self.dir.join("frozen")
    }
    fn record(&self) -> PathBuf {
        self.dir.join("machine.json")
    }

    pub(super) fn read_record(&self) -> io::Result<Record> {
        let text = fs::read(self.record())?;
        serde_json::from_slice(&text).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
    }

    /// Replaces the record. It need not survive the host, for the process does not either.
    pub(super) fn write_record(&self, record: &Record) -> io::Result<()> {
        let draft = self.dir.join("machine.json.new");
        let text = serde_json::to_vec_pretty(record)?;
        let write = || fs::write(&draft, &text).and_then(|()| fs::rename(&draft, self.record()));
        let is_full = |e: &io::Error| e.kind() == io::ErrorKind::StorageFull;
        with_spare(self.dir.parent().unwrap_or(&self.dir), is_full, write)
    }
}

/// Removes a file that may not be there.
pub(super) fn remove_file(path: &Path) {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => tracing::warn!("remove {}: {e}", path.display()),
        _ => {}
    }
}

/// How long a log may grow, and what is kept of it then.
const LONGEST_LOG: u64 = 16 << 20;
const KEPT_OF_LOG: u64 = 4 << 20;

/// Keeps the end of a log that has grown too long. Whoever writes it appends, and loses at most what it writes just then.
pub(super) fn shorten(log: &Path) -> io::Result<()> {
    let mut file = match fs::File::options().read(true).append(true).open(log) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened?,
    };
    let length = file.metadata()?.len();
    if length <= LONGEST_LOG {
        return Ok(());
    }
    let mut kept = Vec::new();
    file.seek(SeekFrom::Start(length - KEPT_OF_LOG))?;
    (&file).take(KEPT_OF_LOG * 2).read_to_end(&mut kept)?;
    file.set_len(0)?;
    file.write_all(&kept)
}

/// What a machine is and should be doing.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) machine: Machine,
    pub(super) blocks: BTreeMap<DiskId, BlockAddress>,
    pub(super) wish: Wish,
    /// The image it was resumed from, as long as some of its memory may still be there.
    pub(super) memory: Option<PathBuf>,
    pub(super) accelerator: Accelerator,
    #[serde(default = "Ports::of_old")]
    pub(super) ports: Ports,
    pub(super) since: Timestamp,
    /// It is set aside: all that is left of it is its memory, which that snapshot is to have.
    #[serde(default)]
    pub(super) aside: Option<SnapshotId>,
}

/// How many places for devices a process has. Each costs every start some milliseconds, so there are no more than may be
/// needed; those of a process that goes on from an image are the image's.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Ports {
    pub(super) disks: u8,
    pub(super) nics: u8,
    pub(super) seed: bool,
}

impl Ports {
    /// Most places for disks.
    pub(super) const DISKS: u8 = 24;
    /// Most places for network interfaces.
    pub(super) const NICS: u8 = 8;
    /// Places for disks that come while the guest runs.
    const SPARE: u8 = 4;

    /// What records and images mean that do not say it.
    pub(super) fn of_old() -> Ports {
        Ports { disks: Ports::DISKS, nics: Ports::NICS, seed: true }
    }

    /// Of a machine that is started anew.
    pub(super) fn of(machine: &Machine) -> Ports {
        let used = Ports::used(machine);
        Ports { disks: used.disks.saturating_add(Ports::SPARE).min(Ports::DISKS), ..used }
    }

    /// Whether all devices of a machine have a place.
    pub(super) fn hold(self, machine: &Machine) -> bool {
        let used = Ports::used(machine);
        used.disks <= self.disks && used.nics <= self.nics && used.seed <= self.seed
    }

    fn used(machine: &Machine) -> Ports {
        let behind = |slots: &mut dyn Iterator<Item = u8>| slots.max().map_or(0, |last| last.saturating_add(1));
        let plugged = machine.disks.iter().filter(|disk| !disk.firmware_variables);
        Ports {
            disks: behind(&mut plugged.map(|disk| disk.slot)),
            nics: behind(&mut machine.nics.iter().map(|nic| nic.slot)),
            seed: machine.cloud_init.is_some(),
        }
    }
}

/// What is wanted of a process.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Wish {
    /// It is being started; half a machine is worth nothing.
    Starting,
    /// The guest runs.
    Running,
    /// The guest stands still.
    Paused,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_log_that_is_too_long_the_end_is_kept() {
        let dir = tempfile::tempdir().expect("a folder");
        let log = dir.path().join("log");
        shorten(&log).expect("none is short enough");
        let mut writer = fs::File::options().create(true).append(true).open(&log).expect("a log");
        writer.write_all(b"first words").expect("there is room");
        shorten(&log).expect("it is short enough");
        assert_eq!(fs::read(&log).expect("it is there"), b"first words");
        let much = vec![b'x'; LONGEST_LOG as usize];
        writer.write_all(&much).and_then(|()| writer.write_all(b"last words")).expect("there is room");
        shorten(&log).expect("it can be shortened");
        writer.write_all(b", and more").expect("there is room");
        let text = fs::read(&log).expect("it is there");
        assert_eq!(text.len() as u64, KEPT_OF_LOG + 10);
        assert!(text.ends_with(b"xlast words, and more") && text.starts_with(b"x"));
    }

    #[test]
    fn folders_are_known_by_their_names() {
        let vm = VmId::new();
        for number in [0, 1, 12] {
            let place = Place::new(Path::new("/vms"), Path::new("/short"), vm, number);
            assert_eq!(Place::parse(&place.name()), Some((vm, number)));
            let place = Place::new(&Path::new("/vms").join("x".repeat(90)), Path::new("/short"), vm, number);
            assert!(place.qmp().starts_with("/short") && place.qmp().as_os_str().len() < 107, "{place:?}");
        }
        for name in ["", "accelerator.json", &format!("{vm}-"), &format!("{vm}1"), &format!("{vm}-x")] {
            assert_eq!(Place::parse(name), None, "{name}");
        }
    }

    /// Otherwise each agent that takes over the next process looks for an end of what never began.
    #[test]
    fn a_guest_that_ended_while_it_was_frozen_leaves_no_mark_to_the_next() {
        let vms = tempfile::tempdir().expect("a folder");
        let place = Place::new(vms.path(), vms.path(), VmId::new(), 0);
        place.create().expect("a folder for the machine");
        fs::write(place.frozen(), b"").expect("there is room");
        place.sweep();
        assert!(!place.frozen().exists(), "the next guest is said to be frozen");
    }

    /// Whoever loads from an image has it, whatever becomes of it under its own name, and wherever images lie.
    #[test]
    fn an_image_stays_for_whoever_loads_from_it() {
        let vms = tempfile::tempdir().expect("a folder");
        let elsewhere = tempfile::tempdir_in("/dev/shm").expect("another file system");
        for images in [vms.path().join("images"), elsewhere.path().to_owned()] {
            fs::create_dir_all(&images).expect("a folder for images");
            let place = Place::new(vms.path(), vms.path(), VmId::new(), 1);
            place.create().expect("a folder for the machine");
            let ends: [fn(&Place); 2] = [Place::sweep, |place| place.remove().expect("it can be removed")];
            for end in ends {
                let image = images.join("image.kfm");
                fs::write(&image, b"memory").expect("there is room");
                let kept = super::super::load::keep(&place, &image);
                fs::remove_file(&image).expect("it is there");
                assert_eq!(fs::read(&kept).expect("it is gone"), b"memory");
                end(&place);
                assert_eq!(fs::read_dir(&images).expect("it is there").count(), 0, "left in {}", images.display());
            }
        }
    }
}
