//! A machine goes on from a memory image.
//!
//! The guest runs as soon as its devices are loaded; its memory comes when it is touched, from a page server that is a
//! process of its own, so that neither the end of the agent nor the size of the memory stops the guest. Until all is in,
//! no new image can be taken. A page server that dies is replaced (`supply`); the guest waits on the first missing page
//! meanwhile.

use std::error::Error as _;
use std::fs;
use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command};
use std::time::{Duration, Instant};

use keyframe_agent_api::{Accelerator, Bytes, Fault, FaultKind, Machine, MemoryInfo};
use keyframe_memory::{ErrorKind, Front, Image, Progress};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::host::Host;
use super::place::{Place, Ports, remove_file};
use super::process::{self, Process};
use super::qmp::QmpError;
use super::{Live, Shared, Slot, command, helper, huge, spare};
use crate::Result;
use crate::hypervisor::{Cancel, Start};
use crate::work::Work;

/// Devices are loaded in a tenth of a second, on a busy host in seconds.
const LOAD: Duration = Duration::from_secs(60);
/// How often QEMU is asked, for it does not say when devices are loaded.
const ASK: Duration = Duration::from_millis(2);
/// A device that waits for a page keeps QEMU from answering.
const ANSWER: Duration = Duration::from_millis(250);
/// The longest that a capture waits for memory that is still coming.
const ALL_IN: Duration = Duration::from_secs(600);

/// What became of storing a memory.
pub(super) type Stored = std::result::Result<(), keyframe_memory::Error>;

/// What is kept with an image, to tell later where it can be resumed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Description {
    hypervisor: String,
    machine_type: String,
    accelerated: bool,
    memory: Bytes,
    cpus: u32,
    #[serde(default = "Ports::of_old")]
    ports: Ports,
}

impl Description {
    pub(super) fn of(live: &Live) -> Description {
        let record = live.record.lock();
        Description {
            // The machine may have been started before the host got another.
            hypervisor: super::host::named(&live.qmp.version()),
            machine_type: record.machine.machine_type.clone(),
            accelerated: record.accelerator == Accelerator::Kvm,
            memory: record.machine.memory,
            cpus: record.machine.cpus,
            ports: record.ports,
        }
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        json!(self).to_string().into_bytes()
    }
}

/// The kind of fault that an image's error is.
pub(super) fn kind(e: &keyframe_memory::Error) -> FaultKind {
    match e.kind() {
        ErrorKind::NoSpace => FaultKind::NoSpace,
        ErrorKind::Corrupt | ErrorKind::NotAnImage => FaultKind::Corrupt,
        ErrorKind::NewerFormat | ErrorKind::Unsupported => FaultKind::Unsupported,
        ErrorKind::Cancelled => FaultKind::Conflict,
        ErrorKind::Io | ErrorKind::BadStream | ErrorKind::PeerGone | ErrorKind::Refused => FaultKind::Internal,
    }
}

/// An error with its causes.
pub(super) fn chain(e: &keyframe_memory::Error) -> String {
    match e.source() {
        Some(source) => format!("{e}: {source}"),
        None => e.to_string(),
    }
}

/// What is wrong with an image, which the error names.
fn unusable(e: &keyframe_memory::Error) -> Fault {
    Fault::new(kind(e), chain(e))
}

fn about(image: &Path, kind: FaultKind, why: &dyn std::fmt::Display) -> Fault {
    Fault::new(kind, format!("memory image {}: {why}", image.display()))
}

fn there(image: &Path) -> Result<()> {
    if image.exists() { Ok(()) } else { Err(about(image, FaultKind::NotFound, &"it is not there")) }
}

/// What stands beside RAM in an image; the rest would take the longer the more RAM there is.
fn open(image: &Path) -> Result<(Front, Description)> {
    there(image)?;
    let opened = Front::open(image).map_err(|e| unusable(&e))?;
    let description = serde_json::from_slice(opened.metadata()).map_err(|e| {
        about(image, FaultKind::Unsupported, &format_args!("it does not say what it is an image of: {e}"))
    })?;
    Ok((opened, description))
}

