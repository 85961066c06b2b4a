//! Questions about a family of versions: its tree, what a version holds alone, and what two versions differ in.
//!
//! All answers come from walks that skip whatever both sides share. They take no lock for longer than it takes to fetch a page,
//! so for a head that is being written to, an answer lies between the state when it was asked and the state when it came.

use std::collections::HashSet;

use crate::core::tree::{Place, Tree};
use crate::disk::entry::{FANOUT, span};
use crate::disk::object::{Object, State, Version};
use crate::error::{Error, ErrorKind, Result};
use crate::info::{DiffExtent, SpaceInfo, TreeNode, VersionInfo, VersionKind};
use crate::request::ExtentKind;
use crate::shared::Shared;
use crate::units::{BLOCK, Bytes, VersionId};

/// Tries of a walk that meets pages freed under it.
const RESTARTS: u32 = 5;

impl Shared {
    pub(crate) fn version(&self, id: VersionId) -> Result<Version> {
        self.run(|core| core.version(id))
    }

    fn volume_name(&self, id: VersionId) -> Result<String> {
        match id.some() {
            None => Ok(String::new()),
            Some(id) => match self.run(|core| core.object(id))? {
                Some(Object::Volume(v)) => Ok(v.name),
                _ => Ok(String::new()),
            },
        }
    }

    fn version_name(&self, version: &Version) -> Result<String> {
        let volume = self.volume_name(version.volume)?;
        Ok(match version.state {
            State::Head => volume,
            State::Snapshot => format!("{volume}@{}", version.name),
            State::Ghost { .. } => format!("(deleted {})", version.id),
        })
    }

    /// What a version tells about itself.
    pub(crate) fn describe(&self, version: &Version) -> Result<VersionInfo> {
        let parent = match version.parent.some() {
            Some(parent) => Some(self.version_name(&self.version(parent)?)?),
            None => None,
        };
        let snapshots = match (version.state, version.volume.some()) {
            (State::Head, Some(id)) => match self.run(|core| core.object(id))? {
                Some(Object::Volume(v)) => v.snapshots,
                _ => 0,
            },
            _ => 0,
        };
        Ok(VersionInfo {
            name: self.version_name(version)?,
            kind: match version.state {
                State::Head => VersionKind::Head,
                State::Snapshot => VersionKind::Snapshot,
                State::Ghost { .. } => VersionKind::Ghost,
            },
            size: Bytes(version.blocks * BLOCK),
            referenced: Bytes(version.mapped * BLOCK),
            written: Bytes((version.owned as i64).max(0) as u64 * BLOCK),
            created: version.created,
            parent,
            attached: self.lock().attachments(version.id),
            children: version.children,
            snapshots,
        })
    }

    fn children_of(&self, version: &Version) -> Result<Vec<Version>> {
        let mut out = Vec::with_capacity(version.children as usize);
        let mut next = version.first_child;
        while let Some(id) = next.some() {
            let child = self.version(id)?;
            next = child.next_sibling;
            out.push(child);
        }
        Ok(out)
    }

    /// The tree of the family that a version belongs to. Iterative: a chain of snapshots may be very long.
    pub(crate) fn tree(&self, id: VersionId) -> Result<TreeNode> {
        let mut root = self.version(id)?;
        while let Some(parent) = root.parent.some() {
            root = self.version(parent)?;
        }
        let mut order = vec![(root, usize::MAX)];
        let mut at = 0;
        while at < order.len() {
            let mut children = self.children_of(&order[at].0)?;
            children.sort_by_key(|c| c.id);
            order.extend(children.into_iter().map(|c| (c, at)));
            at += 1;
        }
        let mut nodes: Vec<Option<TreeNode>> = Vec::with_capacity(order.len());
        for (version, _) in &order {
            nodes.push(Some(TreeNode { info: self.describe(version)?, children: Vec::new() }));
        }
        for i in (1..order.len()).rev() {
            if let Some(mut node) = nodes[i].take() {
                node.children.reverse();
                if let Some(parent) = &mut nodes[order[i].1] {
                    parent.children.push(node);
                }
            }
        }
        let mut root = nodes
            .swap_remove(0)
            .ok_or_else(|| Error::new(ErrorKind::Corrupt, "internal error: a family without a root"))?;
        root.children.reverse();
        Ok(root)
    }

