//! `keyframe snapshot …`

use std::collections::HashMap;

use anyhow::{Result, bail};
use keyframe_manager::request::{Apply, SnapshotCreate, SnapshotUpdate, SnapshotView};
use keyframe_model::agent::{Micros, Quiesce};
use keyframe_model::{SnapshotKind, Tag};
use serde_json::{Value, json};

use super::{Remote, flag, typed, view};
use crate::cli::{ApplyArgs, Output, QuiesceName, SnapshotArgs, SnapshotCommand, SnapshotCreateArgs, SnapshotListArgs};

/// `keyframe snapshot …`
pub(crate) fn snapshot(output: &Output, args: &SnapshotArgs) -> Result<()> {
    let remote = &mut Remote::new(output, &args.remote)?;
    let update = SnapshotUpdate::default();
    match &args.command {
        SnapshotCommand::Create(args) => create(remote, args),
        SnapshotCommand::List(args) => list(remote, args),
        SnapshotCommand::Show { snapshot } => {
            let found = remote.client.get(&["snapshots", snapshot], &[("space", "true".into())])?.value;
            remote.show(&found, |out| Ok(view::snapshot::show(&typed(&found)?, out)?))
        }
        SnapshotCommand::Tree { vm, space } => {
            let query: Vec<_> = flag("space", *space).into_iter().collect();
            let tree = remote.client.get(&["vms", vm, "tree"], &query)?.value;
            remote.show(&tree, |out| Ok(view::tree::draw(&typed(&tree)?, out)?))
        }
        SnapshotCommand::Space { vm } => {
            let tree = remote.client.get(&["vms", vm, "tree"], &[("space", "true".into())])?.value;
            remote.show(&tree, |out| Ok(view::tree::space(&typed(&tree)?, out)?))
        }
        SnapshotCommand::Rename { snapshot, new } => {
            patch(remote, snapshot, &SnapshotUpdate { name: Some(new.parse()?), ..update })
        }
        SnapshotCommand::Describe { snapshot, text } => {
            patch(remote, snapshot, &SnapshotUpdate { description: Some(text.clone()), ..update })
        }
        SnapshotCommand::Tag { snapshot, add, remove } => tag(remote, snapshot, add, remove),
        SnapshotCommand::Lock { snapshot } => patch(remote, snapshot, &SnapshotUpdate { locked: Some(true), ..update }),
        SnapshotCommand::Unlock { snapshot } => {
            patch(remote, snapshot, &SnapshotUpdate { locked: Some(false), ..update })
        }
        SnapshotCommand::Keep { snapshot } => patch(remote, snapshot, &SnapshotUpdate { keep: true, ..update }),
        SnapshotCommand::Apply { snapshot, how } => {
            apply(remote, &["snapshots", snapshot, "apply"], snapshot, how, &format!("{snapshot}: applied"))
        }
        SnapshotCommand::Revert { vm, how } => {
            apply(remote, &["vms", vm, "revert"], vm, how, &format!("{vm}: reverted"))
        }
        SnapshotCommand::Delete { snapshot, subtree, all, dry_run, wait } => {
            let path = if *all { vec!["vms", snapshot, "snapshots"] } else { vec!["snapshots", snapshot] };
            let query: Vec<_> = flag("subtree", *subtree).into_iter().chain(flag("dry_run", *dry_run)).collect();
            let answer = remote.client.delete(&path, &query)?;
            if *dry_run {
                return remote.plan(&answer.value, snapshot);
            }
            let what = if *all { "all snapshots deleted" } else { "deleted" };
            remote.finish(&answer, *wait, &format!("{snapshot}: {what}"))
        }
        SnapshotCommand::Diff { from, snapshot } => {
            let found = remote.client.get(&["snapshots", snapshot, "diff"], &[("from", from.clone())])?.value;
            remote.show(&found, |out| Ok(view::snapshot::diff(&typed(&found)?, out)?))
        }
        SnapshotCommand::Compress { snapshot, wait } => {
            let answer = remote.client.post(&["snapshots", snapshot, "compress"], &json!({}))?;
            remote.finish(&answer, *wait, &format!("{snapshot}: compressed"))
        }
        SnapshotCommand::Verify { snapshot, wait } => {
            let answer = remote.client.post(&["snapshots", snapshot, "verify"], &json!({}))?;
            remote.finish(&answer, *wait, &format!("{snapshot}: sound"))
        }
        SnapshotCommand::Search { word, limit } => {
            let query = [("search", word.clone())];
            show_list(remote, &["snapshots"], &query, limit.limit)
        }
    }
}

