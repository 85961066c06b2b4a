//! Memory that comes into a machine later: damaged, from a machine of another shape, and without anybody left who sends it.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use keyframe_agent::hypervisor::News;
use keyframe_agent_api::{CloudInit, DiskId, DiskSlot, FaultKind, Machine, NicId, NicSlot, Power, StopHow, VmId};
use serde_json::{Value, json};

use super::fixture::{After, Bench, QemuBench, machine, volume};
use super::real::{on_clones, page_server, running};

const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn a_guest_whose_memory_is_damaged_where_it_goes_on_is_given_up_at_once() -> Result<()> {
    /// QEMU hangs on such a page as long as it lives.
    const AT_ONCE: Duration = Duration::from_secs(8);
    let bench = QemuBench::new()?;
    let (vm, hardware) = (VmId::new(), bench.machine());
    bench.start(vm, &hardware, None, false)?;
    bench.wait_up(vm)?;
    let image = bench.world().dir.path().join("sound.kfm");
    bench.driver().capture(vm, &image, &mut bench.world().cut(&["root", "data"]), &After::never())?;
    bench.driver().stop(vm, StopHow::Hard)?;
    let (tell, told) = std::sync::mpsc::channel();
    bench.driver().watch(Box::new(move |vm, news| drop(tell.send((vm, news)))));
    let damaged = image.with_extension("damaged");
    // First what the devices need, then what only the guest does.
    for (from, every) in [(0, 1), (1 << 20, 1), (1 << 20, 34), (1 << 20, 89), (1 << 20, 233), (1 << 20, 377)] {
        ensure!(Command::new("cp").arg("--sparse=always").args([&image, &damaged]).status()?.success());
        let pages = damage_pages(&damaged, from, every)?;
        let began = Instant::now();
        let (how, fault) = match bench.start(vm, &hardware, Some(&damaged), false) {
            Err(fault) => ("start", fault),
            Ok(()) => loop {
                if let (_, News::Complains(fault)) = told.recv_timeout(PATIENCE).context("nobody told of it")? {
                    break ("news", fault);
                }
            },
        };
        println!("{pages} damaged pages, {how} says after {:?}: {fault}", began.elapsed());
        ensure!(fault.kind == FaultKind::Corrupt && fault.message.contains("is damaged: block"), "{fault}");
        let named = fault.message.contains(&*damaged.to_string_lossy());
        ensure!(how == "news" || named, "the image is not named: {fault}");
        ensure!(began.elapsed() < AT_ONCE, "that took {:?}", began.elapsed());
        ensure!(bench.driver().status(vm)?.power == Power::Off, "it is not off");
    }
    bench.start(vm, &hardware, Some(&image), false)?;
    running(&bench, vm)
}

/// Changes one bit of every so-many-th page that is stored behind an address; of how many.
fn damage_pages(image: &std::path::Path, from: u64, every: u64) -> Result<u64> {
    let file = std::fs::File::options().read(true).write(true).open(image)?;
    let length = keyframe_memory::Image::open(image)?.blocks().first().context("no memory")?.length;
    let mut found = 0;
    let mut page = [0; 4096];
    for at in (4096 + from..4096 + length).step_by(4096) {
        file.read_exact_at(&mut page, at)?;
        if page.iter().any(|byte| *byte != 0) {
            found += 1;
            if found % every == 0 {
                file.write_all_at(&[page[100] ^ 1], at + 100)?;
            }
        }
    }
    Ok(found / every)
}

