//! Failures in words, and for programs: `{"error": …}` with what the manager said (RFC 9457), or the same members for what
//! failed before or without it.

use serde_json::{Value, json};

use crate::reach::Unclear;
use crate::remote::Told;
use crate::remote::client::Refused;

/// Says it, unless the user has read about it; whether the command made no sense.
pub(crate) fn tell(error: &anyhow::Error, json: bool) -> bool {
    let usage = error.is::<Unclear>() || error.is::<keyframe_model::Refusal>();
    match json {
        _ if error.is::<Told>() => {}
        true => eprintln!("{}", failed(error, usage)),
        false => eprintln!("keyframe: {}", words(error)),
    }
    usage
}

/// An error with its causes. Some name their cause themselves; those are not followed by it.
fn words(error: &anyhow::Error) -> String {
    let mut words = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if !words.ends_with(&cause) {
            words = if words.is_empty() { cause } else { format!("{words}: {cause}") };
        }
    }
    words
}

/// A command that failed.
fn failed(error: &anyhow::Error, usage: bool) -> Value {
    match error.downcast_ref::<Refused>() {
        Some(refused) => json!({ "error": refused.problem }),
        None if usage => misused(&words(error)),
        None => json!({ "error": { "kind": "failed", "title": "the command failed", "detail": words(error) } }),
    }
}

/// A command that nobody understands.
pub(crate) fn misused(detail: &str) -> Value {
    json!({ "error": { "kind": "usage", "title": "the command makes no sense", "detail": detail } })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_cause_is_said_twice() {
        let check = |error: anyhow::Error, expected: &str| assert_eq!(words(&error), expected);
        check(
            anyhow::anyhow!("gone").context("cannot talk: gone").context("cannot open"),
            "cannot open: cannot talk: gone",
        );
        check(anyhow::anyhow!("gone").context("cannot open"), "cannot open: gone");
        check(anyhow::anyhow!("gone"), "gone");
    }
}