fn open_whole(image: &Path) -> Result<Image> {
    there(image)?;
    Image::open(image).map_err(|e| unusable(&e))
}

/// What is in an image. Whether it can be resumed here is for whoever asks to judge.
pub(super) fn describe(image: &Path) -> Result<MemoryInfo> {
    let (opened, description) = open(image)?;
    let stored = opened.allocated().map_err(|e| unusable(&e))?;
    Ok(MemoryInfo {
        memory: description.memory,
        stored: Bytes(stored),
        hypervisor: description.hypervisor,
        emulated: !description.accelerated,
        compressed: opened.is_compressed(),
    })
}

/// The same, with every page read and checked, a chunk at a time.
pub(super) fn verify(image: &Path, work: &Work) -> Result<MemoryInfo> {
    open_whole(image)?.verify(|progress| goes_on(work, progress)).map_err(|e| unusable(&e))?;
    describe(image)
}

pub(super) fn compress(image: &Path, work: &Work) -> Result<MemoryInfo> {
    open(image)?;
    keyframe_memory::compress(image, |progress| goes_on(work, progress)).map_err(|e| unusable(&e))?;
    describe(image)
}

fn goes_on(work: &Work, progress: Progress) -> bool {
    work.reached(progress.done, progress.total);
    !work.cancelled()
}

/// What QEMU itself would not notice, or not say clearly.
fn resumable(host: &Host, image: &Path, description: &Description) -> Result<()> {
    let refuse = |why: String| {
        Err(Fault::new(
            FaultKind::Unsupported,
            format!("memory image {}: {why}; its disks can be used", image.display()),
        ))
    };
    if description.accelerated != (*host.accelerator() == Accelerator::Kvm) {
        let how = |accelerated| if accelerated { "run by KVM" } else { "emulated" };
        let here = how(!description.accelerated);
        return refuse(format!("the guest was {}, here guests are {here}", how(description.accelerated)));
    }
    if !host.knows(&description.machine_type) {
        return refuse(format!("{} knows no machine type {}", host.version(), description.machine_type));
    }
    Ok(())
}

/// What a machine must have so that an image loads into it, beside what its description says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Needs {
    pub(super) ports: Ports,
    /// How many of QEMU's own networks left their state in the image: each has a section of this name.
    pub(super) user_networks: usize,
}

/// Whether `image` can be resumed here, by that machine, and what that takes.
pub(super) fn check(host: &Host, image: &Path, machine: &Machine) -> Result<Needs> {
    const USER_NETWORK: &[u8] = b"\x05slirp";
    let (opened, description) = open(image)?;
    resumable(host, image, &description)?;
    let same = description.machine_type == machine.machine_type
        && description.memory == machine.memory
        && description.cpus == machine.cpus
        && description.ports.hold(machine);
    if !same {
        let mebibytes = description.memory.0 >> 20;
        let is = format!("{}, {} processors, {mebibytes} MiB", description.machine_type, description.cpus);
        let why = format!("is of another machine than {} ({is})", machine.name);
        return Err(Fault::new(FaultKind::Invalid, format!("memory image {} {why}", image.display())));
    }
    let devices = opened.devices();
    let sections = devices.bytes[..devices.sections].windows(USER_NETWORK.len());
    let user_networks = sections.filter(|window| *window == USER_NETWORK).count();
    Ok(Needs { ports: description.ports, user_networks })
}

/// Gives the machine a name of its own for the image, which stays until all memory is in: deleting or replacing the image
/// meanwhile is nothing to the guest.
pub(super) fn keep(place: &Place, image: &Path) -> PathBuf {
    match place.keep_image(image) {
        Ok(()) => place.image(),
        Err(e) => {
            tracing::warn!("{} must stay while a guest loads from it: {e}", image.display());
            image.to_owned()
        }
    }
}

