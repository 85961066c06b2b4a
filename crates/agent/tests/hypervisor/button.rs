//! A guest without an agent that listens to the power button.

use std::time::Duration;

use anyhow::{Result, ensure};
use keyframe_agent_api::{Power, StopHow, VmId};
use keyframe_lab::qga::Agent;

use super::fixture::{Bench, QemuBench};

const PATIENCE: Duration = Duration::from_secs(60);

/// Has busybox power off when the button is pressed, and ends the guest agent a moment after it has answered.
const LISTEN: &str = r#"mkdir -p /run/acpi/PWRF
printf '#!/bin/sh\necho THE-BUTTON >/dev/console\nsync\npoweroff -f\n' >/run/acpi/PWRF/00000080
chmod +x /run/acpi/PWRF/00000080
acpid -c /run/acpi -l /run/acpid.log
(sleep 0.3; killall -KILL qemu-ga; echo NO-AGENT >/dev/console) >/dev/null 2>&1 &"#;

#[test]
fn a_guest_without_an_agent_hears_the_power_button() -> Result<()> {
    let bench = QemuBench::new()?;
    let (vm, hardware) = (VmId::new(), bench.machine());
    bench.start(vm, &hardware, None, false)?;
    bench.wait_up(vm)?;
    let done = Agent::connect(&bench.file(vm, "qga.sock"), PATIENCE)?.shell(LISTEN, PATIENCE)?;
    ensure!(done.code == Some(0), "{done:?}");
    bench.wait_console(vm, 0, "NO-AGENT")?;
    bench.driver().stop(vm, StopHow::Graceful { deadline: PATIENCE.into(), then_hard: false })?;
    ensure!(bench.driver().status(vm)?.power == Power::Off, "it is still on");
    ensure!(bench.console(vm).contains("THE-BUTTON"), "it went off by itself: {}", bench.console(vm));
    Ok(())
}
