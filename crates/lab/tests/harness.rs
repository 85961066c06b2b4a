//! The harness against a server that is not ours: when this fails, the lab is at fault and not the product.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use keyframe_lab::guest::Guest;
use keyframe_lab::kvm::Accelerator;
use keyframe_lab::process::{Ending, Process, run_tool};
use keyframe_lab::scratch;
use keyframe_lab::stamps::{Journal, Stamps, check_file_system};
use keyframe_lab::vm::{Disk, Vm, VmSpec};
use serde_json::json;

const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn a_guest_boots_from_a_foreign_nbd_server_and_obeys() -> Result<()> {
    let guest = Guest::prepare()?;
    let accelerator = Accelerator::choose(&guest)?;
    let work = scratch::work_folder()?;
    let root = Served::start(work.path(), "root", &guest.root_image)?;
    let data = Served::start(work.path(), "data", &guest.data_image)?;
    let disks = vec![root.disk.clone(), data.disk.clone()];
    let spec = VmSpec { name: "harness", memory_mib: 256, disks, command_line: "" };
    let mut vm = Vm::boot(&spec, &guest, accelerator)?;
    println!("guest up after {:?}", vm.ready()?);

    let from = vm.console().mark();
    vm.tell("stamp")?;
    vm.expect(from, PATIENCE, "STAMP-START", |line| line.starts_with("STAMP-START a=0 b=0").then_some(()))?;
    wait_for_stamp(&vm, 100)?;
    the_oracle_tells_torn_from_sound(&mut vm, work.path(), &root.image, &data.image)?;
    the_monitor_answers(&mut vm)?;
    the_agent_answers(&mut vm)?;
    vm.agent()?.shutdown()?;
    vm.wait_off(PATIENCE)
}

/// Copies of live disks, taken one after the other, are what a snapshot must never be.
fn the_oracle_tells_torn_from_sound(vm: &mut Vm, work: &Path, root: &Path, data: &Path) -> Result<()> {
    let copies = [work.join("root-copy"), work.join("data-copy")];
    let copy = |from: &Path, to: &PathBuf| run_tool(Command::new("cp").arg("--sparse=always").arg(from).arg(to));
    let sizes = [root.metadata()?.len(), data.metadata()?.len()];
    let [root_copy, data_copy] = copies.clone().map(Disk::File);
    let read = || Stamps::read((&root_copy, sizes[0]), (&data_copy, sizes[1]));

    copy(root, &copies[0])?;
    wait_for_stamp(vm, read_a(&root_copy, sizes[0])? + 1)?;
    copy(data, &copies[1])?;
    let refused = read().err().context("a torn pair passed for one instant")?;
    ensure!(refused.to_string().contains("not one instant"), "unclear error: {refused}");

    let before = vm.qmp().mark();
    vm.qmp().execute("stop", json!({}))?;
    vm.qmp().wait_event("STOP", before, PATIENCE)?;
    copy(root, &copies[0])?;
    copy(data, &copies[1])?;
    vm.qmp().execute("cont", json!({}))?;
    let stamps = read()?;
    check_file_system(&root_copy, &work.join("image"), "/var/lib/stamps", stamps, Journal::MayNeedReplay)?;
    check_file_system(&data_copy, &work.join("image"), "/stamps", stamps, Journal::MayNeedReplay)?;
    let promised_more = Stamps { a: stamps.a + 100, b: stamps.b };
    let missing = check_file_system(&data_copy, &work.join("image"), "/stamps", promised_more, Journal::MayNeedReplay);
    ensure!(missing.is_err(), "records that are not in the log were not missed");
    Ok(())
}

fn the_monitor_answers(vm: &mut Vm) -> Result<()> {
    ensure!(vm.qmp().execute("query-status", json!({}))?["status"] == "running", "the machine does not run");
    let refused = vm.qmp().execute("no-such-command", json!({})).err().context("QEMU took a command it cannot know")?;
    ensure!(refused.to_string().contains("no-such-command"), "unclear error: {refused}");
    Ok(())
}

fn the_agent_answers(vm: &mut Vm) -> Result<()> {
    let agent = vm.agent()?;
    ensure!(agent.freeze()? == 2, "there are two file systems to freeze");
    ensure!(agent.thaw()? == 2, "there are two file systems to thaw");
    let ended = agent.shell("echo $((6 * 7)); exit 3", PATIENCE)?;
    ensure!((ended.code, ended.output.as_str()) == (Some(3), "42\n"), "not what was asked for: {ended:?}");
    Ok(())
}

fn wait_for_stamp(vm: &Vm, least: u64) -> Result<u64> {
    vm.expect(vm.console().mark(), PATIENCE, "STAMP", |line| {
        line.strip_prefix("STAMP ")?.parse().ok().filter(|stamp| *stamp >= least)
    })
}

/// The stamp of one disk: compared with itself it is always of one instant.
fn read_a(disk: &Disk, size: u64) -> Result<u64> {
    Ok(Stamps::read((disk, size), (disk, size))?.a)
}

/// A copy of an image behind `qemu-nbd`.
struct Served {
    disk: Disk,
    image: PathBuf,
    _server: Process,
    _socket: tempfile::TempDir,
}

impl Served {
    fn start(work: &Path, name: &str, original: &Path) -> Result<Served> {
        let image = work.join(name);
        run_tool(Command::new("cp").arg("--sparse=always").args([original, &image]))?;
        let dir = tempfile::tempdir()?;
        let socket = dir.path().join("nbd");
        let mut command = Command::new("qemu-nbd");
        command.args(["--persistent", "--format=raw", "--export-name", name, "--socket"]).arg(&socket).arg(&image);
        command.stdout(Stdio::null());
        let server = Process::spawn("qemu-nbd", &mut command, Ending::Kill, &dir.path().join("log"))?;
        let deadline = Instant::now() + PATIENCE;
        while !socket.exists() {
            ensure!(Instant::now() < deadline, "qemu-nbd does not listen: {}", server.last_words());
            std::thread::sleep(Duration::from_millis(10));
        }
        let disk = Disk::Nbd { socket, export: name.to_owned() };
        Ok(Served { disk, image, _server: server, _socket: dir })
    }
}
