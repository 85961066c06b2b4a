//! Virtual machines.

use keyframe_agent_api::{Generation, SnapshotId, VmId};
use keyframe_model::{Name, Rest, Vm, VmState};
use serde::{Deserialize, Serialize};
use sqlx::AssertSqlSafe;
use sqlx::any::AnyRow;

use crate::event::{Change, EventKind};
use crate::sql::{Arg, BATCH, Columns, Conditions, args, containing, document, folded, places, unword, word};
use crate::{Error, ErrorKind, Owner, Page, PageOf, Result, Transaction};

/// Which machines.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct VmFilter {
    /// Of this name exactly.
    pub name: Option<String>,
    /// With this in name or description, upper or lower case.
    pub search: Option<String>,
    /// In this state.
    pub phase: Option<VmPhase>,
}

/// A machine's state without its details.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VmPhase {
    /// Off.
    Stopped,
    /// The guest runs.
    Running,
    /// The guest stands still.
    Paused,
    /// A job is at work.
    Busy,
    /// It needs attention.
    Error,
    /// Deleted; not kept for long.
    Gone,
}

impl VmPhase {
    /// The phase of a state.
    pub fn of(state: &VmState) -> VmPhase {
        match state {
            VmState::At { rest: Rest::Stopped } => VmPhase::Stopped,
            VmState::At { rest: Rest::Running } => VmPhase::Running,
            VmState::At { rest: Rest::Paused { .. } } => VmPhase::Paused,
            VmState::Busy { .. } => VmPhase::Busy,
            VmState::Error { .. } => VmPhase::Error,
            VmState::Gone => VmPhase::Gone,
        }
    }
}

impl std::str::FromStr for VmPhase {
    type Err = Error;

    fn from_str(text: &str) -> Result<VmPhase> {
        unword(text.to_owned(), "a state").map_err(|_| {
            let message = format!("'{text}' is not a state; stopped, running, paused, busy and error are");
            Error::new(ErrorKind::Invalid, message)
        })
    }
}

impl Transaction {
    /// Adds a machine.
    pub async fn insert_vm(&mut self, vm: &Vm) -> Result<()> {
        let sql = "INSERT INTO vms (id, name, generation, phase, searchable, document) VALUES ($1, $2, $3, $4, $5, $6)";
        let phase = word(&VmPhase::of(&vm.state))?;
        let args = args![vm.id, vm.name.as_str(), vm.generation, phase, searchable(vm), document(vm, &vm.name)?];
        self.execute("add a machine", sql, args).await.map_err(|e| e.taken(|| taken(&vm.name)))?;
        self.own(Owner::Vm(vm.id), &vm.hardware).await?;
        self.note_of(EventKind::Vm, vm.id, Some(vm.id), vm.generation, Change::Made);
        Ok(())
    }

    /// A machine.
    pub async fn vm(&mut self, id: VmId) -> Result<Vm> {
        let row = self.row_if_any("read a machine", "SELECT * FROM vms WHERE id = $1", args![id]).await?;
        row.as_ref().map(read).transpose()?.ok_or_else(|| missing(id))
    }

    /// The machine of that name.
    pub async fn find_vm(&mut self, name: &Name) -> Result<Option<Vm>> {
        let sql = "SELECT * FROM vms WHERE name = $1";
        self.row_if_any("find a machine", sql, args![name.as_str()]).await?.as_ref().map(read).transpose()
    }

    /// Replaces a machine that has not changed since, and raises its generation, here too.
    pub async fn update_vm(&mut self, vm: &mut Vm) -> Result<()> {
        let next = Vm { generation: vm.generation.next(), ..vm.clone() };
        let sql = "UPDATE vms SET name = $3, generation = $4, phase = $5, searchable = $6, document = $7 \
                   WHERE id = $1 AND generation = $2";
        let phase = word(&VmPhase::of(&vm.state))?;
        let args = args![
            vm.id,
            vm.generation,
            vm.name.as_str(),
            next.generation,
            phase,
            searchable(vm),
            document(&next, &vm.name)?
        ];
        let changed = self.execute("change a machine", sql, args).await.map_err(|e| e.taken(|| taken(&vm.name)))?;
        if changed == 0 {
            return Err(self.stale_vm(vm.id).await);
        }
        self.own(Owner::Vm(vm.id), &vm.hardware).await?;
        *vm = next;
        self.note_of(EventKind::Vm, vm.id, Some(vm.id), vm.generation, Change::Changed);
        Ok(())
    }

    /// Removes a machine that has not changed since, and all its snapshots.
    pub async fn delete_vm(&mut self, id: VmId, generation: Generation) -> Result<()> {
        self.disown_snapshots_of(id).await?;
        self.disown(Owner::Vm(id)).await?;
        for snapshot in self.snapshots_of(id).await? {
            self.note_of(EventKind::Snapshot, snapshot, Some(id), Generation(0), Change::Gone);
        }
        let sql = "DELETE FROM vms WHERE id = $1 AND generation = $2";
        if self.execute("remove a machine", sql, args![id, generation]).await? == 0 {
            return Err(self.stale_vm(id).await);
        }
        self.note_of(EventKind::Vm, id, Some(id), generation.next(), Change::Gone);
        Ok(())
    }

