//! Names that people give.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{Refusal, RefusalKind};

/// Most characters of a name; also what fits a DNS label, because a machine's name becomes a guest's host name.
const MAX_NAME: usize = 63;

/// The name of a machine, snapshot or template: 1 to 63 of the characters `A-Z a-z 0-9 . _ -`, the first a letter or digit.
/// Unique among things of its kind (for snapshots: within one machine).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String)]
pub struct Name(String);

impl Name {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether something new may be called so that can be referred to by its identifier as well: not by what looks like one.
    pub fn check_new(&self) -> Result<(), Refusal> {
        if uuid::Uuid::parse_str(&self.0).is_err() {
            return Ok(());
        }
        let message =
            format!("the name '{self}' looks like an identifier, and nobody could tell which is meant; choose another");
        Err(Refusal::new(RefusalKind::Invalid, message))
    }
}

impl FromStr for Name {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Name, Refusal> {
        let refuse = |why: &str| {
            let shown: String = text.chars().take(MAX_NAME).collect();
            Err(Refusal::new(RefusalKind::Invalid, format!("the name '{}' {why}", shown.escape_debug())))
        };
        if text.is_empty() {
            return Err(Refusal::new(RefusalKind::Invalid, "a name must not be empty"));
        }
        if text.len() > MAX_NAME {
            return refuse(&format!("is longer than {MAX_NAME} characters"));
        }
        if !text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
            return refuse("must start with a letter or a digit");
        }
        if let Some(bad) = text.chars().find(|&c| !c.is_ascii_alphanumeric() && !"._-".contains(c)) {
            return refuse(&format!(
                "has '{}' in it; letters, digits, '.', '_' and '-' are allowed",
                bad.escape_debug()
            ));
        }
        Ok(Name(text.to_owned()))
    }
}

impl TryFrom<String> for Name {
    type Error = Refusal;

    fn try_from(text: String) -> Result<Name, Refusal> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> String {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Names for several things at once: a name in which `{n}` stands for 1, 2, 3, … A pattern without it serves only one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NamePattern(String);

impl NamePattern {
    /// Takes any text; what it expands to is checked.
    pub fn new(text: impl Into<String>) -> NamePattern {
        NamePattern(text.into())
    }

    /// The first `count` names, counted from `first`.
    pub fn expand(&self, first: u32, count: u32) -> Result<Vec<Name>, Refusal> {
        if count != 1 && !self.0.contains("{n}") {
            let message = format!("the name '{}' is for one only; put {{n}} where the number is to be", self.0);
            return Err(Refusal::new(RefusalKind::Invalid, message));
        }
        (0..count).map(|i| self.0.replace("{n}", &(u64::from(first) + u64::from(i)).to_string()).parse()).collect()
    }
}

/// The first of `stem-1`, `stem-2`, … that is not taken. A stem that is too long loses its end.
pub fn numbered(stem: &str, taken: &BTreeSet<Name>) -> Name {
    let mut number = 1u64;
    loop {
        let tail = format!("-{number}");
        let head: String = stem.chars().take(MAX_NAME - tail.len()).collect();
        let name = Name(format!("{head}{tail}"));
        if !taken.contains(&name) {
            return name;
        }
        number += 1;
    }
}

/// A word attached to a snapshot, by the rules of names.
pub type Tag = Name;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        for good in ["a", "web-1", "A.b_c", "7", &"x".repeat(63)] {
            assert_eq!(good.parse::<Name>().unwrap().as_str(), good);
        }
        for (bad, says) in [
            ("", "a name must not be empty"),
            ("-a", "the name '-a' must start with a letter or a digit"),
            ("a/b", "the name 'a/b' has '/' in it; letters, digits, '.', '_' and '-' are allowed"),
            ("a\nb", "the name 'a\\nb' has '\\n' in it; letters, digits, '.', '_' and '-' are allowed"),
        ] {
            assert_eq!(bad.parse::<Name>().unwrap_err().to_string(), says);
        }
        let long = "x".repeat(10_000).parse::<Name>().unwrap_err().to_string();
        assert_eq!(long, format!("the name '{}' is longer than 63 characters", "x".repeat(63)));
    }

    #[test]
    fn what_looks_like_an_identifier_is_no_new_name() {
        let new = |name: &str| name.parse::<Name>().unwrap().check_new();
        for name in ["0194c2a5-7d7e-7a3c-9a52-0f6a1b2c3d4e", "0194C2A57D7E7A3C9A520F6A1B2C3D4E"] {
            assert!(new(name).unwrap_err().message.contains("looks like an identifier"), "{name}");
        }
        new("0194c2a5-web").unwrap();
    }

    #[test]
    fn patterns_count() {
        let names = |pattern: &str, first, count| NamePattern::new(pattern).expand(first, count);
        assert_eq!(names("web-{n}", 1, 3).unwrap(), ["web-1", "web-2", "web-3"].map(|n| n.parse().unwrap()));
        assert_eq!(names("web", 1, 1).unwrap(), ["web".parse().unwrap()]);
        assert!(names("web", 1, 2).is_err());
    }
}
