//! Real guests: disks and memory of one instant, and what fails in the middle.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use keyframe_agent::hypervisor::{News, Start};
use keyframe_agent::work::Work;
use keyframe_agent_api::{
    CloudInit, DiskId, DiskSlot, FaultKind, Firmware, GuestIdentity, Machine, NicConnection, Power, StopHow, VmId,
    VolumeRef,
};
use keyframe_lab::qga::Agent;
use keyframe_lab::stamps::Stamps;
use keyframe_lab::vm::Disk;
use serde_json::json;

use super::fixture::{After, Bench, QemuBench, World, machine, volume};

const PATIENCE: Duration = Duration::from_secs(60);

/// The machine on clones of its volumes.
pub(crate) fn on_clones(machine: &Machine, suffix: &str) -> Machine {
    let disk =
        |disk: &DiskSlot| DiskSlot { volume: volume(&format!("{}-{suffix}", disk.volume.volume)), ..disk.clone() };
    Machine { disks: machine.disks.iter().map(disk).collect(), ..machine.clone() }
}

fn disk(world: &World, name: &str) -> Disk {
    let at = world.address(&volume(name));
    Disk::Nbd { socket: at.socket, export: at.export }
}

#[test]
fn a_fork_of_a_guest_at_work_finds_disks_and_memory_of_one_instant() -> Result<()> {
    let bench = QemuBench::new()?;
    let (world, driver) = (bench.world(), bench.driver());
    let source = VmId::new();
    let hardware = machine("pc-q35-10.0", Some(bench.boot("lab=stamp")), &["root", "data"]);
    bench.start(source, &hardware, None, false)?;
    bench.wait_console(source, 0, "STAMP 4")?;
    let image = world.dir.path().join("fork.kfm");
    let mut cut = world.cut(&["root", "data"]);
    let captured = driver.capture(source, &image, &mut cut, &After::never())?;
    println!("paused {:?}", captured.paused);
    for name in ["root", "data"] {
        world.clone_of(name, cut.snapshot, &format!("{name}-fork"))?;
    }
    let sizes = bench.sizes()?;
    let stamps = Stamps::read((&disk(world, "root-fork"), sizes.0), (&disk(world, "data-fork"), sizes.1))?;

    // The writer in the fork has both numbers in its memory: it complains if a disk holds another.
    let fork = VmId::new();
    let copy = Machine { generation_id: uuid::Uuid::new_v4(), ..on_clones(&hardware, "fork") };
    let blocks = |volume: &VolumeRef| world.address(volume);
    let start = Start {
        machine: &copy,
        blocks: &blocks,
        memory: Some(&image),
        new_identity: true,
        paused: false,
        going: &|| Ok(()),
    };
    let began = Instant::now();
    driver.start(fork, &start)?;
    let next = format!("STAMP {}", stamps.a + 30);
    println!("resumed after {:?}, at stamp {}", began.elapsed(), stamps.a);
    let until = Instant::now() + PATIENCE;
    while !bench.console(fork).lines().any(|line| line >= next.as_str() && line.len() >= next.len()) {
        ensure!(Instant::now() < until, "the fork does not go on: {}", bench.console(fork));
        std::thread::sleep(Duration::from_millis(10));
    }
    let said = bench.console(fork);
    println!("first words of the fork after {:?}", began.elapsed());
    ensure!(!said.contains("STAMP-BAD") && !said.contains("GUEST-READY"), "{said}");

    // Nobody else has a word; the cable is out until the identity is right.
    let new = "52:54:00:00:00:99";
    let identity = GuestIdentity {
        host_name: Some("fork".into()),
        macs: vec![("52:54:00:00:00:01".into(), new.into())],
        clock: true,
    };
    let fixed = driver.fix_identity(fork, &identity, PATIENCE)?;
    ensure!(fixed.complaints.is_empty() && fixed.macs == Some(true), "{fixed:?}");
    let mut agent = Agent::connect(&bench.file(fork, "qga.sock"), PATIENCE)?;
    let state = agent.shell("hostname; cat /sys/class/net/eth0/address /sys/class/net/eth0/carrier 2>&1", PATIENCE)?;
    ensure!(state.output.starts_with(&format!("fork\n{new}\n")) && !state.output.ends_with("1\n"), "{state:?}");
    let running = driver.status(source)?.power == Power::Running;
    ensure!(running && !bench.console(source).contains("STAMP-BAD"), "the source is not as it was");
    Ok(())
}

