//! What machines and templates are made of, held until they are made.

use keyframe_catalog::{Mode, Resource, Transaction};
use keyframe_model::agent::{Generation, JobId, SnapshotId, TemplateId};
use serde::{Deserialize, Serialize};

use super::hold::{check_generation, hold_snapshot};
use crate::Result;

/// A snapshot or a template.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Source {
    /// Of a machine.
    Snapshot(SnapshotId),
    /// The template's volumes have one array snapshot each.
    Template(TemplateId),
}

impl Source {
    /// It must be usable and the one that the caller has seen, and nobody deletes it until the job's end, or until it is
    /// [let go of](Source::release).
    pub(crate) async fn hold(&self, tx: &mut Transaction, job: JobId, expected: Option<Generation>) -> Result<()> {
        match *self {
            Source::Snapshot(id) => {
                let snapshot = tx.snapshot(id).await?;
                check_generation(snapshot.name.as_str(), snapshot.generation, expected)?;
                hold_snapshot(tx, job, &snapshot).await
            }
            Source::Template(id) => {
                let template = tx.template(id).await?;
                check_generation(template.name.as_str(), template.generation, expected)?;
                template.usable()?;
                tx.lock(job, &[(Resource::Template(id), Mode::Shared)]).await?;
                Ok(())
            }
        }
    }
    /// The job goes on without it.
    pub(crate) async fn release(&self, tx: &mut Transaction, job: JobId) -> Result<()> {
        let resource = match *self {
            Source::Snapshot(id) => Resource::Snapshot(id),
            Source::Template(id) => Resource::Template(id),
        };
        Ok(tx.unlock_these(job, &[resource]).await?)
    }
}