/// What a page server has found that makes the image worthless.
pub(super) fn damage(place: &Place) -> Option<String> {
    fs::read_to_string(place.damage()).ok()
}

/// That, said of the image by the name that whoever asked knows.
pub(super) fn damaged(slot: &Slot, image: &Path, why: &str) -> Fault {
    let why = why.replace(&*slot.place.image().to_string_lossy(), &image.to_string_lossy());
    slot.fault(FaultKind::Corrupt, "load its memory", format!("{why}; its disks can be used without it"))
}

/// Where QEMU and a page server meet.
pub(super) fn uri(place: &Place) -> Value {
    json!({ "uri": format!("unix:{}", place.memory().display()) })
}

/// Loads the devices; the memory comes later. The guest stands still afterwards.
pub(super) fn load(slot: &Slot, live: &Live, start: &Start<'_>, server: Option<Server>) -> Result<()> {
    let (Some(image), Some(server)) = (live.record.lock().memory.clone(), server) else { return Ok(()) };
    let run = |command: &str, arguments: Value| live.qmp.execute(command, arguments);
    let trouble = slot.monitor("load its memory");
    if start.new_identity {
        // QEMU itself would tell the network the address that is in the image.
        run("migrate-set-parameters", json!({ "announce-rounds": 0 })).map_err(&trouble)?;
        for nic in &start.machine.nics {
            run("set_link", json!({ "name": command::nic_id(nic.slot), "up": false })).map_err(&trouble)?;
        }
    }
    remove_file(&slot.place.memory());
    let lazy = json!({ "capabilities": [{ "capability": "postcopy-ram", "state": true }] });
    let uri = uri(&slot.place);
    match run("migrate-set-capabilities", lazy) {
        Ok(_) => {
            // Needed only if two die at once.
            if let Err(fault) = spare::leave(slot, live) {
                tracing::warn!("{fault}");
            }
            run("migrate-incoming", uri).map_err(&trouble)?;
            let server = server.go().map_err(slot.file("start its page server"))?;
            wait_until_loaded(slot, live, Some(&server))
        }
        Err(e) if e.is_refusal() => {
            tracing::warn!(vm = %slot.vm, "memory cannot come later on this host, so the guest waits for all of it: {e}");
            run("migrate-incoming", uri).map_err(&trouble)?;
            replay(slot, &image)?;
            wait_until_loaded(slot, live, None)?;
            all_is_in(slot, live)
        }
        Err(e) => Err(trouble(e)),
    }
}

/// A page server that opens its image while QEMU starts, and ends if it is never told that QEMU listens.
pub(super) struct Server {
    process: Process,
    word: ChildStdin,
}

impl Server {
    pub(super) fn ready(shared: &Shared, place: &Place, image: &Path) -> std::io::Result<Server> {
        let command = page_server(shared, place, image, "run")?;
        Process::spawn_told(command, &place.log()).map(|(process, word)| Server { process, word })
    }

    fn go(mut self) -> std::io::Result<Process> {
        match self.word.write_all(helper::GO) {
            // It has ended, and has said why.
            Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(self.process),
            told => told.map(|()| self.process),
        }
    }
}

/// Starts a page server that goes on where another one stopped.
pub(super) fn serve_on(shared: &Shared, place: &Place, image: &Path) -> std::io::Result<Process> {
    Process::spawn(page_server(shared, place, image, "recover")?, &place.log())
}

fn page_server(shared: &Shared, place: &Place, image: &Path, how: &str) -> std::io::Result<Command> {
    let mut command = helper::command(&shared.config, "memory-server")?;
    command.arg(image).args([place.memory(), place.pending(), place.damage()]).arg(how);
    Ok(command)
}

