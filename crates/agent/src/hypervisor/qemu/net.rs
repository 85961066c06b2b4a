//! The other end of a network interface's cable: names here, devices in `tap`.

use std::path::{Path, PathBuf};

use keyframe_agent_api::NicId;

/// The tap device of an interface: at most 15 bytes, the kernel's limit.
pub(super) fn tap_name(nic: NicId) -> String {
    // The end of the identifier is its random part.
    let digits = nic.uuid().simple().to_string();
    format!("kf{}", &digits[digits.len() - 12..])
}

/// The socket of an isolated network's hub. Networks have any name, sockets a short one.
pub(super) fn hub_socket(networks: &Path, network: &str) -> PathBuf {
    // FNV-1a, 64 bits.
    let hash = network
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    networks.join(format!("{hash:016x}.sock"))
}
