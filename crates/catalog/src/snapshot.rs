//! Snapshots of machines. Thousands of them belong to one machine: pages and the tree come from columns and indexes, and only
//! what is shown has its document read.

use keyframe_agent_api::{Bytes, Generation, SnapshotId, Timestamp, VmId};
use keyframe_model::{Name, Snapshot, SnapshotKind, SnapshotOrigin, SnapshotState, Tag, Tree};
use serde::{Deserialize, Serialize};
use sqlx::AssertSqlSafe;
use sqlx::any::AnyRow;

use crate::event::{Change, EventKind};
use crate::sql::{Arg, BATCH, Columns, Conditions, args, containing, document, folded, places, unword, word};
use crate::{Error, ErrorKind, Owner, Page, PageOf, Result, Transaction};

/// Which snapshots.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SnapshotFilter {
    /// Of this machine.
    pub vm: Option<VmId>,
    /// Of this name exactly.
    pub name: Option<String>,
    /// With this in name, description or tags, upper or lower case.
    pub search: Option<String>,
    /// With this tag.
    pub tag: Option<Tag>,
    /// In this state.
    pub phase: Option<SnapshotPhase>,
    /// Of this kind.
    pub kind: Option<SnapshotKind>,
    /// Made by Keyframe itself, or asked for by somebody.
    pub automatic: Option<bool>,
}

/// A snapshot's state without its details.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SnapshotPhase {
    /// It is being taken.
    Creating,
    /// It can be used.
    Ready,
    /// It is being deleted.
    Deleting,
    /// It can only be deleted.
    Error,
}

/// What a drawing of the tree shows of a snapshot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SnapshotLine {
    /// Which.
    pub id: SnapshotId,
    /// Its parent.
    pub parent: Option<SnapshotId>,
    /// Its name.
    pub name: Name,
    /// Its state.
    pub phase: SnapshotPhase,
    /// What it holds.
    pub kind: SnapshotKind,
    /// Nobody deletes it.
    pub locked: bool,
    /// Made by Keyframe itself.
    pub automatic: bool,
    /// When it was ordered.
    pub created: Timestamp,
}

impl SnapshotPhase {
    /// The phase of a state.
    pub fn of(state: &SnapshotState) -> SnapshotPhase {
        match state {
            SnapshotState::Creating { .. } => SnapshotPhase::Creating,
            SnapshotState::Ready => SnapshotPhase::Ready,
            SnapshotState::Deleting { .. } => SnapshotPhase::Deleting,
            SnapshotState::Error { .. } => SnapshotPhase::Error,
        }
    }
}

impl Transaction {
    /// Adds a snapshot.
    pub async fn insert_snapshot(&mut self, snapshot: &Snapshot) -> Result<()> {
        let sql = "INSERT INTO snapshots (id, vm, name, generation, phase, kind, automatic, locked, parent, created, \
                   expires, searchable, document, stored) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, \
                   $14)";
        let args = columns(snapshot)?;
        let done = self.execute("add a snapshot", sql, args).await;
        done.map_err(|e| e.taken(|| taken(&snapshot.name)))?;
        self.tag(snapshot).await?;
        self.own(Owner::Snapshot(snapshot.id), &snapshot.hardware).await?;
        self.note_snapshot(snapshot, Change::Made);
        Ok(())
    }