    /// Machines in the order of their making.
    pub async fn vms(&mut self, filter: &VmFilter, page: &PageOf<VmId>) -> Result<Page<Vm>> {
        let mut conditions = Conditions::default();
        if let Some(name) = &filter.name {
            conditions.and("name = ?", name.as_str());
        }
        if let Some(text) = &filter.search {
            conditions.and("searchable LIKE ? ESCAPE '!'", containing(text));
        }
        if let Some(phase) = &filter.phase {
            conditions.and("phase = ?", word(phase)?);
        }
        self.page("vms", false, conditions, page, read).await
    }

    /// Of these machines, those that there are.
    pub async fn vms_of(&mut self, ids: &[VmId]) -> Result<Vec<Vm>> {
        let mut found = Vec::with_capacity(ids.len());
        for batch in ids.chunks(BATCH) {
            let sql = format!("SELECT * FROM vms WHERE id IN {}", places(1, batch.len()));
            let args = batch.iter().map(|&id| Arg::from(id)).collect();
            for row in self.rows("read machines", AssertSqlSafe(sql), args).await? {
                found.push(read(&row)?);
            }
        }
        Ok(found)
    }

    /// Every machine.
    pub async fn all_vms(&mut self) -> Result<Vec<Vm>> {
        Ok(self.vms(&VmFilter::default(), &PageOf::all()).await?.items)
    }

    /// Machines that a job is at work on.
    pub async fn busy_vms(&mut self) -> Result<Vec<Vm>> {
        let filter = VmFilter { phase: Some(VmPhase::Busy), ..VmFilter::default() };
        Ok(self.vms(&filter, &PageOf::all()).await?.items)
    }

    /// Makes the machine's state a descendant of that snapshot.
    pub async fn set_current(&mut self, vm: &mut Vm, current: Option<SnapshotId>) -> Result<()> {
        let before = std::mem::replace(&mut vm.current, current);
        let done = self.update_vm(vm).await;
        if done.is_err() {
            vm.current = before;
        }
        done
    }

    async fn stale_vm(&mut self, id: VmId) -> Error {
        match self.vm(id).await {
            Ok(vm) => {
                let message = format!("machine {} has changed since it was read; read it again", vm.name);
                Error::new(ErrorKind::Stale, message)
            }
            Err(e) => e,
        }
    }

    /// How many there are.
    pub(crate) async fn count(&mut self, table: &'static str, conditions: Conditions) -> Result<u64> {
        let (sql, args) = conditions.statement(&format!("SELECT COUNT(*) AS n FROM {table}"), "");
        let count = self.row("count", AssertSqlSafe(sql), args).await?.int("n")?;
        u64::try_from(count).map_err(|e| Error::corrupt("a count", e))
    }

    /// A page of a table's rows. They are counted only if these are not all: a search reads everything once, not twice.
    pub(crate) async fn page<Id: Copy, T>(
        &mut self,
        table: &'static str,
        newest_first: bool,
        mut conditions: Conditions,
        page: &PageOf<Id>,
        read: fn(&AnyRow) -> Result<T>,
    ) -> Result<Page<T>>
    where
        Arg: From<Id>,
    {
        let all = conditions.clone();
        let (beyond, order) = if newest_first { ("id < ?", " DESC") } else { ("id > ?", "") };
        if let Some(after) = page.after {
            conditions.and(beyond, after);
        }
        // One more than is wanted, to know whether there are more.
        let limit = conditions.arg(i64::from(page.limit) + 1);
        let tail = format!(" ORDER BY id{order} LIMIT {limit}");
        let (sql, args) = conditions.statement(&format!("SELECT * FROM {table}"), &tail);
        let items = self.rows("list", AssertSqlSafe(sql), args).await?.iter().map(read).collect::<Result<Vec<T>>>()?;
        let found = u64::try_from(items.len()).unwrap_or(u64::MAX);
        let total = match page.after {
            None if found <= u64::from(page.limit) => found,
            None | Some(_) => self.count(table, all).await?,
        };
        Ok(Page::of(items, page.limit, total))
    }
}

fn read(row: &AnyRow) -> Result<Vm> {
    row.document("document")
}

fn searchable(vm: &Vm) -> String {
    folded(&format!("{}\n{}", vm.name, vm.description))
}

fn taken(name: &Name) -> String {
    format!("there is a machine named {name} already; choose another name")
}

fn missing(id: VmId) -> Error {
    Error::new(ErrorKind::NotFound, format!("there is no machine {id}"))
}
