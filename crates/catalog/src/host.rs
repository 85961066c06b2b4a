//! Hosts with an agent.

use keyframe_agent_api::{Generation, HostId, HostInfo, Timestamp};
use serde::{Deserialize, Serialize};
use sqlx::any::AnyRow;

use crate::event::{Change, EventKind};
use crate::sql::{Columns, args, document};
use crate::{Error, ErrorKind, Result, Transaction};

/// A host.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Host {
    /// Never changes.
    pub id: HostId,
    /// Unique among hosts.
    pub name: String,
    /// Where its agent listens: a path of a Unix socket, or a URL.
    pub address: String,
    /// Raised with every change.
    pub generation: Generation,
    /// What it said last.
    pub info: Option<HostInfo>,
    /// When that was.
    pub seen: Option<Timestamp>,
}

impl Transaction {
    /// Adds a host.
    pub async fn insert_host(&mut self, host: &Host) -> Result<()> {
        let sql = "INSERT INTO hosts (id, name, generation, document) VALUES ($1, $2, $3, $4)";
        let args = args![host.id, host.name.as_str(), host.generation, document(host, &host.name)?];
        self.execute("add a host", sql, args).await.map_err(|e| e.taken(|| taken(&host.name)))?;
        self.note(EventKind::Host, host.id, host.generation, Change::Made);
        Ok(())
    }

    /// A host.
    pub async fn host(&mut self, id: HostId) -> Result<Host> {
        let row = self.row_if_any("read a host", "SELECT * FROM hosts WHERE id = $1", args![id]).await?;
        row.as_ref()
            .map(read)
            .transpose()?
            .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("there is no host {id}")))
    }

    /// The host of that name.
    pub async fn find_host(&mut self, name: &str) -> Result<Option<Host>> {
        let sql = "SELECT * FROM hosts WHERE name = $1";
        self.row_if_any("find a host", sql, args![name]).await?.as_ref().map(read).transpose()
    }

    /// All hosts, in the order of their names.
    pub async fn hosts(&mut self) -> Result<Vec<Host>> {
        self.rows("list hosts", "SELECT * FROM hosts ORDER BY name", args![]).await?.iter().map(read).collect()
    }

    /// Replaces a host that has not changed since, and raises its generation, here too.
    pub async fn update_host(&mut self, host: &mut Host) -> Result<()> {
        let next = Host { generation: host.generation.next(), ..host.clone() };
        let sql = "UPDATE hosts SET name = $3, generation = $4, document = $5 WHERE id = $1 AND generation = $2";
        let text = document(&next, &next.name)?;
        let args = args![host.id, host.generation, next.name.as_str(), next.generation, text];
        let changed = self.execute("change a host", sql, args).await;
        if changed.map_err(|e| e.taken(|| taken(&next.name)))? == 0 {
            return Err(self.stale_host(host.id).await);
        }
        *host = next;
        self.note(EventKind::Host, host.id, host.generation, Change::Changed);
        Ok(())
    }

    /// Removes a host that has not changed since.
    pub async fn delete_host(&mut self, id: HostId, generation: Generation) -> Result<()> {
        let sql = "DELETE FROM hosts WHERE id = $1 AND generation = $2";
        if self.execute("remove a host", sql, args![id, generation]).await? == 0 {
            return Err(self.stale_host(id).await);
        }
        self.note(EventKind::Host, id, generation.next(), Change::Gone);
        Ok(())
    }

    async fn stale_host(&mut self, id: HostId) -> Error {
        match self.host(id).await {
            Ok(now) => {
                let message = format!("host {} has changed since it was read; read it again", now.name);
                Error::new(ErrorKind::Stale, message)
            }
            Err(e) => e,
        }
    }
}

fn read(row: &AnyRow) -> Result<Host> {
    row.document("document")
}

fn taken(name: &str) -> String {
    format!("there is a host named {name} already; choose another name")
}