    /// Deleted, whether or not the background worker has come to it.
    fn is_gone(&self, version: &Version) -> Result<bool> {
        if self.is_ghost(version) {
            return Ok(true);
        }
        match self.run(|core| core.object(version.volume))? {
            Some(Object::Volume(volume)) => Ok(volume.doomed),
            _ => Ok(true),
        }
    }

    /// The versions nearest to a set, ghosts looked through: whatever the set shares with anybody, it shares with one of these.
    fn neighbours(&self, set: &HashSet<VersionId>) -> Result<Vec<Version>> {
        let mut seen = set.clone();
        let mut stack: Vec<VersionId> = set.iter().copied().collect();
        let mut out = Vec::new();
        while let Some(id) = stack.pop() {
            let version = self.version(id)?;
            let mut near: Vec<VersionId> = self.children_of(&version)?.iter().map(|c| c.id).collect();
            near.extend(version.parent.some());
            for id in near {
                if !seen.insert(id) {
                    continue;
                }
                let neighbour = self.version(id)?;
                if self.is_gone(&neighbour)? {
                    stack.push(id);
                } else {
                    out.push(neighbour);
                }
            }
        }
        Ok(out)
    }

    /// Data blocks that only members of the set refer to.
    pub(crate) fn held_only_by(&self, set: &[VersionId]) -> Result<Bytes> {
        let members: HashSet<VersionId> = set.iter().copied().collect();
        let blocks = self.restarting(|| {
            // What lies between the members is looked through, like ghosts are.
            let others = self.neighbours(&members)?;
            let mut counted = HashSet::new();
            let mut total = 0;
            for id in &members {
                let version = self.version(*id)?;
                let near: Vec<Place> = others.iter().filter(|o| o.family == version.family).map(place_of).collect();
                let level = near.iter().map(|p| p.level).max().unwrap_or(1).max(version.root_level);
                let cursor = if self.is_ghost(&version) { version.cursor } else { 0 };
                let walk = Unique { shared: self, tree: Tree::map(version.family), single: members.len() == 1, cursor };
                total += walk.count(place_of(&version), &near, level, 0, &mut counted)?;
            }
            Ok(total)
        })?;
        Ok(Bytes(blocks * BLOCK))
    }

    fn is_ghost(&self, version: &Version) -> bool {
        matches!(version.state, State::Ghost { .. })
    }

    /// Data blocks that only deleted versions refer to: what the background worker has yet to free.
    pub(crate) fn pending_reclaim(&self) -> Result<Bytes> {
        let mut gone = Vec::new();
        let mut ghost = self.lock().state.first_ghost;
        while let Some(id) = ghost.some() {
            ghost = self.version(id)?.next;
            gone.push(id);
        }
        let mut doomed = self.lock().state.first_doomed;
        while let Some(id) = doomed.some() {
            let Some(Object::Volume(volume)) = self.run(|core| core.object(id))? else { break };
            gone.push(volume.head);
            let mut snapshot = volume.first_snapshot;
            while let Some(id) = snapshot.some() {
                snapshot = self.version(id)?.next;
                gone.push(id);
            }
            doomed = volume.next;
        }
        self.held_only_by(&gone)
    }

    /// What a version holds.
    pub(crate) fn space(&self, version: &Version) -> Result<SpaceInfo> {
        let unique = self.held_only_by(&[version.id])?;
        let referenced = Bytes(self.version(version.id)?.mapped * BLOCK);
        let shared = Bytes(referenced.0.saturating_sub(unique.0));
        Ok(SpaceInfo { referenced, unique, shared, would_free: unique })
    }

    /// Reports what differs between two versions of a family, or all that one stores; ranges come in order.
    pub(crate) fn diff(
        &self,
        from: Option<&Version>,
        to: &Version,
        visit: &mut dyn FnMut(DiffExtent) -> Result<()>,
    ) -> Result<()> {
        // Without the pin, pages of a head that is being written could change hands under the walk.
        let _pin = self.pin();
        let from = from.map(|v| self.version(v.id)).transpose()?;
        let to = &self.version(to.id)?;
        let old = from.as_ref().map_or(Place::NOTHING, place_of);
        let new = place_of(to);
        let level = old.level.max(new.level);
        let mut diff = Diff {
            shared: self,
            tree: Tree::map(to.family),
            end: to.blocks,
            from_nothing: from.is_none(),
            pending: None,
            visit,
        };
        diff.walk(old, new, level, 0)?;
        diff.finish()
    }

