//! Whether KVM runs guests here, found out by running one.
//!
//! `/dev/kvm` says little: it exists inside machines whose host lets a guest start and then hang. A kernel is booted as
//! far as its first process; the answer is kept until the kernel or QEMU changes.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::console::{Console, Mark};
use crate::guest::Guest;
use crate::process::{Ending, Process, run_tool};
use crate::scratch;

/// What executes the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    /// The processor itself.
    Kvm,
    /// QEMU's translator: works everywhere, five to twenty times slower.
    Tcg,
}

/// A kernel that runs at all under KVM is there within a second or two.
const PATIENCE: Duration = Duration::from_secs(10);

impl Accelerator {
    /// The best one that works here; says so when it is not KVM.
    pub fn choose(guest: &Guest) -> Result<Accelerator> {
        let chosen = Accelerator::remembered_or_probed(guest)?;
        if chosen == Accelerator::Tcg {
            println!("NOTE: KVM runs no guests here, so QEMU emulates the processor; guests are several times slower.");
        }
        Ok(chosen)
    }

    /// QEMU's options for it.
    pub fn options(self) -> &'static [&'static str] {
        match self {
            Accelerator::Kvm => &["-accel", "kvm", "-cpu", "host"],
            // `max` would boot slower: the kernel uses features that cost the translator much.
            Accelerator::Tcg => &["-accel", "tcg,thread=multi", "-cpu", "qemu64"],
        }
    }

    fn remembered_or_probed(guest: &Guest) -> Result<Accelerator> {
        let device = fs::File::options().read(true).write(true).open("/dev/kvm");
        if device.is_err() {
            return Ok(Accelerator::Tcg);
        }
        let kernel = fs::read_to_string("/proc/version").context("read /proc/version")?;
        let qemu = run_tool(Command::new("qemu-system-x86_64").arg("--version"))?;
        let memory = scratch::folder()?.join("accelerator");
        for accelerator in [Accelerator::Kvm, Accelerator::Tcg] {
            // An unreadable answer is as good as none.
            if fs::read_to_string(&memory).is_ok_and(|text| text == accelerator.entry(&kernel, &qemu)) {
                return Ok(accelerator);
            }
        }
        println!("trying whether KVM runs a guest (up to {} s, once)", PATIENCE.as_secs());
        let answer = if boots(guest)? { Accelerator::Kvm } else { Accelerator::Tcg };
        fs::write(&memory, answer.entry(&kernel, &qemu)).with_context(|| format!("write {}", memory.display()))?;
        Ok(answer)
    }

    fn entry(self, kernel: &str, qemu: &str) -> String {
        format!("{self:?}\n{kernel}{qemu}")
    }
}

fn boots(guest: &Guest) -> Result<bool> {
    let log = scratch::folder()?.join("kvm-probe.log");
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args(Accelerator::Kvm.options())
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-machine", "q35,usb=off"])
        .args(["-m", "128", "-serial", "stdio"])
        .arg("-kernel")
        .arg(&guest.kernel)
        .arg("-initrd")
        .arg(&guest.initrd)
        .args(["-append", "console=ttyS0 quiet panic=-1 rdinit=/bin/busybox -- echo FIRST-PROCESS"])
        .stdout(Stdio::piped());
    let mut process = Process::spawn("the KVM probe", &mut command, Ending::Kill, &log)?;
    let console = Console::follow(process.take_output().context("the probe has no output")?);
    let seen = console
        .wait_for(Mark::default(), PATIENCE, "first process", |line| line.contains("FIRST-PROCESS").then_some(()));
    Ok(seen.is_ok())
}
