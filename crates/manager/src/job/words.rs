//! Sentences for people: identifiers of machines, snapshots and templates in what a host said become names.

use std::str::FromStr;

use keyframe_catalog::Transaction;
use keyframe_model::agent::{SnapshotId, TemplateId, VmId};

/// Characters of an identifier.
const UUID: usize = 36;

/// The sentence with names. What is not known, or not there any more, stays as it is.
pub(super) async fn named(tx: &mut Transaction, text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(found) = find(rest) {
        let (before, after) = rest.split_at(found);
        let (id, after) = after.split_at(UUID);
        out.push_str(before);
        match name(tx, id).await {
            Some(name) => out.push_str(&name),
            None => out.push_str(id),
        }
        rest = after;
    }
    out + rest
}

/// Where the first identifier is that stands alone: one in a path is left, for whoever looks for the file.
fn find(text: &str) -> Option<usize> {
    let part = |byte: u8| byte.is_ascii_alphanumeric() || b"-_/.".contains(&byte);
    let bytes = text.as_bytes();
    (0..bytes.len().checked_sub(UUID - 1)?).find(|&at| {
        let alone = at == 0 || !part(bytes[at - 1]);
        let ends =
            bytes.get(at + UUID).is_none_or(|&next| !part(next) || (next == b'.' && at + UUID + 1 == bytes.len()));
        let dashes = |offset: usize| matches!(offset, 8 | 13 | 18 | 23);
        let good = |(offset, &byte): (usize, &u8)| if dashes(offset) { byte == b'-' } else { byte.is_ascii_hexdigit() };
        alone && ends && bytes[at..at + UUID].iter().enumerate().all(good)
    })
}

async fn name(tx: &mut Transaction, id: &str) -> Option<String> {
    if let Ok(vm) = tx.vm(VmId::from_str(id).ok()?).await {
        return Some(vm.name.to_string());
    }
    if let Ok(snapshot) = tx.snapshot(SnapshotId::from_str(id).ok()?).await {
        return Some(snapshot.name.to_string());
    }
    Some(tx.template(TemplateId::from_str(id).ok()?).await.ok()?.name.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_that_stand_alone_are_found() {
        let id = "01234567-89ab-7def-8123-456789abcdef";
        for (text, at) in [
            (format!("machine {id}: no"), Some(8)),
            (format!("({id})"), Some(1)),
            (id.to_owned(), Some(0)),
            (format!("of {id}."), Some(3)),
            (format!("ü {id}"), Some(3)),
            (format!("/data/memory/{id}.kfm"), None),
            (format!("x{id}"), None),
            (id[1..].to_owned(), None),
            (String::new(), None),
        ] {
            assert_eq!(find(&text), at, "{text}");
        }
    }
}