#[test]
fn a_guest_outlives_its_agent_and_its_page_server_while_its_process_hangs_on_its_memory() -> Result<()> {
    const HANGS: Duration = Duration::from_secs(20);
    let mut bench = QemuBench::new()?;
    let (vm, hardware) = (VmId::new(), machine("pc-q35-10.0", Some(bench.boot("lab=stamp")), &["root", "data"]));
    bench.start(vm, &hardware, None, false)?;
    bench.wait_console(vm, 0, "STAMP 4")?;
    let image = bench.world().dir.path().join("some.kfm");
    let mut cut = bench.world().cut(&["root", "data"]);
    bench.driver().capture(vm, &image, &mut cut, &After::never())?;
    bench.driver().stop(vm, StopHow::Hard)?;
    for name in ["root", "data"] {
        bench.world().clone_of(name, cut.snapshot, &format!("{name}-later"))?;
    }
    let fork = VmId::new();
    bench.start(fork, &on_clones(&hardware, "later"), Some(&image), false)?;
    let server = page_server(&bench, fork)?.context("all memory is in at once")?;
    rustix::process::kill_process(server, rustix::process::Signal::STOP)?;
    ensure!(bench.file(fork, "memory.kfm").exists(), "all memory was in");

    // The agent goes, QEMU's main loop waits for something else than a page, which is the same to whoever asks it, and the
    // page server goes.
    bench.again();
    let began = hang(&bench.file(fork, "qmp.sock"), HANGS)?;
    rustix::process::kill_process(server, rustix::process::Signal::KILL)?;
    let console = bench.console(fork).len();
    ensure!(bench.driver().adopt()? == [fork], "it is not found");
    while page_server(&bench, fork)?.is_none_or(|other| other == server) && bench.file(fork, "memory.kfm").exists() {
        ensure!(began.elapsed() < HANGS, "nobody lets another page server in while it hangs");
        std::thread::sleep(Duration::from_millis(20));
    }
    println!("another page server after {:?}", began.elapsed());
    let until = Instant::now() + HANGS + PATIENCE;
    while !bench.driver().status(fork).is_ok_and(|status| status.power == Power::Running) {
        ensure!(Instant::now() < until, "it is never taken over");
        std::thread::sleep(Duration::from_millis(50));
    }
    bench.wait_console(fork, console, "STAMP ")?;
    ensure!(!bench.console(fork).contains("STAMP-BAD"), "{}", bench.console(fork));
    let again = image.with_extension("again");
    bench.driver().capture(fork, &again, &mut bench.world().cut(&["root-later"]), &After::never())?;
    running(&bench, fork)
}

/// Keeps a main loop busy for so long, if it does not hang on a page already; since when.
fn hang(socket: &std::path::Path, patience: Duration) -> Result<Instant> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    let nowhere = json!({ "driver": "nbd", "node-name": "nowhere", "open-timeout": patience.as_secs(),
        "server": { "type": "unix", "path": socket.with_extension("nowhere") } });
    writeln!(stream, "{}", json!({ "execute": "qmp_capabilities" }))?;
    writeln!(stream, "{}", json!({ "execute": "blockdev-add", "arguments": nowhere }))?;
    let mut lines = BufReader::new(&stream).lines().map_while(std::io::Result::ok);
    let answered = lines.any(|line| line.contains("\"return\""));
    println!("its main loop {}", if answered { "is kept busy" } else { "hangs on a page" });
    let began = Instant::now();
    // It takes the next command from its queue a moment after that answer.
    std::thread::sleep(Duration::from_millis(500));
    Ok(began)
}