fn replay(slot: &Slot, image: &Path) -> Result<()> {
    let image = open_whole(image)?;
    let act = "load its memory";
    let stream = UnixStream::connect(slot.place.memory()).map_err(slot.file(act))?;
    keyframe_memory::replay(&image, &stream).map_err(|e| slot.fault(kind(&e), act, chain(&e)))?;
    stream.shutdown(Shutdown::Write).map_err(slot.file(act))
}

fn wait_until_loaded(slot: &Slot, live: &Live, server: Option<&Process>) -> Result<()> {
    let until = Instant::now() + LOAD;
    let failed = |why: String| Err(slot.fault(FaultKind::Internal, "load its memory", why));
    loop {
        // Before the question, so that the last answer is newer than its end.
        let server_ended = server.is_some_and(Process::has_ended);
        match live.qmp.execute_within("query-status", json!({}), ANSWER) {
            Ok(state) if state["status"] != "inmigrate" => return Ok(()),
            Ok(_) => {}
            Err(QmpError::Silent { .. }) if !live.process.has_ended() => {}
            Err(_) if live.process.wait(Duration::from_secs(1)) => {
                return failed(process::last_words(&slot.place.log()));
            }
            Err(e) => return Err(slot.monitor("load its memory")(e)),
        }
        if server_ended {
            return failed(format!("its page server ended: {}", process::last_words(&slot.place.log())));
        }
        if Instant::now() > until {
            return failed(format!("it takes longer than {LOAD:?}"));
        }
        std::thread::sleep(ASK);
    }
}

/// Memory that is still in the image.
pub(super) fn pending(place: &Place) -> Bytes {
    let text = fs::read_to_string(place.pending()).unwrap_or_default();
    let mut numbers = text.split_whitespace().map_while(|word| word.parse::<u64>().ok());
    let (done, total) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    Bytes(total.saturating_sub(done).saturating_mul(keyframe_memory::PAGE as u64))
}

/// Waits until all memory is in, if the machine was resumed; then it is like any other.
pub(super) fn wait_until_in(slot: &Slot, live: &Live, cancel: &dyn Cancel) -> Result<()> {
    let until = Instant::now() + ALL_IN;
    let act = "wait for the rest of its memory";
    while live.record.lock().memory.is_some() {
        if all_in(slot, live)? {
            break;
        }
        if cancel.cancelled() || Instant::now() > until {
            return Err(slot.fault(FaultKind::Deadline, act, "given up"));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Whether all memory is in; notes it if so.
pub(super) fn all_in(slot: &Slot, live: &Live) -> Result<bool> {
    let trouble = slot.monitor("ask for its memory");
    let progress = live.qmp.execute("query-migrate", json!({})).map_err(&trouble)?;
    if progress["status"] != "completed" {
        return Ok(false);
    }
    let ordinary = json!({ "capabilities": [{ "capability": "postcopy-ram", "state": false }] });
    live.qmp.execute("migrate-set-capabilities", ordinary).map_err(&trouble)?;
    all_is_in(slot, live).map(|()| true)
}

fn all_is_in(slot: &Slot, live: &Live) -> Result<()> {
    slot.note(live, |record| record.memory = None)?;
    spare::end(slot, live);
    remove_file(&slot.place.pending());
    slot.place.drop_image();
    huge::begin(slot, live);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_that_cannot_be_used_is_named_once() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("some.kfm");
        let check = |bytes: &[u8], says: &str| {
            std::fs::write(&image, bytes).unwrap();
            for fault in [open(&image).map(drop), open_whole(&image).map(drop), describe(&image).map(drop)] {
                let fault = fault.unwrap_err();
                assert_eq!(fault.message, format!("{} {says}", image.display()));
                assert_eq!(fault.kind, FaultKind::Corrupt);
            }
        };
        check(b"", "is no memory image");
        check(&[7; 100_000], "is no memory image");
        std::fs::remove_file(&image).unwrap();
        let fault = describe(&image).unwrap_err();
        assert_eq!(fault.message, format!("memory image {}: it is not there", image.display()));
    }
}
