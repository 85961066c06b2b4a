//! Snapshots.

use std::collections::{BTreeMap, BTreeSet};

use keyframe_catalog::SnapshotPhase;
use keyframe_model::agent::{Generation, Micros, SnapshotId, VmId};
use keyframe_model::{Name, Snapshot, SnapshotKind, Tag};

use super::page::{answer, wanted};
use crate::kind::hold::{check_generation, of_snapshot};
use crate::kind::snapshot_create as kind;
use crate::kind::snapshot_delete::all_snapshots;
use crate::request::{
    Call, Caller, JobRef, Page, PageRequest, SnapshotCreate, SnapshotFilter, SnapshotSpace, SnapshotUpdate,
    SnapshotView, TreeNode, TreeView,
};
use crate::{Error, ErrorKind, Manager, Result, space};

/// How long an instant may hold a guest's writes when nobody says.
const HOLD: Micros = Micros(5_000_000);
/// The least and the most that somebody can say.
const SHORTEST: Micros = Micros(10_000);
const LONGEST: Micros = Micros(60_000_000);
/// Most tags of a snapshot.
const MAX_TAGS: usize = 64;
/// Most bytes of a description.
pub(super) const MAX_DESCRIPTION: usize = 4096;

impl Manager {
    /// All snapshots that match; by the order of their making within a machine.
    pub async fn list_snapshots(
        &self,
        caller: &Caller,
        filter: &SnapshotFilter,
        page: &PageRequest,
    ) -> Result<Page<SnapshotView>> {
        self.admit(caller)?;
        let wish = keyframe_catalog::SnapshotFilter {
            vm: filter.vm,
            name: filter.name.clone(),
            search: filter.search.clone(),
            tag: filter.tag.as_deref().map(str::parse::<Tag>).transpose()?,
            phase: filter.state.as_deref().map(phase).transpose()?,
            kind: filter.kind,
            automatic: filter.automatic,
        };
        let mut tx = self.catalog.read().await?;
        let found = tx.snapshots(&wish, &wanted(page)?).await?;
        let vms: BTreeSet<VmId> = found.items.iter().map(|snapshot| snapshot.vm).collect();
        let vms = tx.vms_of(&vms.into_iter().collect::<Vec<_>>()).await?;
        let currents: BTreeMap<VmId, Option<SnapshotId>> = vms.iter().map(|vm| (vm.id, vm.current)).collect();
        drop(tx);
        let space = self.spaces(&found.items, filter.space).await;
        let mut space = space.into_iter();
        Ok(answer(
            found,
            |s| s.id.to_string(),
            |snapshot| {
                let current = currents.get(&snapshot.vm).copied().flatten() == Some(snapshot.id);
                view(snapshot, current, space.next().flatten())
            },
        ))
    }

    /// What each takes; nothing where it was not asked for or the host does not say.
    async fn spaces(&self, snapshots: &[Snapshot], wanted: bool) -> Vec<Option<SnapshotSpace>> {
        if !wanted {
            return vec![None; snapshots.len()];
        }
        match space::of_snapshots(&self.agent, snapshots).await {
            Ok(all) => all.into_iter().map(Some).collect(),
            Err(e) => {
                tracing::warn!(error = &e as &dyn std::error::Error, "a list goes without space");
                vec![None; snapshots.len()]
            }
        }
    }

    /// One snapshot, with its space if asked for.
    pub async fn snapshot(&self, caller: &Caller, snapshot: SnapshotId, space: bool) -> Result<SnapshotView> {
        self.admit(caller)?;
        let mut tx = self.catalog.read().await?;
        let snapshot = tx.snapshot(snapshot).await?;
        let current = tx.vm(snapshot.vm).await?.current == Some(snapshot.id);
        drop(tx);
        let space = self.spaces(std::slice::from_ref(&snapshot), space).await.into_iter().next().flatten();
        Ok(view(snapshot, current, space))
    }

    /// A snapshot by its identifier, or by its name within a machine.
    pub async fn find_snapshot(&self, caller: &Caller, vm: Option<VmId>, name: &str) -> Result<SnapshotId> {
        self.admit(caller)?;
        let mut tx = self.catalog.read().await?;
        let of = match vm {
            Some(vm) => Some(tx.vm(vm).await?),
            None => None,
        };
        let missing = || match &of {
            Some(vm) => {
                let vm = &vm.name;
                Error::not_found(format!("snapshot {name} of {vm}"), format!("snapshot list {vm}"))
            }
            None => Error::not_found(format!("snapshot {name}"), "snapshot list"),
        };
        if let Ok(id) = name.parse() {
            let snapshot = tx.snapshot(id).await.map_err(|e| Error::of_lookup(e, missing))?;
            return match vm {
                Some(vm) if vm != snapshot.vm => Err(missing()),
                Some(_) | None => Ok(snapshot.id),
            };
        }
        let Some(vm) = &of else {
            let message =
                format!("'{}' is a snapshot's name without its machine; write MACHINE@SNAPSHOT", name.escape_debug());
            return Err(Error::new(ErrorKind::Invalid, message));
        };
        let found = tx.find_snapshot(vm.id, &name.parse()?).await?;
        found.map(|snapshot| snapshot.id).ok_or_else(missing)
    }

