//! The suite that every driver passes: one machine's life, with every refusal on the way.

use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use keyframe_agent::hypervisor::News;
use keyframe_agent::work::Work;
use keyframe_agent_api::{
    CutMethod, DiskId, DiskSlot, FaultKind, GuestIdentity, Machine, Micros, NicId, PauseReason, Power, SnapshotId,
    StopHow, VmId,
};

use super::fixture::{After, Bench, FakeBench, QemuBench, volume};

const PAUSED: Power = Power::Paused { reason: PauseReason::Asked };
const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn the_fake_passes() -> Result<()> {
    passes(&mut FakeBench::new()?)
}

#[test]
fn qemu_passes() -> Result<()> {
    passes(&mut QemuBench::new()?)
}

fn passes(bench: &mut dyn Bench) -> Result<()> {
    let vm = VmId::new();
    let machine = bench.machine();
    what_is_off_can_do_nothing(bench, vm)?;
    bench.start(vm, &machine, None, true)?;
    expect(bench, vm, &PAUSED)?;
    kind(bench.start(vm, &machine, None, false), FaultKind::Conflict)?;
    bench.driver().resume(vm)?;
    expect(bench, vm, &Power::Running)?;
    ensure!(bench.driver().status(vm)?.machine.as_ref() == Some(&machine), "it runs as another machine");
    bench.wait_up(vm)?;
    bench.driver().pause(vm)?;
    expect(bench, vm, &PAUSED)?;
    bench.driver().resume(vm)?;
    expect(bench, vm, &Power::Running)?;
    cables(bench, vm, &machine)?;
    disks(bench, vm)?;
    freezing(bench, vm)?;
    captures_that_fail(bench, vm)?;
    let image = bench.world().dir.path().join("good.kfm");
    captures(bench, vm, &machine, &image)?;
    bench.again();
    ensure!(bench.driver().adopt()? == [vm], "the machine is not found again");
    expect(bench, vm, &Power::Running)?;
    bench.driver().pause(vm)?;
    bench.again();
    ensure!(bench.driver().adopt()? == [vm], "the machine is not found again");
    expect(bench, vm, &PAUSED)?;
    kind(bench.driver().remove(vm), FaultKind::Conflict)?;
    bench.driver().stop(vm, StopHow::Hard)?;
    expect(bench, vm, &Power::Off)?;
    resumes(bench, vm, &machine, &image)?;
    sets_aside(bench, vm, &machine, &image)?;
    a_death_is_told(bench, vm)?;
    bench.start(vm, &machine, None, false)?;
    bench.driver().reset(vm)?;
    bench.driver().stop(vm, StopHow::Hard)?;
    bench.driver().remove(vm)?;
    bench.driver().remove(vm)?;
    ensure!(bench.driver().adopt()?.is_empty(), "a machine that was removed is still there");
    Ok(())
}

fn expect(bench: &dyn Bench, vm: VmId, power: &Power) -> Result<()> {
    let found = bench.driver().status(vm)?.power;
    ensure!(found == *power, "it is {found:?} instead of {power:?}");
    Ok(())
}

#[track_caller]
fn kind<T: std::fmt::Debug>(done: keyframe_agent::Result<T>, expected: FaultKind) -> Result<()> {
    let at = std::panic::Location::caller();
    let fault = done.err().with_context(|| format!("{at}: it should have failed with {expected:?}"))?;
    ensure!(fault.kind == expected, "{at}: {fault} is {:?} instead of {expected:?}", fault.kind);
    Ok(())
}

