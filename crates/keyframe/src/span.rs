//! Spans of time as people write them: `250ms`, `30s`, `5m`, `12h`, `7d`.

use std::time::Duration;

/// A span of time.
pub(crate) type Span = Duration;

/// Parses a span. A bare number is refused, because half its readers mean another unit.
pub(crate) fn parse_span(text: &str) -> Result<Span, String> {
    let how = || format!("{text:?} is not understood; write a time as 250ms, 30s, 5m, 12h or 7d");
    let split = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(how)?;
    let (number, unit) = text.split_at(split);
    let number: u64 = number.parse().map_err(|_| how())?;
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(how()),
    };
    number.checked_mul(milliseconds).map(Duration::from_millis).ok_or_else(how)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read_as_people_write_them() {
        let check = |text: &str, expected: Option<u64>| {
            assert_eq!(parse_span(text).ok(), expected.map(Duration::from_millis), "{text}");
        };
        check("250ms", Some(250));
        check("30s", Some(30_000));
        check("5m", Some(300_000));
        check("12h", Some(43_200_000));
        check("7d", Some(604_800_000));
        for wrong in ["", "5", "s", "-1s", "1.5s", "1y", "99999999999999999d"] {
            check(wrong, None);
        }
    }
}
