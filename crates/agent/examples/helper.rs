//! The program behind `QemuConfig::helper` in tests.

use std::process::ExitCode;

fn main() -> ExitCode {
    keyframe_agent::hypervisor::qemu::helper::run(std::env::args_os().skip(1))
}
