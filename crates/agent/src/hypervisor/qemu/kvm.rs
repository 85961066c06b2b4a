//! Whether the processor runs guests here, found out by letting it run one.
//!
//! `/dev/kvm` says little: it exists inside machines whose host lets a guest start and then hang. A guest of one sector
//! goes through the BIOS and ends itself; who does not end in time cannot be relied on. The answer is kept until the kernel
//! or QEMU changes.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use keyframe_agent_api::Accelerator;
use rustix::process::{Signal, set_parent_process_death_signal};

/// It takes a tenth of a second where it works.
const PATIENCE: Duration = Duration::from_secs(10);
/// What the guest writes to the port that ends it, and the exit code that QEMU makes of it.
const WORD: u8 = 0x21;
const EXIT: i32 = (WORD as i32) << 1 | 1;

/// The best that works.
pub(super) fn choose(program: &Path, machines: &Path, version: &str) -> Accelerator {
    if let Err(e) = fs::File::options().read(true).write(true).open("/dev/kvm") {
        return Accelerator::Emulation { reason: format!("/dev/kvm: {e}") };
    }
    let kernel = fs::read_to_string("/proc/version").unwrap_or_default();
    let kept = machines.join("accelerator.json");
    let key = format!("{} {version}", kernel.trim());
    if let Some(answer) = remembered(&kept, &key) {
        return answer;
    }
    let answer = match probe(program, machines) {
        Ok(None) => Accelerator::Kvm,
        Ok(Some(reason)) => Accelerator::Emulation { reason },
        Err(e) => return Accelerator::Emulation { reason: format!("cannot try KVM: {e}") },
    };
    let text = serde_json::json!({ "host": key, "answer": answer }).to_string();
    if let Err(e) = fs::write(&kept, text) {
        tracing::warn!("write {}: {e}", kept.display());
    }
    answer
}

fn remembered(kept: &Path, key: &str) -> Option<Accelerator> {
    let value: serde_json::Value = serde_json::from_slice(&fs::read(kept).ok()?).ok()?;
    (value["host"] == key).then(|| serde_json::from_value(value["answer"].clone()).ok()).flatten()
}

/// Runs the guest; why not, if it does not run.
fn probe(program: &Path, machines: &Path) -> io::Result<Option<String>> {
    fs::create_dir_all(machines)?;
    let disk = machines.join("accelerator.probe");
    fs::write(&disk, boot_sector())?;
    let drive = serde_json::json!({ "driver": "raw", "node-name": "probe", "read-only": true,
        "file": { "driver": "file", "filename": disk } });
    let mut command = Command::new(program);
    // Nobody would end it if this process ended meanwhile.
    // SAFETY: the closure runs between fork and exec and makes one system call; it neither allocates nor locks.
    unsafe { command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?)) };
    let mut child = command
        .args(["-accel", "kvm", "-cpu", "host", "-machine", "q35,usb=off", "-m", "32", "-no-reboot"])
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-blockdev", &drive.to_string()])
        .args(["-device", "virtio-blk-pci,drive=probe,bootindex=1"])
        .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let until = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        if Instant::now() > until {
            child.kill()?;
            child.wait()?;
            break None;
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    fs::remove_file(&disk)?;
    Ok(match status {
        Some(status) if status.code() == Some(EXIT) => None,
        Some(status) => Some(format!("a trial guest under KVM ended with {status}")),
        None => Some(format!("a trial guest under KVM did not get through its BIOS within {PATIENCE:?}")),
    })
}

/// `mov dx, 0xf4; mov al, WORD; out dx, al; hlt; jmp` back to the `hlt`; the BIOS wants its signature at the end.
fn boot_sector() -> Vec<u8> {
    let mut sector = vec![0; 64 << 10];
    sector[..9].copy_from_slice(&[0xba, 0xf4, 0x00, 0xb0, WORD, 0xee, 0xf4, 0xeb, 0xfd]);
    sector[510..512].copy_from_slice(&[0x55, 0xaa]);
    sector
}