    /// A machine's tree, with space if asked for.
    pub async fn tree(&self, caller: &Caller, vm: VmId, space: bool) -> Result<TreeView> {
        self.admit(caller)?;
        let mut tx = self.catalog.read().await?;
        let vm = tx.vm(vm).await?;
        let all: Vec<Snapshot> = all_snapshots(&mut tx, vm.id).await?.into_values().collect();
        drop(tx);
        let space = self.spaces(&all, space).await;
        let tree = keyframe_model::Tree::new(all.iter().map(|snapshot| (snapshot.id, snapshot.parent)), vm.current);
        let mut known: BTreeMap<SnapshotId, (Snapshot, Option<SnapshotSpace>)> =
            all.into_iter().zip(space).map(|(snapshot, space)| (snapshot.id, (snapshot, space))).collect();
        let nodes = tree.nodes().into_iter().filter_map(|node| {
            let (snapshot, space) = known.remove(&node.id)?;
            Some(tree_node(node, snapshot, space))
        });
        Ok(TreeView { vm: vm.id, name: vm.name, current: tree.current(), nodes: nodes.collect() })
    }

    /// Takes one.
    pub async fn create_snapshot(&self, call: &Call, vm: VmId, wish: SnapshotCreate) -> Result<JobRef> {
        self.admit(&call.caller)?;
        check_words(wish.name.as_ref(), Some(&wish.description), Some(&wish.tags))?;
        let deadline = wish.deadline.unwrap_or(HOLD);
        if !(SHORTEST..=LONGEST).contains(&deadline) {
            let message = "the deadline of a snapshot is 10 ms to 60 s: writes of the guest may be held for so long";
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        let order = kind::SnapshotOrder {
            vm,
            expected: call.expected,
            name: wish.name.clone(),
            description: wish.description.clone(),
            tags: each_once(wish.tags.clone()),
            kind: wish.kind.unwrap_or(SnapshotKind::Disk),
            quiesce: wish.quiesce,
            deadline,
            locked: wish.locked,
            most: self.max_snapshots,
        };
        self.order::<kind::SnapshotCreate>(call, order).await
    }

    /// Changes what is said about one.
    pub async fn update_snapshot(&self, call: &Call, id: SnapshotId, wish: SnapshotUpdate) -> Result<SnapshotView> {
        self.admit(&call.caller)?;
        check_words(wish.name.as_ref(), wish.description.as_ref(), wish.tags.as_ref())?;
        let mut tx = self.catalog.write().await?;
        let mut snapshot = tx.snapshot(id).await?;
        check_generation(snapshot.name.as_str(), snapshot.generation, call.expected)?;
        if wish.locked == Some(true) && !snapshot.locked {
            // Whoever is deleting it would not look again.
            snapshot.deletable()?;
        }
        snapshot.name = wish.name.unwrap_or(snapshot.name);
        snapshot.description = wish.description.unwrap_or(snapshot.description);
        snapshot.tags = wish.tags.map_or(snapshot.tags, each_once);
        snapshot.locked = wish.locked.unwrap_or(snapshot.locked);
        if wish.keep {
            snapshot.expires = None;
        }
        let vm = tx.vm(snapshot.vm).await?;
        let name = snapshot.name.clone();
        tx.update_snapshot(&mut snapshot).await.map_err(of_snapshot(&vm, &name))?;
        let current = vm.current == Some(id);
        tx.commit().await?;
        Ok(view(snapshot, current, None))
    }
}

fn phase(state: &str) -> Result<SnapshotPhase> {
    Ok(match state {
        "creating" => SnapshotPhase::Creating,
        "ready" => SnapshotPhase::Ready,
        "deleting" => SnapshotPhase::Deleting,
        "error" => SnapshotPhase::Error,
        other => {
            let message = format!("'{}' is no state; say creating, ready, deleting or error", other.escape_debug());
            return Err(Error::new(ErrorKind::Invalid, message));
        }
    })
}

/// Whether what is said about a snapshot is not too much, and its name not taken for an identifier.
/// In the order in which they came.
fn each_once(tags: Vec<Tag>) -> Vec<Tag> {
    let mut seen = BTreeSet::new();
    tags.into_iter().filter(|tag| seen.insert(tag.clone())).collect()
}

fn check_words(name: Option<&Name>, description: Option<&String>, tags: Option<&Vec<Tag>>) -> Result<()> {
    name.map_or(Ok(()), Name::check_new)?;
    check_description(description.map_or("", String::as_str))?;
    if tags.is_some_and(|tags| tags.len() > MAX_TAGS) {
        return Err(Error::new(ErrorKind::Limit, format!("a snapshot has at most {MAX_TAGS} tags")));
    }
    Ok(())
}

/// Whether a description is not too long, and text: other control characters would act on the terminals that show it.
pub(super) fn check_description(description: &str) -> Result<()> {
    if description.len() > MAX_DESCRIPTION {
        return Err(Error::new(ErrorKind::Limit, format!("a description has at most {MAX_DESCRIPTION} bytes")));
    }
    let strange = description.chars().find(|c| c.is_control() && !matches!(c, '\n' | '\t'));
    strange.map_or(Ok(()), |c| {
        let why =
            format!("a description has no {c:?} in it; of control characters only line breaks and tabs are allowed");
        Err(Error::new(ErrorKind::Invalid, why))
    })
}

fn view(snapshot: Snapshot, current: bool, space: Option<SnapshotSpace>) -> SnapshotView {
    SnapshotView { consistency: snapshot.consistency(), snapshot, current, space }
}

fn tree_node(node: keyframe_model::Node, snapshot: Snapshot, space: Option<SnapshotSpace>) -> TreeNode {
    let consistency = snapshot.consistency();
    let Snapshot { name, generation, state, kind, origin, created, expires, locked, tags, verification, .. } = snapshot;
    let generation: Generation = generation;
    let keyframe_model::Node { id, parent, depth } = node;
    TreeNode {
        id,
        parent,
        depth,
        name,
        generation,
        state,
        kind,
        origin,
        consistency,
        created,
        expires,
        locked,
        tags,
        verification,
        space,
    }
}