fn create(remote: &mut Remote, args: &SnapshotCreateArgs) -> Result<()> {
    let (vm, name) = match args.target.split_once('@') {
        Some((vm, name)) => (vm, Some(name.parse()?)),
        None => (args.target.as_str(), None),
    };
    let wish = SnapshotCreate {
        name,
        description: args.description.clone(),
        tags: args.tags.iter().map(|tag| tag.parse()).collect::<Result<_, _>>()?,
        kind: Some(if args.memory { SnapshotKind::DiskAndMemory } else { SnapshotKind::Disk }),
        quiesce: match args.quiesce {
            QuiesceName::No => Quiesce::No,
            QuiesceName::Preferred => Quiesce::Preferred,
            QuiesceName::Required => Quiesce::Required,
        },
        deadline: args.deadline.map(Micros::from),
        locked: args.lock,
    };
    let answer = remote.client.post(&["vms", vm, "snapshots"], &wish)?;
    let Some((value, job)) = remote.follow(&answer, args.wait)? else { return Ok(()) };
    let Some(id) = job.job.snapshot else { bail!("the manager does not say which snapshot it took") };
    if remote.json {
        return remote.show(&value, |_| Ok(()));
    }
    let taken: SnapshotView = typed(&remote.client.get(&["snapshots", &id.to_string()], &[])?.value)?;
    remote.remark(&view::snapshot::taken(vm, &taken))?;
    job.notes.iter().try_for_each(|note| remote.remark(&format!("note: {note}")))
}

fn list(remote: &mut Remote, args: &SnapshotListArgs) -> Result<()> {
    let mut query: Vec<(&str, String)> = Vec::new();
    query.extend(args.tag.clone().map(|tag| ("tag", tag)));
    query.extend(args.search.clone().map(|word| ("search", word)));
    query.extend(args.kind.clone().map(|kind| ("kind", kind)));
    query.extend(args.state.clone().map(|state| ("state", state)));
    query.extend(flag("automatic", args.automatic));
    let path = match &args.vm {
        Some(vm) => vec!["vms", vm, "snapshots"],
        None => vec!["snapshots"],
    };
    show_list(remote, &path, &query, args.limit.limit)
}

/// Those of one machine by their names, those of all with their machines.
fn show_list(remote: &mut Remote, path: &[&str], query: &[(&str, String)], limit: Option<usize>) -> Result<()> {
    let items = Value::Array(remote.client.list(path, query, limit)?);
    let machines = if path[0] == "vms" { HashMap::new() } else { remote.machines(&items)? };
    remote.show(&items, |out| Ok(view::snapshot::list(&typed::<Vec<_>>(&items)?, &machines, out)?))
}

fn patch(remote: &mut Remote, snapshot: &str, wish: &SnapshotUpdate) -> Result<()> {
    let answer = remote.client.patch(&["snapshots", snapshot], wish, None)?;
    if remote.json { remote.show(&answer.value, |_| Ok(())) } else { Ok(()) }
}

/// Tags are replaced as a whole, so nobody else may have changed them since they were read.
fn tag(remote: &mut Remote, snapshot: &str, add: &[String], remove: &[String]) -> Result<()> {
    if add.is_empty() && remove.is_empty() {
        bail!("name a tag to add, or one to --remove");
    }
    let found = remote.client.get(&["snapshots", snapshot], &[])?;
    let mut tags: Vec<Tag> = typed::<SnapshotView>(&found.value)?.snapshot.tags;
    for tag in add {
        let tag: Tag = tag.parse()?;
        if !tags.contains(&tag) {
            tags.push(tag);
        }
    }
    tags.retain(|tag| !remove.iter().any(|gone| gone == tag.as_str()));
    let wish = SnapshotUpdate { tags: Some(tags), ..SnapshotUpdate::default() };
    let answer = remote.client.patch(&["snapshots", snapshot], &wish, found.tag.as_deref())?;
    if remote.json { remote.show(&answer.value, |_| Ok(())) } else { Ok(()) }
}

fn apply(remote: &mut Remote, path: &[&str], what: &str, how: &ApplyArgs, said: &str) -> Result<()> {
    let wish = Apply {
        discard_current: how.discard_current,
        keep_name: how.keep_name.as_deref().map(str::parse).transpose()?,
        keep_for: how.keep_for.map(Micros::from),
        keep_memory: !how.no_keep_memory,
        start: how.start,
        without_memory: how.without_memory,
        dry_run: how.dry_run,
    };
    let answer = remote.client.post(path, &json!(wish))?;
    if how.dry_run {
        return remote.plan(&answer.value, what);
    }
    remote.finish(&answer, how.wait, said)
}