#[test]
fn what_fails_in_the_middle_leaves_a_guest_that_runs() -> Result<()> {
    let mut bench = QemuBench::new()?;
    let vm = VmId::new();
    let hardware = bench.machine();
    bench.start(vm, &hardware, None, false)?;
    bench.wait_up(vm)?;
    let about = std::fs::read_to_string(format!("/proc/{}/status", bench.pid(vm)?))?;
    ensure!(about.contains("Seccomp:\t2"), "QEMU is not confined: {about}");
    a_full_file_system(&bench, vm)?;
    an_agent_that_hangs(&bench, vm)?;
    a_pause_of_an_agent_that_died(&mut bench, vm)?;
    a_disk_of_an_agent_that_died(&mut bench, vm)?;
    a_page_server_that_dies(&bench, vm, &hardware)?;
    a_machine_that_dies_while_it_is_captured(&bench, vm)?;
    bench.start(vm, &hardware, None, false)?;
    bench.wait_up(vm)?;
    bench.driver().stop(vm, StopHow::Graceful { deadline: PATIENCE.into(), then_hard: false })?;
    ensure!(bench.driver().status(vm)?.power == Power::Off);
    Ok(())
}

pub(crate) fn running(bench: &QemuBench, vm: VmId) -> Result<()> {
    let power = bench.driver().status(vm)?.power;
    ensure!(power == Power::Running, "it is {power:?}");
    Ok(())
}

/// A small file system of its own; needs the right to mount.
fn a_full_file_system(bench: &QemuBench, vm: VmId) -> Result<()> {
    let small = bench.world().dir.path().join("small");
    std::fs::create_dir(&small)?;
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=8m", "none"]).arg(&small).status()?;
    ensure!(mounted.success(), "cannot mount a small file system; run this test as root");
    let image = small.join("image.kfm");
    let done = bench.driver().capture(vm, &image, &mut bench.world().cut(&["root"]), &After::never());
    let left = std::fs::read_dir(&small)?.count();
    ensure!(Command::new("umount").arg(&small).status()?.success());
    let fault = done.err().context("an image on a full file system")?;
    ensure!(fault.kind == FaultKind::NoSpace, "{fault}");
    ensure!(left == 0, "{left} files are left");
    running(bench, vm)
}

fn an_agent_that_hangs(bench: &QemuBench, vm: VmId) -> Result<()> {
    let mut agent = Agent::connect(&bench.file(vm, "qga.sock"), PATIENCE)?;
    // It stops itself, and somebody else lets it go on after the freeze has been given up.
    agent.shell("(sleep 0.2; killall -STOP qemu-ga; sleep 3; killall -CONT qemu-ga) >/dev/null 2>&1 &", PATIENCE)?;
    drop(agent);
    std::thread::sleep(Duration::from_millis(800));
    let done = bench.driver().freeze(vm, Duration::from_millis(700), PATIENCE);
    let fault = done.err().context("a freeze by an agent that hangs")?;
    ensure!(fault.kind == FaultKind::Deadline, "{fault}");
    // It was not asked, so the next agent of the host has nothing to thaw.
    ensure!(!bench.file(vm, "frozen").exists(), "the mark is left");
    let mut agent = Agent::connect(&bench.file(vm, "qga.sock"), PATIENCE)?;
    let state = agent.execute("guest-fsfreeze-status", serde_json::json!({}))?;
    ensure!(state == "thawed", "the guest is {state}");
    Ok(())
}

fn a_pause_of_an_agent_that_died(bench: &mut QemuBench, vm: VmId) -> Result<()> {
    // What an agent leaves that dies after its stop and before its cont.
    let mut cut = bench.world().cut(&["root"]);
    let socket = bench.file(vm, "qmp.sock");
    bench.again();
    say(&socket, "stop")?;
    ensure!(bench.driver().adopt()? == [vm]);
    running(bench, vm)?;
    let image = bench.world().dir.path().join("later.kfm");
    bench.driver().capture(vm, &image, &mut cut, &After::never())?;
    running(bench, vm)
}

