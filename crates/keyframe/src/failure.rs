//! Failures in words, and for programs: `{"error": …}` with what the manager said (RFC 9457), or the same members for what
//! failed before or without it.

use serde_json::{Value, json};

use keyframe_agent::say::say;
use keyframe_manager::ErrorKind;

use crate::ops::is_invalid;
use crate::plain::plain;
use crate::reach::Unclear;
use crate::remote::Told;
use crate::remote::client::Refused;

/// Says it, unless the user has read about it; whether the command made no sense.
pub(crate) fn tell(error: &anyhow::Error, json: bool) -> bool {
    let usage = match error.downcast_ref::<Refused>() {
        // What becomes of a job is no matter of what was typed.
        Some(refused) => !refused.of_job && refused.problem.kind == ErrorKind::Invalid,
        None => error.is::<Unclear>() || error.is::<keyframe_model::Refusal>() || is_invalid(error),
    };
    match json {
        _ if error.is::<Told>() => {}
        true => say(failed(error, usage)),
        false => say(format_args!("keyframe: {}", plain(&words(error)))),
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

    /// A job was ordered as it should be, whatever it came to.
    #[test]
    fn what_makes_no_sense_is_wrong_usage_wherever_that_is_found() {
        let refused = |kind, of_job| {
            let problem = keyframe_api::Problem::new(kind, "no");
            Refused { of_job, ..Refused::by(problem) }.into()
        };
        let served = |kind: &str| crate::ops::Failure { kind: kind.into(), message: "no".into() }.into();
        for (error, usage) in [
            (refused(ErrorKind::Invalid, false), true),
            (refused(ErrorKind::Invalid, true), false),
            (refused(ErrorKind::State, false), false),
            (served("invalid"), true),
            (served("exists"), false),
            (anyhow::Error::new(keyframe_transfer::Invalid("no".into())).context("cannot export"), true),
            (anyhow::anyhow!("no"), false),
        ] {
            assert_eq!(tell(&error, false), usage, "{error:?}");
        }
    }

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