    /// A snapshot.
    pub async fn snapshot(&mut self, id: SnapshotId) -> Result<Snapshot> {
        let row = self.row_if_any("read a snapshot", "SELECT * FROM snapshots WHERE id = $1", args![id]).await?;
        row.as_ref()
            .map(read)
            .transpose()?
            .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("there is no snapshot {id}")))
    }

    /// The machine's snapshot of that name.
    pub async fn find_snapshot(&mut self, vm: VmId, name: &Name) -> Result<Option<Snapshot>> {
        let sql = "SELECT * FROM snapshots WHERE vm = $1 AND name = $2";
        self.row_if_any("find a snapshot", sql, args![vm, name.as_str()]).await?.as_ref().map(read).transpose()
    }

    /// Replaces a snapshot that has not changed since, and raises its generation, here too.
    pub async fn update_snapshot(&mut self, snapshot: &mut Snapshot) -> Result<()> {
        let next = Snapshot { generation: snapshot.generation.next(), ..snapshot.clone() };
        let sql = "UPDATE snapshots SET vm = $2, name = $3, generation = $4, phase = $5, kind = $6, automatic = $7, \
                   locked = $8, parent = $9, created = $10, expires = $11, searchable = $12, document = $13, \
                   stored = $14 WHERE id = $1 AND generation = $15";
        let mut args = columns(&next)?;
        args.push(snapshot.generation.into());
        let changed = self.execute("change a snapshot", sql, args).await;
        if changed.map_err(|e| e.taken(|| taken(&snapshot.name)))? == 0 {
            return Err(match self.snapshot(snapshot.id).await {
                Ok(now) => {
                    let message = format!("snapshot {} has changed since it was read; read it again", now.name);
                    Error::new(ErrorKind::Stale, message)
                }
                Err(e) => e,
            });
        }
        let untag = "DELETE FROM snapshot_tags WHERE snapshot = $1";
        self.execute("change a snapshot's tags", untag, args![snapshot.id]).await?;
        self.tag(&next).await?;
        self.own(Owner::Snapshot(snapshot.id), &next.hardware).await?;
        *snapshot = next;
        self.note_snapshot(snapshot, Change::Changed);
        Ok(())
    }

    /// Removes snapshots; those that are not there are no failure. Their children must have been moved before.
    pub async fn delete_snapshots(&mut self, vm: VmId, ids: &[SnapshotId]) -> Result<u64> {
        let mut removed = 0;
        for batch in ids.chunks(BATCH) {
            for &id in batch {
                self.note_of(EventKind::Snapshot, id, Some(vm), Generation(0), Change::Gone);
            }
            let list = places(1, batch.len());
            let args = || batch.iter().map(|&id| id.into()).collect::<Vec<Arg>>();
            let disown = format!("DELETE FROM volume_owners WHERE owner_kind = 'snapshot' AND owner IN {list}");
            self.execute("remove snapshots", AssertSqlSafe(disown), args()).await?;
            let delete = format!("DELETE FROM snapshots WHERE id IN {list}");
            removed += self.execute("remove snapshots", AssertSqlSafe(delete), args()).await?;
        }
        Ok(removed)
    }

    /// Snapshots in the order of their making.
    pub async fn snapshots(&mut self, filter: &SnapshotFilter, page: &PageOf<SnapshotId>) -> Result<Page<Snapshot>> {
        self.page("snapshots", false, filter.conditions()?, page, read).await
    }

    /// Which a machine has.
    pub(crate) async fn snapshots_of(&mut self, vm: VmId) -> Result<Vec<SnapshotId>> {
        let sql = "SELECT id FROM snapshots WHERE vm = $1 ORDER BY id";
        self.rows("list snapshots", sql, args![vm]).await?.iter().map(|row| row.parsed("id")).collect()
    }

    /// How many a machine has.
    pub async fn count_snapshots(&mut self, vm: VmId) -> Result<u64> {
        let filter = SnapshotFilter { vm: Some(vm), ..SnapshotFilter::default() };
        self.count("snapshots", filter.conditions()?).await
    }

    /// What the stored memories of a machine's snapshots take.
    pub async fn stored_memory(&mut self, vm: VmId) -> Result<Bytes> {
        let sql = "SELECT CAST(COALESCE(SUM(stored), 0) AS BIGINT) AS n FROM snapshots WHERE vm = $1";
        let sum = self.row("sum up memories", sql, args![vm]).await?.int("n")?;
        u64::try_from(sum).map(Bytes).map_err(|e| Error::corrupt("what memories take", e))
    }

    /// The tree of a machine's snapshots.
    pub async fn tree(&mut self, vm: VmId) -> Result<Tree> {
        let current = self.vm(vm).await?.current;
        let sql = "SELECT id, parent FROM snapshots WHERE vm = $1";
        let rows = self.rows("read a tree", sql, args![vm]).await?;
        let nodes = rows.iter().map(|row| Ok((row.parsed("id")?, row.parsed_or_null("parent")?)));
        Ok(Tree::new(nodes.collect::<Result<Vec<_>>>()?, current))
    }

    /// What a drawing of the machine's tree shows, in the order of making.
    pub async fn outline(&mut self, vm: VmId) -> Result<Vec<SnapshotLine>> {
        let sql = "SELECT id, parent, name, phase, kind, locked, automatic, created FROM snapshots WHERE vm = $1 \
                   ORDER BY id";
        self.rows("read a tree", sql, args![vm]).await?.iter().map(line).collect()
    }

    /// Those whose parent it is.
    pub async fn children(&mut self, parent: SnapshotId) -> Result<Vec<SnapshotId>> {
        let sql = "SELECT id FROM snapshots WHERE parent = $1 ORDER BY id";
        self.rows("list children", sql, args![parent]).await?.iter().map(|row| row.parsed("id")).collect()
    }

    /// Gives snapshots new parents, whatever their generations, and raises those.
    pub async fn move_snapshots(&mut self, moved: &[(SnapshotId, Option<SnapshotId>)]) -> Result<()> {
        let mut by_parent = std::collections::BTreeMap::<Option<SnapshotId>, Vec<SnapshotId>>::new();
        for &(id, parent) in moved {
            by_parent.entry(parent).or_default().push(id);
        }
        for (parent, ids) in by_parent {
            for batch in ids.chunks(BATCH) {
                let sql = format!(
                    "UPDATE snapshots SET parent = $1, generation = generation + 1 WHERE id IN {} \
                     RETURNING id, vm, generation",
                    places(2, batch.len())
                );
                let mut args = args![parent];
                args.extend(batch.iter().map(|&id| Arg::from(id)));
                self.writing()?;
                for row in self.rows("move snapshots", AssertSqlSafe(sql), args).await? {
                    let (id, vm): (SnapshotId, VmId) = (row.parsed("id")?, row.parsed("vm")?);
                    let generation = Generation(row.int("generation")?);
                    self.note_of(EventKind::Snapshot, id, Some(vm), generation, Change::Changed);
                }
            }
        }
        Ok(())
    }

    /// Snapshots with memory, made at or before that moment and after that one, in the order of their making.
    pub async fn memories(
        &mut self,
        after: Option<SnapshotId>,
        before: Timestamp,
        limit: u32,
    ) -> Result<Vec<Snapshot>> {
        let sql = "SELECT * FROM snapshots WHERE id > $1 AND kind = 'disk+memory' AND phase = 'ready' AND created <= $2 \
                   ORDER BY id LIMIT $3";
        let after = after.map_or_else(String::new, |id| id.to_string());
        self.rows("list stored memories", sql, args![after, before, limit]).await?.iter().map(read).collect()
    }

    /// Automatic snapshots whose time is over and which nobody has locked, those of the earliest expiry first.
    pub async fn expired_snapshots(&mut self, now: Timestamp, limit: u32) -> Result<Vec<Snapshot>> {
        let sql = "SELECT * FROM snapshots WHERE expires <= $1 AND automatic = 1 AND locked = 0 AND phase = 'ready' \
                   ORDER BY expires LIMIT $2";
        self.rows("list expired snapshots", sql, args![now, limit]).await?.iter().map(read).collect()
    }

    pub(crate) fn note_snapshot(&mut self, snapshot: &Snapshot, change: Change) {
        self.note_of(EventKind::Snapshot, snapshot.id, Some(snapshot.vm), snapshot.generation, change);
    }

    async fn tag(&mut self, snapshot: &Snapshot) -> Result<()> {
        let tags: std::collections::BTreeSet<&Tag> = snapshot.tags.iter().collect();
        for tag in tags {
            let sql = "INSERT INTO snapshot_tags (snapshot, tag) VALUES ($1, $2)";
            self.execute("tag a snapshot", sql, args![snapshot.id, tag.as_str()]).await?;
        }
        Ok(())
    }
}