/// What an agent leaves that dies while it puts a disk in or tells of its size.
fn a_disk_of_an_agent_that_died(bench: &mut QemuBench, vm: VmId) -> Result<()> {
    let disk =
        DiskSlot { id: DiskId::new(), slot: 5, volume: volume("more"), read_only: false, firmware_variables: false };
    let blocks = bench.world().address(&disk.volume);
    let server = |name: &str| {
        json!({ "driver": "nbd", "node-name": name, "export": blocks.export,
            "server": { "type": "unix", "path": blocks.socket } })
    };
    let left = |bench: &mut QemuBench, nodes: &[serde_json::Value]| -> Result<()> {
        let socket = bench.file(vm, "qmp.sock");
        bench.again();
        for node in nodes {
            tell(&socket, "blockdev-add", node)?;
        }
        ensure!(bench.driver().adopt()? == [vm]);
        running(bench, vm)
    };
    let over = json!({ "driver": "raw", "node-name": "slot5", "file": "slot5-a" });
    left(bench, &[server("slot5-a"), over])?;
    bench.driver().remove_disk(vm, disk.id, PATIENCE).context("taken back")?;
    left(bench, &[server("slot5-a")])?;
    bench.driver().add_disk(vm, &disk, &blocks).context("repeated")?;
    for again in 0..2 {
        left(bench, &[server(if again == 0 { "slot5-b" } else { "slot5-a" })])?;
        bench.driver().disk_resized(vm, disk.id).context("told again")?;
    }
    bench.driver().remove_disk(vm, disk.id, PATIENCE)?;
    running(bench, vm)
}

/// Runs one command of a monitor and lets go of it.
fn say(socket: &std::path::Path, command: &str) -> Result<()> {
    tell(socket, command, &json!({}))
}

pub(crate) fn tell(socket: &std::path::Path, command: &str, arguments: &serde_json::Value) -> Result<()> {
    let mut stream = UnixStream::connect(socket)?;
    for (line, arguments) in [("qmp_capabilities", &json!({})), (command, arguments)] {
        writeln!(stream, "{}", json!({ "execute": line, "arguments": arguments, "id": line }))?;
    }
    for line in BufReader::new(&stream).lines() {
        let answer: serde_json::Value = serde_json::from_str(&line?)?;
        if answer["id"] == command {
            ensure!(answer["error"].is_null(), "{answer}");
            return Ok(());
        }
    }
    bail!("QEMU says nothing")
}

fn a_page_server_that_dies(bench: &QemuBench, vm: VmId, hardware: &Machine) -> Result<()> {
    let image = bench.world().dir.path().join("later.kfm");
    bench.driver().stop(vm, StopHow::Hard)?;
    // What becomes of the image while the guest still loads from it is nothing to the guest.
    let other = image.with_extension("kept");
    std::fs::hard_link(&image, &other)?;
    bench.start(vm, hardware, Some(&image), false)?;
    std::fs::remove_file(&image)?;
    let kept = bench.file(vm, "memory.kfm");
    let killed = kill_page_servers(bench, vm, 3, &|| !kept.exists())?;
    println!("page servers killed: {killed}");
    let again = bench.world().dir.path().join("again.kfm");
    bench.driver().capture(vm, &again, &mut bench.world().cut(&["root"]), &After::never())?;
    ensure!(!bench.file(vm, "memory.kfm").exists(), "the image is kept though all memory is in");
    running(bench, vm)?;
    a_damaged_page(bench, vm, hardware, &other)
}

/// Kills page servers as they appear, until so many or until it is over; how many.
fn kill_page_servers(bench: &QemuBench, vm: VmId, most: u32, over: &dyn Fn() -> bool) -> Result<u32> {
    let mut killed = 0;
    while killed < most && !over() {
        if let Some(pid) = page_server(bench, vm)? {
            // It may have ended by itself since.
            killed += u32::from(rustix::process::kill_process(pid, rustix::process::Signal::KILL).is_ok());
        }
    }
    Ok(killed)
}

/// A page server that dies before the guest has run costs a second start, which nobody notices.
fn a_page_server_that_dies_at_once(
    bench: &QemuBench,
    vm: VmId,
    hardware: &Machine,
    image: &std::path::Path,
) -> Result<()> {
    let over = std::sync::atomic::AtomicBool::new(false);
    let is_over = || over.load(std::sync::atomic::Ordering::SeqCst);
    std::thread::scope(|scope| {
        let killer = scope.spawn(|| kill_page_servers(bench, vm, 1, &is_over));
        let started = bench.start(vm, hardware, Some(image), false);
        over.store(true, std::sync::atomic::Ordering::SeqCst);
        let killed = killer.join().ok().context("a panic")??;
        println!("page servers killed during the start: {killed}");
        started?;
        Ok::<(), anyhow::Error>(())
    })?;
    running(bench, vm)?;
    let again = image.with_extension("again");
    bench.driver().capture(vm, &again, &mut bench.world().cut(&["root"]), &After::never())?;
    running(bench, vm)?;
    bench.driver().stop(vm, StopHow::Hard)?;
    Ok(())
}

