//! Locks that jobs hold on what they work with, until they end: one job at a time changes a machine, while any number may
//! copy from one snapshot, and nobody deletes it meanwhile. Nobody waits for a lock.

use std::collections::BTreeSet;

use keyframe_agent_api::{JobId, SnapshotId, TemplateId, VmId};
use serde::{Deserialize, Serialize};

use crate::sql::{Columns, args, unword, word};
use crate::{Error, ErrorKind, Result, Transaction};

/// What can be locked.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Resource {
    /// A machine.
    Vm(VmId),
    /// A machine's snapshots and list of disks: its process is nobody's business who has only this.
    Tree(VmId),
    /// A snapshot.
    Snapshot(SnapshotId),
    /// A template.
    Template(TemplateId),
}

/// Whether others may hold a lock at the same time.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// They may, shared too.
    Shared,
    /// They may not.
    Exclusive,
}

impl Mode {
    fn excludes(self, other: Mode) -> bool {
        self == Mode::Exclusive || other == Mode::Exclusive
    }
}

impl Resource {
    fn columns(self) -> (&'static str, String) {
        match self {
            Resource::Vm(id) => ("vm", id.to_string()),
            Resource::Tree(id) => ("tree", id.to_string()),
            Resource::Snapshot(id) => ("snapshot", id.to_string()),
            Resource::Template(id) => ("template", id.to_string()),
        }
    }
}

impl std::fmt::Display for Resource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Resource::Vm(id) => write!(f, "machine {id}"),
            Resource::Tree(id) => write!(f, "the snapshot tree of {id}"),
            Resource::Snapshot(id) => write!(f, "snapshot {id}"),
            Resource::Template(id) => write!(f, "template {id}"),
        }
    }
}

impl Transaction {
    /// Takes locks for a job that is in the catalog, or fails with who holds the first that cannot be had. A job's own locks are
    /// not in its way; the stronger mode stays.
    pub async fn lock(&mut self, job: JobId, wanted: &[(Resource, Mode)]) -> Result<()> {
        for &(resource, mode) in wanted {
            let holders = self.holders(resource).await?;
            if let Some(&(other, _)) = holders.iter().find(|(of, held)| *of != job && mode.excludes(*held)) {
                return Err(self.used(resource, other).await);
            }
            let own = holders.into_iter().find(|(of, _)| *of == job).map(|(_, held)| held);
            let (kind, id) = resource.columns();
            let sql = match (own, mode) {
                (Some(Mode::Exclusive), _) | (Some(Mode::Shared), Mode::Shared) => continue,
                (Some(Mode::Shared), Mode::Exclusive) => {
                    "UPDATE locks SET mode = $4 WHERE resource_kind = $1 AND resource = $2 AND job = $3"
                }
                (None, _) => "INSERT INTO locks (resource_kind, resource, job, mode) VALUES ($1, $2, $3, $4)",
            };
            self.execute("take a lock", sql, args![kind, id, job, word(&mode)?]).await?;
        }
        Ok(())
    }

    /// The jobs that a new job with these locks would have to wait for, each once, and how it would be refused.
    pub async fn in_the_way(&mut self, wanted: &[(Resource, Mode)]) -> Result<Vec<(JobId, Error)>> {
        let mut found: Vec<(JobId, Error)> = Vec::new();
        for &(resource, mode) in wanted {
            for (job, held) in self.holders(resource).await? {
                if mode.excludes(held) && found.iter().all(|(known, _)| *known != job) {
                    found.push((job, self.used(resource, job).await));
                }
            }
        }
        Ok(found)
    }

    async fn used(&mut self, resource: Resource, by: JobId) -> Error {
        let name = self.name_of(resource).await.unwrap_or_else(|_| resource.to_string());
        Error::new(ErrorKind::Busy, format!("{name} is being used by job {by}; wait for it"))
    }

    /// As people know it.
    async fn name_of(&mut self, resource: Resource) -> Result<String> {
        Ok(match resource {
            Resource::Vm(id) => format!("machine {}", self.vm(id).await?.name),
            Resource::Tree(id) => format!("the snapshot tree of {}", self.vm(id).await?.name),
            Resource::Snapshot(id) => format!("snapshot {}", self.snapshot(id).await?.name),
            Resource::Template(id) => format!("template {}", self.template(id).await?.name),
        })
    }

    /// Who holds locks on it.
    pub async fn holders(&mut self, resource: Resource) -> Result<Vec<(JobId, Mode)>> {
        let (kind, id) = resource.columns();
        let sql = "SELECT job, mode FROM locks WHERE resource_kind = $1 AND resource = $2 ORDER BY job";
        let rows = self.rows("look for locks", sql, args![kind, id]).await?;
        rows.iter().map(|row| Ok((row.parsed("job")?, unword(row.text("mode")?, "a lock")?))).collect()
    }

    /// The machines whose trees jobs hold.
    pub async fn held_trees(&mut self) -> Result<BTreeSet<VmId>> {
        let sql = "SELECT resource FROM locks WHERE resource_kind = 'tree'";
        self.rows("look for locks", sql, args![]).await?.iter().map(|row| row.parsed("resource")).collect()
    }

    /// Lets go of what a job has locked of these.
    pub async fn unlock_these(&mut self, job: JobId, resources: &[Resource]) -> Result<()> {
        for resource in resources {
            let (kind, id) = resource.columns();
            let sql = "DELETE FROM locks WHERE job = $1 AND resource_kind = $2 AND resource = $3";
            self.execute("let go of a lock", sql, args![job, kind, id]).await?;
        }
        Ok(())
    }

    /// Lets go of all locks of a job.
    pub async fn unlock(&mut self, job: JobId) -> Result<()> {
        self.execute("let go of locks", "DELETE FROM locks WHERE job = $1", args![job]).await.map(drop)
    }
}