    fn restarting<T>(&self, mut walk: impl FnMut() -> Result<T>) -> Result<T> {
        let _pin = self.pin();
        let mut tries = 0;
        loop {
            match walk() {
                Err(e) if e.kind() == ErrorKind::Corrupt && tries < RESTARTS => tries += 1,
                other => return other,
            }
        }
    }
}

fn place_of(version: &Version) -> Place {
    Place { entry: version.root, level: version.root_level }
}

struct Unique<'a> {
    shared: &'a Shared,
    tree: Tree,
    /// Only one version is asked about: nothing can be met twice.
    single: bool,
    /// Below this a merge has freed what was the ghost's own.
    cursor: u64,
}

impl Unique<'_> {
    fn count(&self, place: Place, near: &[Place], level: u8, base: u64, counted: &mut HashSet<u64>) -> Result<u64> {
        if base + span(level) <= self.cursor || !place.entry.is_pointer() || near.iter().any(|n| n.same(place)) {
            return Ok(0);
        }
        if level == 0 {
            return Ok(u64::from(self.single || counted.insert(place.entry.at.0)));
        }
        let children = self.shared.run(|core| core.children(place, level, self.tree, base))?;
        let near: Vec<_> = near
            .iter()
            .filter(|n| n.entry.is_pointer())
            .map(|n| self.shared.run(|core| core.children(*n, level, self.tree, base)))
            .collect::<Result<_>>()?;
        let mut total = 0;
        for i in 0..FANOUT as usize {
            let near: Vec<Place> = near.iter().map(|n| n[i]).collect();
            total += self.count(children[i], &near, level - 1, base + i as u64 * span(level - 1), counted)?;
        }
        Ok(total)
    }
}

struct Diff<'a> {
    shared: &'a Shared,
    tree: Tree,
    /// Blocks of the newer version.
    end: u64,
    from_nothing: bool,
    pending: Option<DiffExtent>,
    visit: &'a mut dyn FnMut(DiffExtent) -> Result<()>,
}

impl Diff<'_> {
    fn walk(&mut self, old: Place, new: Place, level: u8, base: u64) -> Result<()> {
        if base >= self.end || new.same(old) {
            return Ok(());
        }
        let hole = |place: Place| !place.entry.is_pointer();
        if level == 0 || (hole(old) && hole(new)) {
            return self.report(base, span(level).min(self.end - base), new);
        }
        let olds = self.shared.run(|core| core.children(old, level, self.tree, base))?;
        let news = self.shared.run(|core| core.children(new, level, self.tree, base))?;
        for i in 0..FANOUT as usize {
            self.walk(olds[i], news[i], level - 1, base + i as u64 * span(level - 1))?;
        }
        Ok(())
    }

    fn report(&mut self, base: u64, blocks: u64, new: Place) -> Result<()> {
        let kind = match new.entry.kind {
            crate::disk::entry::Kind::Pointer => ExtentKind::Data,
            crate::disk::entry::Kind::Zero => ExtentKind::Zero,
            crate::disk::entry::Kind::Discard | crate::disk::entry::Kind::Empty => ExtentKind::Hole,
        };
        if self.from_nothing && kind == ExtentKind::Hole {
            return Ok(());
        }
        let next = DiffExtent { offset: base * BLOCK, len: blocks * BLOCK, kind };
        match &mut self.pending {
            Some(last) if last.kind == kind && last.offset + last.len == next.offset => {
                last.len += next.len;
                Ok(())
            }
            pending => match pending.replace(next) {
                Some(full) => (self.visit)(full),
                None => Ok(()),
            },
        }
    }

    fn finish(&mut self) -> Result<()> {
        match self.pending.take() {
            Some(last) => (self.visit)(last),
            None => Ok(()),
        }
    }
}
