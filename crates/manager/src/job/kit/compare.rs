//! Whether two worlds are the same, but for what differs between any two runs.

use std::collections::HashMap;

use serde_json::Value;

/// Members of documents that are moments, durations, counts of changes, or tell of the way.
const VOLATILE: [&str; 10] =
    ["generation", "created", "at", "notice", "expires", "seen", "paused", "held", "frozen", "stored"];

/// A world without its volatile members.
pub(super) fn steady(mut world: Value) -> Value {
    strip(&mut world);
    world
}

/// A world in which identifiers and hardware addresses are replaced by the order in which they appear, so that it can be
/// compared with another one that was made the same way.
pub(super) fn nameless(world: Value) -> Value {
    let mut seen = HashMap::new();
    let mut world = steady(world);
    rename(&mut world, &mut seen);
    world
}

/// The first place where they differ, for people.
pub(super) fn difference(expected: &Value, found: &Value) -> Option<String> {
    differ("", expected, found)
}

fn strip(value: &mut Value) {
    match value {
        Value::Object(members) => {
            members.retain(|name, _| !VOLATILE.contains(&name.as_str()));
            members.values_mut().for_each(strip);
        }
        Value::Array(items) => items.iter_mut().for_each(strip),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn rename(value: &mut Value, seen: &mut HashMap<String, usize>) {
    match value {
        Value::Object(members) => {
            let renamed = std::mem::take(members).into_iter().map(|(mut name, mut member)| {
                replace(&mut name, seen);
                rename(&mut member, seen);
                (name, member)
            });
            *members = renamed.collect();
        }
        Value::Array(items) => items.iter_mut().for_each(|item| rename(item, seen)),
        Value::String(text) => replace(text, seen),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn replace(text: &mut String, seen: &mut HashMap<String, usize>) {
    for length in [UUID, MAC] {
        let mut start = 0;
        while let Some(part) = text.get(start..start + length) {
            if !is_name(part, length) {
                start += 1;
                while !text.is_char_boundary(start) {
                    start += 1;
                }
                continue;
            }
            let next = seen.len();
            let number = *seen.entry(part.to_owned()).or_insert(next);
            let name = format!("<{number}>");
            text.replace_range(start..start + length, &name);
            start += name.len();
        }
    }
}

/// Characters of a UUID, and of a hardware address.
const UUID: usize = 36;
const MAC: usize = 17;

fn is_name(text: &str, length: usize) -> bool {
    text.bytes().enumerate().all(|(at, byte)| match (length, at) {
        (UUID, 8 | 13 | 18 | 23) => byte == b'-',
        (MAC, 2 | 5 | 8 | 11 | 14) => byte == b':',
        _ => byte.is_ascii_hexdigit(),
    })
}

fn differ(path: &str, expected: &Value, found: &Value) -> Option<String> {
    match (expected, found) {
        (Value::Object(a), Value::Object(b)) => {
            let names: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            names.into_iter().find_map(|name| {
                let path = format!("{path}/{name}");
                differ(&path, a.get(name).unwrap_or(&Value::Null), b.get(name).unwrap_or(&Value::Null))
            })
        }
        (Value::Array(a), Value::Array(b)) => {
            let both = a.iter().zip(b).enumerate();
            let inner = both.into_iter().find_map(|(at, (a, b))| differ(&format!("{path}/{at}"), a, b));
            inner.or_else(|| match a.len().cmp(&b.len()) {
                std::cmp::Ordering::Equal => None,
                std::cmp::Ordering::Less => Some(format!("{path}: too much: {}", b[a.len()])),
                std::cmp::Ordering::Greater => Some(format!("{path}: missing: {}", a[b.len()])),
            })
        }
        (a, b) if a == b => None,
        (a, b) => Some(format!("{path}: expected {a}, found {b}")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn worlds_that_differ_in_identifiers_only_are_the_same() {
        let world = |id: &str, mac: &str, n: i64| json!({"vms": [{"id": id, "volume": format!("disk-{id}.x"), "mac": mac, "generation": n}]});
        let a = world("01234567-89ab-7def-8123-456789abcdef", "52:54:00:00:00:01", 1);
        let b = world("fedcba98-7654-7210-8123-456789abcdef", "52:54:00:aa:00:01", 9);
        assert_eq!(nameless(a.clone()), nameless(b));
        assert_eq!(nameless(a), json!({"vms": [{"id": "<0>", "volume": "disk-<0>.x", "mac": "<1>"}]}));
    }

    #[test]
    fn differences_are_named() {
        let a = json!({"a": [1, {"b": 2}]});
        for (b, says) in [
            (json!({"a": [1, {"b": 3}]}), Some("/a/1/b: expected 2, found 3")),
            (json!({"a": [1]}), Some("/a: missing: {\"b\":2}")),
            (json!({"a": [1, {"b": 2}, 5]}), Some("/a: too much: 5")),
            (json!({"a": [1, {"b": 2}]}), None),
        ] {
            assert_eq!(difference(&a, &b).as_deref(), says);
        }
    }
}