fn what_is_off_can_do_nothing(bench: &dyn Bench, vm: VmId) -> Result<()> {
    let driver = bench.driver();
    expect(bench, vm, &Power::Off)?;
    driver.stop(vm, StopHow::Hard)?;
    driver.stop(vm, StopHow::Graceful { deadline: Micros(1), then_hard: false })?;
    kind(driver.pause(vm), FaultKind::Conflict)?;
    kind(driver.resume(vm), FaultKind::Conflict)?;
    kind(driver.reset(vm), FaultKind::Conflict)?;
    kind(driver.freeze(vm, PATIENCE, PATIENCE), FaultKind::Conflict)?;
    kind(driver.fix_identity(vm, &GuestIdentity::default(), PATIENCE), FaultKind::Conflict)?;
    kind(driver.remove_disk(vm, DiskId::new(), PATIENCE), FaultKind::Conflict)?;
    let image = bench.world().dir.path().join("of-nothing.kfm");
    kind(driver.capture(vm, &image, &mut bench.world().cut(&["root"]), &After::never()), FaultKind::Conflict)?;
    ensure!(!image.exists(), "an image of nothing");
    driver.remove(vm)?;
    Ok(())
}

fn cables(bench: &dyn Bench, vm: VmId, machine: &Machine) -> Result<()> {
    let nic = machine.nics[0].id;
    for up in [false, true] {
        bench.driver().set_link(vm, nic, up)?;
        let found = bench.driver().status(vm)?.machine.context("no machine")?.nics[0].link_up;
        ensure!(found == up, "the cable is not as it was set");
    }
    kind(bench.driver().set_link(vm, NicId::new(), true), FaultKind::NotFound)
}

fn disks(bench: &dyn Bench, vm: VmId) -> Result<()> {
    let driver = bench.driver();
    let blocks = bench.world().address(&volume("more"));
    let disk =
        DiskSlot { id: DiskId::new(), slot: 4, volume: volume("more"), read_only: false, firmware_variables: false };
    driver.add_disk(vm, &disk, &blocks)?;
    driver.add_disk(vm, &disk, &blocks)?;
    let other = DiskSlot { id: DiskId::new(), ..disk.clone() };
    kind(driver.add_disk(vm, &other, &blocks), FaultKind::Conflict)?;
    let has = || -> Result<bool> { Ok(driver.status(vm)?.machine.context("no machine")?.disks.contains(&disk)) };
    ensure!(has()?, "the disk is not there");
    let wish = keyframe_agent_api::ResizeVolume { size: keyframe_agent_api::Bytes(32 << 20), shrink: false };
    keyframe_agent::array::Array::resize(&*bench.world().array, "more", &wish)?;
    driver.disk_resized(vm, disk.id)?;
    kind(driver.disk_resized(vm, DiskId::new()), FaultKind::NotFound)?;
    driver.remove_disk(vm, disk.id, PATIENCE)?;
    ensure!(!has()?, "the disk is still there");
    driver.remove_disk(vm, disk.id, PATIENCE)?;
    Ok(())
}

fn freezing(bench: &dyn Bench, vm: VmId) -> Result<()> {
    let driver = bench.driver();
    ensure!(driver.freeze(vm, PATIENCE, PATIENCE)? > 0, "nothing was frozen");
    kind(driver.freeze(vm, PATIENCE, PATIENCE), FaultKind::Conflict)?;
    driver.thaw(vm)?;
    kind(driver.thaw(vm), FaultKind::Conflict)?;
    let hold = Duration::from_millis(50);
    driver.freeze(vm, PATIENCE, hold)?;
    std::thread::sleep(hold * 4);
    kind(driver.thaw(vm), FaultKind::Guest)?;
    let fixed = driver.fix_identity(vm, &GuestIdentity { clock: true, ..GuestIdentity::default() }, PATIENCE)?;
    ensure!(fixed.agent && fixed.clock == Some(true) && fixed.complaints.is_empty(), "{fixed:?}");
    ensure!(!fixed.plugged, "the cables of what is no copy are nobody's business: {fixed:?}");
    let identity = GuestIdentity { host_name: Some("copy".into()), ..GuestIdentity::default() };
    let fixed = driver.fix_identity(vm, &identity, PATIENCE)?;
    ensure!(fixed.plugged && fixed.host_name == Some(true), "nobody says that its cables are in: {fixed:?}");
    Ok(())
}

