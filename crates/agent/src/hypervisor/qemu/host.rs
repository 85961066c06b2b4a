//! What QEMU and this host can do. Asked once.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use keyframe_agent_api::{Accelerator, Fault, FaultKind};
use parking_lot::Mutex;

use super::{QemuConfig, command, kvm};
use crate::Result;
use crate::hypervisor::HypervisorInfo;

pub(super) struct Host {
    version: String,
    machine_types: Vec<String>,
    accelerator: Accelerator,
    uefi: Option<Uefi>,
    sandbox: bool,
}

/// The answer, once there is one. A failure is none: who comes next asks again.
#[derive(Default)]
pub(super) struct Asked {
    host: OnceLock<Host>,
    /// Held while it is asked: two trials of KVM at a time would take each other's disk away, and fail.
    turn: Mutex<()>,
}

impl Asked {
    pub(super) fn of(&self, config: &QemuConfig) -> Result<&Host> {
        if let Some(host) = self.host.get() {
            return Ok(host);
        }
        let _turn = self.turn.lock();
        match self.host.get() {
            Some(host) => Ok(host),
            None => Host::ask(config).map(|host| self.host.get_or_init(|| host)),
        }
    }
}

struct Uefi {
    code: PathBuf,
    variables: PathBuf,
}

/// It takes a tenth of a second.
const CONFINE: Duration = Duration::from_secs(10);

/// The oldest QEMU that has all that is asked of it, isolated networks apart.
const OLDEST: [u32; 2] = [7, 2];

/// Where distributions put OVMF.
const FIRMWARE: [(&str, &str); 3] = [
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/edk2/ovmf/OVMF_CODE_4M.fd", "/usr/share/edk2/ovmf/OVMF_VARS_4M.fd"),
    ("/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"),
];

impl Host {
    pub(super) fn ask(config: &QemuConfig) -> Result<Host> {
        let version = version(&output(&config.program, "--version")?)
            .ok_or_else(|| unusable(&config.program, "it does not say its version"))?;
        if numbers(&version) < OLDEST.to_vec() {
            let [major, minor] = OLDEST;
            return Err(unusable(&config.program, &format!("version {version} is too old, {major}.{minor} is needed")));
        }
        let machine_types = machine_types(&output(&config.program, "-machine=help")?);
        if machine_types.is_empty() {
            return Err(unusable(&config.program, "it knows no machine of type q35"));
        }
        let accelerator = match &config.accelerator {
            Some(wish) => wish.clone(),
            None => kvm::choose(&config.program, &config.machines, &version),
        };
        let both = |(code, variables): &(&str, &str)| {
            let (code, variables) = (PathBuf::from(code), PathBuf::from(variables));
            (code.is_file() && variables.is_file()).then_some(Uefi { code, variables })
        };
        let sandbox = can_be_confined(&config.program);
        if !sandbox {
            tracing::warn!("{} cannot confine itself with seccomp; machines run without", config.program.display());
        }
        Ok(Host { version, machine_types, accelerator, uefi: FIRMWARE.iter().find_map(both), sandbox })
    }

    pub(super) fn info(&self) -> HypervisorInfo {
        HypervisorInfo {
            version: self.version(),
            machine_type: self.machine_types.last().cloned().unwrap_or_default(),
            accelerator: self.accelerator.clone(),
            uefi_variables: self.uefi.as_ref().map(|uefi| uefi.variables.clone()),
        }
    }

    /// For example `qemu 10.0.2`.
    pub(super) fn version(&self) -> String {
        named(&self.version)
    }

    pub(super) fn accelerator(&self) -> &Accelerator {
        &self.accelerator
    }

    pub(super) fn uefi_code(&self) -> Option<&Path> {
        self.uefi.as_ref().map(|uefi| uefi.code.as_path())
    }

    /// Whether QEMU can give up system calls that it does not need.
    pub(super) fn sandbox(&self) -> bool {
        self.sandbox
    }

    /// Whether it knows the offloads of UDP.
    pub(super) fn has_uso(&self) -> bool {
        self.is_at_least([8, 2])
    }

    /// Whether the cable of an isolated network is plugged in again by itself when the network's switch was away.
    pub(super) fn reconnects(&self) -> bool {
        self.is_at_least([9, 2])
    }

    fn is_at_least(&self, version: [u32; 2]) -> bool {
        numbers(&self.version) >= version.to_vec()
    }

