//! Whether a stored memory can be loaded by what a host has: the one place with that rule. It is what QEMU promises: a machine
//! of a versioned type that an older QEMU stored goes on in a newer one, never the other way about. One that was emulated does
//! not go on by the processor, nor the other way about. Whether the newer one keeps the promise shows when it loads; an apply
//! that fails so goes back to the guest that ran.

use crate::agent::{Accelerator, HostInfo, MemoryInfo};

/// What would load a memory.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Loader {
    /// The hypervisor and its version, for example `qemu 10.0.2`.
    pub hypervisor: String,
    /// It emulates guests.
    pub emulated: bool,
}

impl From<&HostInfo> for Loader {
    fn from(host: &HostInfo) -> Loader {
        let emulated = matches!(host.accelerator, Accelerator::Emulation { .. });
        Loader { hypervisor: host.hypervisor.clone(), emulated }
    }
}

impl Loader {
    /// Why this memory cannot be loaded, for people.
    pub fn objection(&self, memory: &MemoryInfo) -> Option<String> {
        let (name, version) = parts(&memory.hypervisor);
        let (here, version_here) = parts(&self.hypervisor);
        if name != here {
            return Some(format!(
                "its memory was stored by {}, and the host has {}",
                memory.hypervisor, self.hypervisor
            ));
        }
        if version > version_here {
            return Some(format!(
                "its memory was stored by {}, and the host has {}, which is older and does not understand it",
                memory.hypervisor, self.hypervisor
            ));
        }
        if memory.emulated != self.emulated {
            let how = |emulated| if emulated { "emulated" } else { "run by the processor" };
            let (then, now) = (how(memory.emulated), how(self.emulated));
            return Some(format!("its guest was {then}, and guests of the host are {now}"));
        }
        None
    }
}

/// The name, and the numbers of the version, to be compared.
fn parts(hypervisor: &str) -> (&str, Vec<u64>) {
    let (name, version) = hypervisor.split_once(' ').unwrap_or((hypervisor, ""));
    (name, version.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::Bytes;

    #[test]
    fn older_memories_are_loaded_and_newer_or_other_ones_are_not() {
        let check = |stored: (&str, bool), here: (&str, bool), part: Option<&str>| {
            let (memory, bytes) = (Bytes::mib(1), Bytes(1));
            let info = MemoryInfo {
                memory,
                stored: bytes,
                hypervisor: stored.0.into(),
                emulated: stored.1,
                compressed: false,
            };
            let loader = Loader { hypervisor: here.0.into(), emulated: here.1 };
            match (loader.objection(&info), part) {
                (None, None) => {}
                (Some(why), Some(part)) => assert!(why.contains(part), "{why}"),
                (found, _) => panic!("{stored:?} in {here:?}: {found:?}"),
            }
        };
        check(("qemu 10.0.2", true), ("qemu 10.0.2", true), None);
        check(("qemu 7.2.22", true), ("qemu 10.0.2", true), None);
        check(("qemu 9.2.0", false), ("qemu 10.0.2", false), None);
        check(
            ("qemu 10.0.2", true),
            ("qemu 9.2.0", true),
            Some("by qemu 10.0.2, and the host has qemu 9.2.0, which is older"),
        );
        check(("qemu 10.0.2", true), ("qemu 10.0.1", true), Some("older"));
        check(("qemu 10.0.2", true), ("other 10.0.2", true), Some("the host has other 10.0.2"));
        check(("qemu 10.0.2", true), ("qemu 10.0.2", false), Some("was emulated, and guests of the host are run by"));
    }
}