/// Machines had 24 places for disks and 8 for network interfaces once, however few they needed, and images did not say it.
#[test]
fn an_image_of_a_machine_with_more_places_than_it_needs_goes_on_in_as_many() -> Result<()> {
    let bench = QemuBench::new()?;
    let (driver, vm, bare) = (bench.driver(), VmId::new(), bench.machine());
    let nics = [0, 7].map(|slot| NicSlot {
        id: NicId::new(),
        slot,
        mac: format!("52:54:00:00:01:0{slot}"),
        ..bare.nics[0].clone()
    });
    let seed = Some(CloudInit { user_data: "#cloud-config\n".into(), ..CloudInit::default() });
    let now = Machine { nics: nics.into(), cloud_init: seed, ..bare };
    let last =
        DiskSlot { id: DiskId::new(), slot: 23, volume: volume("more"), read_only: false, firmware_variables: false };
    let then = Machine { disks: now.disks.iter().chain([&last]).cloned().collect(), ..now.clone() };
    bench.start(vm, &then, None, false)?;
    bench.wait_up(vm)?;
    driver.remove_disk(vm, last.id, PATIENCE)?;
    let image = bench.world().dir.path().join("many.kfm");
    driver.capture(vm, &image, &mut bench.world().cut(&["root", "data"]), &After::never())?;
    let silent = image.with_extension("silent");
    ensure!(ports_of(&image, &silent)? == json!({ "disks": 24, "nics": 8, "seed": true }));
    for image in [image, silent] {
        driver.stop(vm, StopHow::Hard)?;
        bench.start(vm, &now, Some(&image), false)?;
        let mut agent = keyframe_lab::qga::Agent::connect(&bench.file(vm, "qga.sock"), PATIENCE)?;
        let said = agent.shell("ls /sys/class/net | grep -c eth", PATIENCE)?;
        ensure!(said.output == "2\n", "{said:?}");
        // There is a place for it.
        driver.add_disk(vm, &last, &bench.world().address(&last.volume))?;
        driver.remove_disk(vm, last.id, PATIENCE)?;
    }
    running(&bench, vm)
}

/// The places that an image says its machine has, and a copy of it that does not say it.
fn ports_of(image: &Path, copy: &Path) -> Result<Value> {
    let image = keyframe_memory::Image::open(image)?;
    let mut description: Value = serde_json::from_slice(image.front().metadata())?;
    let ports =
        description.as_object_mut().and_then(|said| said.remove("ports")).context("it says nothing of places")?;
    let (out, stream) = std::io::pipe()?;
    std::thread::scope(|scope| {
        let sent = scope.spawn(|| keyframe_memory::replay(&image, stream));
        keyframe_memory::capture(out, copy, description.to_string().as_bytes(), |_| {})?;
        sent.join().ok().context("a panic")??;
        Ok(ports)
    })
}

#[test]
fn memory_that_was_captured_or_loaded_comes_into_huge_pages_again() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        println!("not shown: only root may advise another process");
        return Ok(());
    }
    let bench = QemuBench::new()?;
    let (vm, hardware) = (VmId::new(), bench.machine());
    bench.start(vm, &hardware, None, false)?;
    bench.wait_up(vm)?;
    let image = bench.world().dir.path().join("huge.kfm");
    bench.driver().capture(vm, &image, &mut bench.world().cut(&["root", "data"]), &After::never())?;
    gathered(&bench, vm, &hardware)?;
    running(&bench, vm)?;
    bench.driver().stop(vm, StopHow::Hard)?;
    bench.start(vm, &hardware, Some(&image), false)?;
    gathered(&bench, vm, &hardware)?;
    running(&bench, vm)
}

/// Waits until most of what a guest's memory takes of the host is in huge pages.
fn gathered(bench: &QemuBench, vm: VmId, hardware: &Machine) -> Result<()> {
    /// The kernel comes by on its own, too, but takes a minute for this.
    const SOON: Duration = Duration::from_secs(10);
    let until = Instant::now() + SOON;
    loop {
        let maps = std::fs::read_to_string(format!("/proc/{}/smaps", bench.pid(vm)?))?;
        let size = format!("{} kB", hardware.memory.0 >> 10);
        let value = |line: Option<&str>| line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
        let mut ram = maps.lines().skip_while(|line| !(line.starts_with("Size:") && line.ends_with(&size)));
        let taken = value(ram.find(|line| line.starts_with("Rss:"))).context("no such memory")?;
        let huge = value(ram.find(|line| line.starts_with("AnonHugePages:"))).context("no huge pages")?;
        if huge > taken / 2 {
            println!("{huge} of {taken} KiB are in huge pages");
            return Ok(());
        }
        ensure!(Instant::now() < until, "only {huge} of {taken} KiB are in huge pages");
        std::thread::sleep(Duration::from_millis(50));
    }
}