/// Nobody knows of it until the guest or its page server reaches it; then the guest is lost, and that is said.
fn a_damaged_page(bench: &QemuBench, vm: VmId, hardware: &Machine, image: &std::path::Path) -> Result<()> {
    bench.driver().stop(vm, StopHow::Hard)?;
    a_page_server_that_dies_at_once(bench, vm, hardware, image)?;
    let (tell, told) = std::sync::mpsc::channel();
    bench.driver().watch(Box::new(move |vm, news| drop(tell.send((vm, news)))));
    damage_last_page(image)?;
    bench.driver().image(image)?;
    let verified =
        bench.driver().verify(image, &Work::default()).err().context("a damaged image that is found to be sound")?;
    ensure!(verified.kind == FaultKind::Corrupt && verified.message.contains("is damaged"), "{verified}");
    let began = Instant::now();
    match bench.start(vm, hardware, Some(image), false) {
        Err(fault) => ensure!(fault.kind == FaultKind::Corrupt, "{fault}"),
        Ok(()) => loop {
            let (of, news) = told.recv_timeout(PATIENCE).context("nobody told of it")?;
            if let News::Complains(fault) = news {
                ensure!(of == vm && fault.kind == FaultKind::Corrupt, "{of}: {fault}");
                break;
            }
        },
    }
    println!("given up after {:?}", began.elapsed());
    ensure!(bench.driver().status(vm)?.power == Power::Off, "it is not off");
    ensure!(!bench.file(vm, "memory.kfm").exists(), "its image is kept");
    bench.start(vm, hardware, None, false)?;
    bench.wait_up(vm)
}

/// Changes one bit of the last page that is stored.
fn damage_last_page(image: &std::path::Path) -> Result<()> {
    let file = std::fs::File::options().read(true).write(true).open(image)?;
    let opened = keyframe_memory::Image::open(image)?;
    // Behind the header the blocks lie one after the other; the holes between are zeros.
    let mut at = 4096 + opened.blocks().first().context("no memory")?.length;
    let mut page = [0; 4096];
    while page.iter().all(|byte| *byte == 0) {
        at -= 4096;
        file.read_exact_at(&mut page, at)?;
    }
    page[100] ^= 1;
    file.write_all_at(&page, at)?;
    Ok(())
}

/// The process that serves a machine's memory, if it has not ended yet.
pub(crate) fn page_server(bench: &QemuBench, vm: VmId) -> Result<Option<rustix::process::Pid>> {
    let wanted = format!("memory-server\0{}\0", bench.file(vm, "memory.kfm").display());
    for entry in std::fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&line).contains(&wanted) {
            return Ok(rustix::process::Pid::from_raw(pid));
        }
    }
    Ok(None)
}