fn captures_that_fail(bench: &dyn Bench, vm: VmId) -> Result<()> {
    let driver = bench.driver();
    let image = bench.world().dir.path().join("bad.kfm");
    let nothing_left = || -> Result<()> {
        for entry in std::fs::read_dir(bench.world().dir.path())? {
            let name = entry?.file_name();
            ensure!(!name.to_string_lossy().starts_with("bad.kfm"), "something is left of the image: {name:?}");
        }
        expect(bench, vm, &Power::Running)
    };
    for questions in [0, 1, 3] {
        let mut cut = bench.world().cut(&["root", "data"]);
        kind(driver.capture(vm, &image, &mut cut, &After::questions(questions)), FaultKind::Deadline)?;
        nothing_left()?;
    }
    let mut cut = bench.world().cut(&["root", "data"]);
    cut.fail_arm = Some(FaultKind::Busy);
    kind(driver.capture(vm, &image, &mut cut, &After::never()), FaultKind::Busy)?;
    nothing_left()?;
    let mut cut = bench.world().cut(&["root", "data"]);
    cut.fail_cut = Some(FaultKind::NoSpace);
    kind(driver.capture(vm, &image, &mut cut, &After::never()), FaultKind::NoSpace)?;
    nothing_left()?;
    ensure!(cut.log == ["arm", "cut"], "{:?}", cut.log);
    Ok(())
}

fn captures(bench: &dyn Bench, vm: VmId, machine: &Machine, image: &std::path::Path) -> Result<()> {
    let driver = bench.driver();
    driver.pause(vm)?;
    let mut cut = bench.world().cut(&["root", "data"]);
    let captured = driver.capture(vm, image, &mut cut, &After::never())?;
    ensure!(captured.method == CutMethod::AtRest && captured.paused.is_zero(), "{captured:?}");
    expect(bench, vm, &PAUSED)?;
    // It is no other machine for that, so it can be captured again.
    let captured = driver.capture(vm, image, &mut bench.world().cut(&["root", "data"]), &After::never())?;
    ensure!(captured.method == CutMethod::AtRest, "{captured:?}");
    expect(bench, vm, &PAUSED)?;
    driver.resume(vm)?;
    expect(bench, vm, &Power::Running)?;
    let mut cut = bench.world().cut(&["root", "data"]);
    let began = Instant::now();
    let captured = driver.capture(vm, image, &mut cut, &After::never())?;
    println!("cut at resume: paused {:?}, all of it {:?}", captured.paused, began.elapsed());
    ensure!(captured.method == CutMethod::AtResume && cut.log == ["arm", "cut"], "{captured:?} {:?}", cut.log);
    expect(bench, vm, &Power::Running)?;
    let found = driver.image(image)?;
    ensure!(found.memory == machine.memory && !found.compressed, "{found:?}");
    ensure!(driver.verify(image, &Work::default())? == found);
    kind(driver.verify(&image.with_extension("none"), &Work::default()), FaultKind::NotFound)?;
    kind(driver.image(&image.with_extension("none")), FaultKind::NotFound)?;
    std::fs::write(image.with_extension("junk"), b"junk")?;
    kind(driver.image(&image.with_extension("junk")), FaultKind::Corrupt)
}

fn resumes(bench: &dyn Bench, vm: VmId, machine: &Machine, image: &std::path::Path) -> Result<()> {
    let larger = Machine { memory: keyframe_agent_api::Bytes::mib(512), ..machine.clone() };
    kind(bench.driver().check(&larger, Some(image)), FaultKind::Invalid)?;
    kind(bench.driver().check(machine, Some(&image.with_extension("junk"))), FaultKind::Corrupt)?;
    bench.driver().check(machine, Some(image))?;
    kind(bench.start(vm, &larger, Some(image), false), FaultKind::Invalid)?;
    kind(bench.start(vm, machine, Some(&image.with_extension("none")), false), FaultKind::NotFound)?;
    kind(bench.start(vm, machine, Some(&image.with_extension("junk")), false), FaultKind::Corrupt)?;
    expect(bench, vm, &Power::Off)?;
    let (given_up, work) = (Work::default(), Work::default());
    given_up.cancel();
    kind(bench.driver().compress(image, &given_up), FaultKind::Conflict)?;
    ensure!(!bench.driver().image(image)?.compressed, "nobody hears that it is called off");
    ensure!(bench.driver().compress(image, &work)?.compressed, "it is not compressed");
    ensure!(work.progress().total > 0, "nobody knows how far it was");
    let began = Instant::now();
    bench.start(vm, machine, Some(image), false)?;
    println!("resumed after {:?}", began.elapsed());
    expect(bench, vm, &Power::Running)?;
    // Waits for what is still to come.
    let again = image.with_extension("again");
    let captured = bench.driver().capture(vm, &again, &mut bench.world().cut(&["root", "data"]), &After::never())?;
    ensure!(captured.method == CutMethod::AtResume, "{captured:?}");
    let pending = bench.driver().status(vm)?.memory_pending;
    ensure!(pending.0 == 0, "{pending} bytes are pending after a capture");
    Ok(())
}