impl SnapshotFilter {
    fn conditions(&self) -> Result<Conditions> {
        let mut conditions = Conditions::default();
        if let Some(vm) = self.vm {
            conditions.and("vm = ?", vm);
        }
        if let Some(name) = &self.name {
            conditions.and("name = ?", name.as_str());
        }
        if let Some(text) = &self.search {
            conditions.and("searchable LIKE ? ESCAPE '!'", containing(text));
        }
        if let Some(tag) = &self.tag {
            conditions.and("id IN (SELECT snapshot FROM snapshot_tags WHERE tag = ?)", tag.as_str());
        }
        if let Some(phase) = &self.phase {
            conditions.and("phase = ?", word(phase)?);
        }
        if let Some(kind) = &self.kind {
            conditions.and("kind = ?", word(kind)?);
        }
        if let Some(automatic) = self.automatic {
            conditions.and("automatic = ?", automatic);
        }
        Ok(conditions)
    }
}

fn columns(snapshot: &Snapshot) -> Result<Vec<Arg>> {
    let mut searchable = format!("{}\n{}", snapshot.name, snapshot.description);
    for tag in &snapshot.tags {
        searchable.push('\n');
        searchable.push_str(tag.as_str());
    }
    let memory = snapshot.report.as_ref().and_then(|report| report.memory.as_ref());
    let stored = memory.map_or(0, |memory| i64::try_from(memory.stored.0).unwrap_or(i64::MAX));
    Ok(args![
        snapshot.id,
        snapshot.vm,
        snapshot.name.as_str(),
        snapshot.generation,
        word(&SnapshotPhase::of(&snapshot.state))?,
        word(&snapshot.kind)?,
        !matches!(snapshot.origin, SnapshotOrigin::User),
        snapshot.locked,
        snapshot.parent,
        snapshot.created,
        snapshot.expires,
        folded(&searchable),
        document(snapshot, &snapshot.name)?,
        stored,
    ])
}

/// A move changes parent and generation in their columns only, so those count and not the document's.
fn read(row: &AnyRow) -> Result<Snapshot> {
    let parent = row.parsed_or_null("parent")?;
    let generation = Generation(row.int("generation")?);
    Ok(Snapshot { parent, generation, ..row.document("document")? })
}

fn line(row: &AnyRow) -> Result<SnapshotLine> {
    Ok(SnapshotLine {
        id: row.parsed("id")?,
        parent: row.parsed_or_null("parent")?,
        name: row.text("name")?.parse().map_err(|e| Error::corrupt("a snapshot", e))?,
        phase: unword(row.text("phase")?, "a snapshot")?,
        kind: unword(row.text("kind")?, "a snapshot")?,
        locked: row.flag("locked")?,
        automatic: row.flag("automatic")?,
        created: Timestamp(row.int("created")?),
    })
}

fn taken(name: &Name) -> String {
    format!("the machine has a snapshot named {name} already; choose another name")
}