    pub(super) fn knows(&self, machine_type: &str) -> bool {
        self.machine_types.iter().any(|known| known == machine_type)
    }
}

/// Lets a QEMU without a machine confine itself and end: it was built for it, and the kernel plays along.
fn can_be_confined(program: &Path) -> bool {
    let mut command = Command::new(program);
    command.args(["-sandbox", command::SANDBOX, "-machine", "none", "-nodefaults", "-no-user-config"]);
    command.args(["-display", "none", "-monitor", "stdio", "-S"]);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let Ok(mut child) = command.spawn() else { return false };
    if let Some(mut monitor) = child.stdin.take() {
        // It may have ended, which says the same.
        monitor.write_all(b"quit\n").unwrap_or(());
    }
    let until = Instant::now() + CONFINE;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return status.success(),
            Ok(None) if Instant::now() < until => std::thread::sleep(Duration::from_millis(5)),
            Ok(None) | Err(_) => break,
        }
    }
    if let Err(e) = child.kill().and_then(|()| child.wait()) {
        tracing::warn!("end a trial of {}: {e}", program.display());
    }
    false
}

fn output(program: &Path, argument: &str) -> Result<String> {
    let words = argument.split('=');
    let output = Command::new(program).args(words).output().map_err(|e| unusable(program, &e.to_string()))?;
    if !output.status.success() {
        return Err(unusable(program, String::from_utf8_lossy(&output.stderr).trim()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn unusable(program: &Path, why: &str) -> Fault {
    let message = format!("{}: {why}; install QEMU for x86_64 (qemu-system-x86)", program.display());
    Fault::new(FaultKind::Unsupported, message)
}

/// What a version of QEMU is called everywhere.
pub(super) fn named(version: &str) -> String {
    format!("qemu {version}")
}

/// `QEMU emulator version 10.0.2 (…)`.
fn version(text: &str) -> Option<String> {
    let rest = text.split_once("version ")?.1;
    let number: String = rest.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
    (!number.is_empty()).then_some(number)
}

/// The versioned types of q35, oldest first.
fn machine_types(help: &str) -> Vec<String> {
    let name =
        |line: &str| line.split_whitespace().next().filter(|name| name.starts_with("pc-q35-")).map(str::to_owned);
    let mut found: Vec<String> = help.lines().filter_map(name).collect();
    found.sort_by_key(|name| numbers(name.trim_start_matches("pc-q35-")));
    found
}

/// The numbers of a version, to be compared.
fn numbers(version: &str) -> Vec<u32> {
    version.split('.').filter_map(|part| part.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// Those who come while it is asked wait for the answer, and have the same one.
    #[test]
    fn many_at_once_ask_once() {
        let dir = tempfile::tempdir().expect("a folder");
        let program = dir.path().join("qemu");
        // It notes each question for its version, and takes its time.
        let script = "#!/bin/sh\ncase $1 in\n--version) echo x >> \"$0.asked\"; sleep 0.3; echo 'version 10.0.2' ;;\n\
            -machine) echo 'pc-q35-10.0 PC' ;;\nesac\n";
        fs::write(&program, script).expect("there is room");
        fs::set_permissions(&program, PermissionsExt::from_mode(0o700)).expect("it is ours");
        let accelerator = Some(Accelerator::Emulation { reason: String::new() });
        let config = QemuConfig { program, accelerator, ..QemuConfig::new(dir.path(), Vec::new()) };
        let asked = Asked::default();
        std::thread::scope(|scope| {
            let all: Vec<_> = (0..4).map(|_| scope.spawn(|| asked.of(&config).map(Host::version))).collect();
            for one in all {
                assert_eq!(one.join().expect("no panic").as_deref(), Ok("qemu 10.0.2"));
            }
        });
        assert_eq!(fs::read_to_string(dir.path().join("qemu.asked")).expect("it was asked"), "x\n");
    }

    #[test]
    fn reads_what_qemu_was_recorded_to_say() {
        let text = "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)\nCopyright (c) 2003-2025";
        assert_eq!(version(text).as_deref(), Some("10.0.2"));
        assert_eq!(version("bash: no such program"), None);
        let help = "Supported machines are:\nq35                  Standard PC (Q35) (alias of pc-q35-10.0)\n\
            pc-q35-9.2           Standard PC (Q35 + ICH9, 2009)\npc-q35-10.0          Standard PC\nnone  empty machine\n";
        assert_eq!(machine_types(help), ["pc-q35-9.2", "pc-q35-10.0"]);
    }
}