/// The machine, which runs, is given up, and another goes on in its place while its memory is stored.
fn sets_aside(bench: &mut dyn Bench, vm: VmId, machine: &Machine, other: &std::path::Path) -> Result<()> {
    let (snapshot, image) = (SnapshotId::new(), other.with_extension("aside"));
    let store = |bench: &dyn Bench, snapshot| bench.driver().store_aside(snapshot, &image, &After::never());
    kind(bench.driver().set_aside(vm, snapshot), FaultKind::Conflict)?;
    expect(bench, vm, &Power::Running)?;
    bench.driver().pause(vm)?;
    bench.driver().set_aside(vm, snapshot)?;
    expect(bench, vm, &Power::Off)?;
    kind(bench.driver().set_aside(vm, snapshot), FaultKind::Conflict)?;
    kind(bench.driver().resume(vm), FaultKind::Conflict)?;
    bench.again();
    ensure!(bench.driver().adopt()?.is_empty(), "what is set aside is taken for a machine");
    expect(bench, vm, &Power::Off)?;
    // It stands still, so that the disks stay as the first one needs them.
    bench.start(vm, machine, Some(other), true)?;
    bench.again();
    ensure!(bench.driver().adopt()? == [vm], "the machine is not found beside what is set aside");
    ensure!(bench.driver().is_aside(snapshot), "what is set aside is not found beside the machine");
    store(bench, snapshot)?;
    expect(bench, vm, &PAUSED)?;
    ensure!(
        bench.driver().verify(&image, &Work::default())?.memory == machine.memory,
        "not all of its memory is there"
    );
    bench.driver().drop_aside(snapshot)?;
    bench.driver().drop_aside(snapshot)?;
    kind(store(bench, snapshot), FaultKind::NotFound)?;
    expect(bench, vm, &PAUSED)?;
    bench.driver().stop(vm, StopHow::Hard)?;
    bench.start(vm, machine, Some(&image), false)?;
    bench.driver().freeze(vm, PATIENCE, PATIENCE)?;
    bench.driver().thaw(vm)?;

    // One whose process dies is lost, and nothing else is.
    bench.driver().pause(vm)?;
    let process = bench.driver().set_aside(vm, snapshot)?;
    bench.start(vm, machine, Some(&image), true)?;
    bench.kill_aside(snapshot, process)?;
    kind(store(bench, snapshot), FaultKind::NotFound)?;
    bench.driver().drop_aside(snapshot)?;
    expect(bench, vm, &PAUSED)?;
    bench.driver().stop(vm, StopHow::Hard)?;
    // Its disks have gone on since.
    bench.start(vm, machine, None, false)?;
    bench.wait_up(vm)
}

fn a_death_is_told(bench: &dyn Bench, vm: VmId) -> Result<()> {
    let (tell, told) = channel();
    bench.driver().watch(Box::new(move |vm, news| drop(tell.send((vm, news)))));
    bench.driver().pause(vm)?;
    bench.driver().resume(vm)?;
    bench.kill(vm)?;
    let news = told.recv_timeout(PATIENCE).context("nobody told of its death")?;
    ensure!(news == (vm, News::Does(Power::Off)), "what was told is {news:?}");
    expect(bench, vm, &Power::Off)
}
