//! Names of volumes: they stand in paths of the API, in names of exports, and in file names of some drivers.

use keyframe_agent_api::{Fault, FaultKind};

use crate::Result;

/// Longest name in bytes.
const LONGEST: usize = 128;
/// Ends the names of volumes that are not whole yet.
pub(super) const PART: &str = ".part";

/// Letters, digits, `.`, `_` and `-`, not at the beginning a dot or a hyphen.
pub fn check_name(what: &str, name: &str) -> Result<()> {
    let refuse = |why: &str| {
        let shown: String = name.chars().take(40).collect();
        Err(Fault::new(FaultKind::Invalid, format!("{what} name {shown:?} {why}")))
    };
    if name.is_empty() || name.len() > LONGEST {
        return refuse("must have 1 to 128 characters");
    }
    if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte)) {
        return refuse("may have letters, digits, '.', '_' and '-' only");
    }
    if name.starts_with(['.', '-']) {
        return refuse("must not begin with a dot or a hyphen");
    }
    if name.ends_with(PART) {
        return refuse("must not end in \".part\", which marks volumes that are being filled");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain() {
        let check = |name: &str, good: bool| assert_eq!(check_name("volume", name).is_ok(), good, "{name:?}");
        check("0190e5a1-7d3e-7b3a-8000-000000000001", true);
        check("a.b_c-d", true);
        check(&"x".repeat(128), true);
        check(&"x".repeat(129), false);
        check("", false);
        check(".", false);
        check("..", false);
        check(".hidden", false);
        check("-x", false);
        check("a/b", false);
        check("a@b", false);
        check("a%2fb", false);
        check("a b", false);
        check("ü", false);
        check("a\0", false);
        check("disk.part", false);
    }
}
