//! A guest that lets go of a disk when nobody waits for that any more.

use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use keyframe_agent::hypervisor::News;
use keyframe_agent_api::{FaultKind, StopHow, VmId};
use serde_json::json;

use super::fixture::{Bench, QemuBench, machine};
use super::real::tell;

const PATIENCE: Duration = Duration::from_secs(60);
/// There is no system in the guest that could let go of anything before the reset does.
const NEVER: Duration = Duration::from_millis(500);

#[test]
fn a_disk_that_the_guest_lets_go_of_too_late_is_plugged_in_again() -> Result<()> {
    let mut bench = QemuBench::new()?;
    let hardware = machine("pc-q35-10.0", None, &["more", "data"]);
    let disk = &hardware.disks[1];
    for somebody in [true, false] {
        // Each on its first boot: later ones reset themselves once more.
        let vm = VmId::new();
        bench.start(vm, &hardware, None, false)?;
        let mut told = news(&bench);
        let fault = bench.driver().remove_disk(vm, disk.id, NEVER).err().context("nobody is there to let go of it")?;
        ensure!(fault.kind == FaultKind::Deadline, "{fault}");
        ensure!(fault.message.contains("disk local/data") && fault.message.contains("or stop the machine"), "{fault}");
        if somebody {
            bench.driver().reset(vm)?;
        } else {
            let socket = bench.file(vm, "qmp.sock");
            bench.again();
            tell(&socket, "system_reset", &json!({}))?;
            told = news(&bench);
            ensure!(bench.driver().adopt()? == [vm]);
        }
        is_told(&told, vm).with_context(|| format!("with an agent all the time: {somebody}"))?;
        ensure!(
            bench.driver().status(vm)?.machine.context("no machine")?.disks.contains(disk),
            "it is not in the record"
        );
        is_plugged_in(&mut bench, vm)?;
        bench.driver().stop(vm, StopHow::Hard)?;
    }
    Ok(())
}

fn news(bench: &QemuBench) -> Receiver<(VmId, News)> {
    let (tell, told) = channel();
    bench.driver().watch(Box::new(move |vm, news| tell.send((vm, news)).unwrap_or(())));
    told
}

fn is_told(told: &Receiver<(VmId, News)>, vm: VmId) -> Result<()> {
    loop {
        if let (of, News::Complains(fault)) = told.recv_timeout(PATIENCE).context("nobody told of it")? {
            let named = fault.message.contains("disk local/data") && fault.message.contains("it is plugged in again");
            ensure!(of == vm && named, "{of}: {fault}");
            return Ok(());
        }
    }
}

fn is_plugged_in(bench: &mut QemuBench, vm: VmId) -> Result<()> {
    let socket = bench.file(vm, "qmp.sock");
    bench.again();
    tell(&socket, "qom-list", &json!({ "path": "/machine/peripheral/disk1" }))?;
    ensure!(bench.driver().adopt()? == [vm]);
    Ok(())
}