fn a_machine_that_dies_while_it_is_captured(bench: &QemuBench, vm: VmId) -> Result<()> {
    let image = bench.world().dir.path().join("never.kfm");
    let mut cut = bench.world().cut(&["root"]);
    let pid = rustix::process::Pid::from_raw(i32::try_from(bench.pid(vm)?)?).context("no process")?;
    cut.on_cut = Some(Box::new(move || {
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("it runs");
    }));
    let done = bench.driver().capture(vm, &image, &mut cut, &After::never());
    ensure!(done.is_err(), "a capture of a machine that died");
    ensure!(!image.exists(), "an image of a machine that died");
    let until = Instant::now() + PATIENCE;
    while bench.driver().status(vm)?.power != Power::Off {
        ensure!(Instant::now() < until, "it is not off");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

#[test]
fn the_plug_can_be_pulled_and_a_monitor_that_hangs_is_waited_for() -> Result<()> {
    let mut bench = QemuBench::new()?;
    let vm = VmId::new();
    let hardware = bench.machine();
    bench.start(vm, &hardware, None, false)?;
    bench.wait_up(vm)?;
    a_monitor_that_hangs(&mut bench, vm)?;
    // A guest whose processors stand still hears no button; who waits for it hears of the plug.
    let pid = pid_of(&bench, vm)?;
    rustix::process::kill_process(pid, rustix::process::Signal::STOP)?;
    pulled(&bench, vm, &|| {
        let how = StopHow::Graceful { deadline: PATIENCE.into(), then_hard: false };
        bench.driver().stop(vm, how).map(drop)
    })?;
    bench.start(vm, &hardware, None, false)?;
    bench.wait_up(vm)?;
    let image = bench.world().dir.path().join("never.kfm");
    let pid = pid_of(&bench, vm)?;
    pulled(&bench, vm, &|| {
        let mut cut = bench.world().cut(&["root"]);
        cut.on_cut = Some(Box::new(move || {
            rustix::process::kill_process(pid, rustix::process::Signal::STOP).expect("it runs");
        }));
        bench.driver().capture(vm, &image, &mut cut, &After::never()).map(drop)
    })?;
    ensure!(!image.exists(), "an image of what was stopped");
    Ok(())
}

fn pid_of(bench: &QemuBench, vm: VmId) -> Result<rustix::process::Pid> {
    rustix::process::Pid::from_raw(i32::try_from(bench.pid(vm)?)?).context("no process")
}

/// Pulls the plug in the middle of a long call.
fn pulled(bench: &QemuBench, vm: VmId, long: &(dyn Fn() -> keyframe_agent::Result<()> + Sync)) -> Result<()> {
    std::thread::scope(|scope| {
        let long = scope.spawn(long);
        std::thread::sleep(Duration::from_secs(1));
        ensure!(!long.is_finished(), "it does not take long: {:?}", long.join());
        let began = Instant::now();
        bench.driver().stop(vm, StopHow::Hard)?;
        println!("the plug was pulled within {:?}", began.elapsed());
        ensure!(began.elapsed() < Duration::from_secs(10), "that took {:?}", began.elapsed());
        println!("what was under way said {:?}", long.join());
        ensure!(bench.driver().status(vm)?.power == Power::Off);
        Ok(())
    })
}

fn a_monitor_that_hangs(bench: &mut QemuBench, vm: VmId) -> Result<()> {
    let pid = pid_of(bench, vm)?;
    rustix::process::kill_process(pid, rustix::process::Signal::STOP)?;
    bench.again();
    let began = Instant::now();
    ensure!(bench.driver().adopt()? == [vm], "what hangs is not there");
    ensure!(began.elapsed() < Duration::from_secs(8), "others had to wait for it: {:?}", began.elapsed());
    let fault = bench.driver().status(vm).err().context("a status of a process that hangs")?;
    ensure!(fault.kind == FaultKind::Deadline, "{fault}");
    kind_of_start(bench, vm)?;
    rustix::process::kill_process(pid, rustix::process::Signal::CONT)?;
    let until = Instant::now() + PATIENCE;
    while !bench.driver().status(vm).is_ok_and(|status| status.power == Power::Running) {
        ensure!(Instant::now() < until, "it is never taken over");
        std::thread::sleep(Duration::from_millis(50));
    }
    println!("taken over after {:?}", began.elapsed());
    ensure!(bench.driver().status(vm)?.pid == Some(pid.as_raw_nonzero().get().cast_unsigned()));
    bench.driver().pause(vm)?;
    bench.driver().resume(vm)?;
    Ok(())
}

/// Nobody may start it a second time meanwhile.
fn kind_of_start(bench: &QemuBench, vm: VmId) -> Result<()> {
    let fault = bench.start(vm, &bench.machine(), None, false).err().context("two of one machine")?;
    ensure!(fault.kind == FaultKind::Deadline, "{fault}");
    Ok(())
}

#[test]
fn a_guest_under_uefi_reads_its_seed_and_goes_on_from_memory() -> Result<()> {
    let bench = QemuBench::new()?;
    let driver = bench.driver();
    let template = driver.info()?.uefi_variables.context("no firmware for UEFI here; install ovmf")?;
    bench.world().import("variables", &template)?;
    let vm = VmId::new();
    let mut hardware = machine("pc-q35-10.0", Some(bench.boot("")), &["root", "data", "variables"]);
    hardware.firmware = Firmware::Uefi;
    hardware.disks[2].firmware_variables = true;
    hardware.cloud_init = Some(CloudInit { user_data: "#cloud-config\n".into(), ..CloudInit::default() });
    hardware.nics[0].connection = NicConnection::Isolated { network: format!("test {vm}") };
    bench.start(vm, &hardware, None, false)?;
    bench.wait_up(vm)?;
    let asked = "ls -d /sys/firmware/efi; dd if=/dev/vdc bs=1k count=16 2>/dev/null | grep -q CIDATA && echo seeded; ls /sys/class/net";
    let said = Agent::connect(&bench.file(vm, "qga.sock"), PATIENCE)?.shell(asked, PATIENCE)?;
    ensure!(said.output.starts_with("/sys/firmware/efi\nseeded\n") && said.output.contains("eth0"), "{said:?}");
    let image = bench.world().dir.path().join("uefi.kfm");
    let captured =
        driver.capture(vm, &image, &mut bench.world().cut(&["root", "data", "variables"]), &After::never())?;
    println!("under UEFI: paused {:?}", captured.paused);
    driver.stop(vm, StopHow::Hard)?;
    bench.start(vm, &hardware, Some(&image), false)?;
    let said = Agent::connect(&bench.file(vm, "qga.sock"), PATIENCE)?.shell("echo alive", PATIENCE)?;
    ensure!(said.output == "alive\n", "{said:?}");
    Ok(())
}
