//! One number for much text.

use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};

/// The SHA-256 of it, in hexadecimal.
pub(crate) fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::with_capacity(64), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap_or_default();
        text
    })
}
