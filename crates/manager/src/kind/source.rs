//! What machines and templates are made of, held until they are made.

use keyframe_catalog::{Mode, Resource, Transaction};
use keyframe_model::agent::{JobId, SnapshotId, TemplateId};

use super::hold::hold_snapshot;
use crate::Result;

/// A snapshot or a template.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Source {
    /// Of a machine.
    Snapshot(SnapshotId),
    /// The template's volumes have one array snapshot each.
    Template(TemplateId),
}

impl Source {
    /// It must be usable, and nobody deletes it until the job's end.
    pub(crate) async fn hold(&self, tx: &mut Transaction, job: JobId) -> Result<()> {
        match *self {
            Source::Snapshot(id) => {
                let snapshot = tx.snapshot(id).await?;
                hold_snapshot(tx, job, &snapshot).await
            }
            Source::Template(id) => {
                let template = tx.template(id).await?;
                template.usable()?;
                tx.lock(job, &[(Resource::Template(id), Mode::Shared)]).await?;
                Ok(())
            }
        }
    }
}
