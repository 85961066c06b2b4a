//! What QEMU and this host can do. Asked once.

use std::path::{Path, PathBuf};
use std::process::Command;

use keyframe_agent_api::{Accelerator, Fault, FaultKind};

use super::{QemuConfig, kvm};
use crate::Result;
use crate::hypervisor::HypervisorInfo;

pub(super) struct Host {
    version: String,
    machine_types: Vec<String>,
    accelerator: Accelerator,
    uefi: Option<Uefi>,
}

struct Uefi {
    code: PathBuf,
    variables: PathBuf,
}

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
        Ok(Host { version, machine_types, accelerator, uefi: FIRMWARE.iter().find_map(both) })
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
        format!("qemu {}", self.version)
    }

    pub(super) fn accelerator(&self) -> &Accelerator {
        &self.accelerator
    }

    pub(super) fn uefi_code(&self) -> Option<&Path> {
        self.uefi.as_ref().map(|uefi| uefi.code.as_path())
    }

    pub(super) fn knows(&self, machine_type: &str) -> bool {
        self.machine_types.iter().any(|known| known == machine_type)
    }
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
    let order = |name: &String| -> Vec<u32> {
        name.trim_start_matches("pc-q35-").split('.').filter_map(|part| part.parse().ok()).collect()
    };
    found.sort_by_key(order);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

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
