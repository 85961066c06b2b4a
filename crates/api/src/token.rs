//! Tokens: 256 bits of chance, shown once. Only their hashes are stored; a hash of that much chance needs no salt.

use std::fmt::Write as _;

/// What every token begins with, so that one that leaked is recognised as ours.
const PREFIX: &str = "kf_";

/// The name of the token that every installation has; its secret is in a file beside the catalog.
pub const ADMIN: &str = "admin";

/// A new token's secret.
pub fn make() -> std::io::Result<String> {
    let mut bytes = [0u8; 32];
    let mut filled = 0;
    while filled < bytes.len() {
        filled += rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty())?;
    }
    let mut text = PREFIX.to_owned();
    for byte in bytes {
        // Writing to a string does not fail.
        write!(text, "{byte:02x}").unwrap_or(());
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_differ_and_have_256_bits() {
        let (one, other) = (make().unwrap(), make().unwrap());
        assert_ne!(one, other);
        assert_eq!(one.len(), PREFIX.len() + 64);
    }
}
