//! Sentences for people: identifiers of machines, snapshots, templates and volumes in what a host said become names.

use std::ops::Range;
use std::str::FromStr;

use keyframe_catalog::{Owner, Transaction};
use keyframe_model::agent::{SnapshotId, TemplateId, VmId, VolumeRef};
use keyframe_model::{Hardware, Name};

/// Characters of an identifier.
const UUID: usize = 36;

/// The sentence with names. What is not known, or not there any more, stays as it is.
pub(crate) async fn named(tx: &mut Transaction, text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(Range { start, end }) = find(rest) {
        out.push_str(&rest[..start]);
        let id = &rest[start..end];
        let name = match id.split_once('/') {
            Some((array, volume)) => disk(tx, VolumeRef { array: array.into(), volume: volume.into() }).await,
            None => name(tx, id).await,
        };
        out.push_str(name.as_deref().unwrap_or(id));
        rest = &rest[end..];
    }
    out + rest
}

/// Where the first identifier is that stands alone or behind the name of an array: one in a path is left, for whoever looks
/// for the file.
fn find(text: &str) -> Option<Range<usize>> {
    let part = |byte: u8| byte.is_ascii_alphanumeric() || b"-_/.".contains(&byte);
    let bytes = text.as_bytes();
    (0..bytes.len().checked_sub(UUID - 1)?).find_map(|at| {
        let end = at + UUID;
        let dashes = |offset: usize| matches!(offset, 8 | 13 | 18 | 23);
        let good = |(offset, &byte): (usize, &u8)| if dashes(offset) { byte == b'-' } else { byte.is_ascii_hexdigit() };
        let ends = bytes.get(end).is_none_or(|&next| !part(next) || (next == b'.' && end + 1 == bytes.len()));
        if !ends || !bytes[at..end].iter().enumerate().all(good) {
            return None;
        }
        let start = at - bytes[..at].iter().rev().take_while(|&&byte| part(byte)).count();
        let before = &text[start..at];
        let array = before.strip_suffix('/').is_some_and(|array| !array.is_empty() && !array.contains(['/', '.']));
        (before.is_empty() || array).then_some(start..end)
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

/// The disk that a volume is: of a machine if it has it, else of what has.
async fn disk(tx: &mut Transaction, volume: VolumeRef) -> Option<String> {
    let owners = tx.owners_of(&volume).await.ok()?;
    let owner = owners.iter().find(|owner| matches!(owner, Owner::Vm(_))).or(owners.first())?;
    let (of, hardware): (Name, Hardware) = match *owner {
        Owner::Vm(id) => tx.vm(id).await.ok().map(|vm| (vm.name, vm.hardware))?,
        Owner::Snapshot(id) => tx.snapshot(id).await.ok().map(|snapshot| (snapshot.name, snapshot.hardware))?,
        Owner::Template(id) => tx.template(id).await.ok().map(|template| (template.name, template.hardware))?,
    };
    let disk = hardware.disks.into_iter().find(|disk| disk.volume == volume)?;
    Some(format!("{} of {of}", disk.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_that_stand_alone_are_found() {
        let id = "01234567-89ab-7def-8123-456789abcdef";
        for (text, at) in [
            (format!("machine {id}: no"), Some(8..44)),
            (format!("({id})"), Some(1..37)),
            (id.to_owned(), Some(0..36)),
            (format!("of {id}."), Some(3..39)),
            (format!("ü {id}"), Some(3..39)),
            (format!("volume local/{id}: no"), Some(7..49)),
            (format!("/{id}"), None),
            (format!("./vms/{id}"), None),
            (format!("/data/memory/{id}.kfm"), None),
            (format!("/data/memory/{id}"), None),
            (format!("x{id}"), None),
            (id[1..].to_owned(), None),
            (String::new(), None),
        ] {
            assert_eq!(find(&text), at, "{text}");
        }
    }
}
