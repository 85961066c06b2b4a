//! Jobs.

use std::time::Duration;

use keyframe_catalog::Job;
use keyframe_model::agent::JobId;

use super::page::{answer, wanted};
use crate::request::{Call, Caller, JobError, JobFilter, JobRef, JobView, Page, PageRequest};
use crate::{Error, ErrorKind, Manager, Result};

impl Manager {
    /// All that match, newest first.
    pub async fn list_jobs(&self, caller: &Caller, filter: &JobFilter, page: &PageRequest) -> Result<Page<JobView>> {
        self.admit(caller)?;
        let open = filter.active.then_some(true);
        let filter = keyframe_catalog::JobFilter { state: filter.state, open, kind: filter.kind, vm: filter.vm };
        let found = self.catalog.read().await?.jobs(&filter, &wanted(page)?).await?;
        Ok(answer(found, |job| job.id.to_string(), view))
    }

    /// One.
    pub async fn job(&self, caller: &Caller, job: JobId) -> Result<JobView> {
        self.admit(caller)?;
        let missing = || Error::not_found(format!("job {job}"), "job list");
        Ok(view(self.catalog.read().await?.job(job).await.map_err(|e| Error::of_lookup(e, missing))?))
    }

    /// Waits until it has ended, or for so long; answers how it stands then.
    pub async fn wait_job(&self, caller: &Caller, job: JobId, longest: Duration) -> Result<JobView> {
        self.admit(caller)?;
        match tokio::time::timeout(longest, self.engine.wait(job)).await {
            Ok(ended) => Ok(view(ended?)),
            Err(_) => self.job(caller, job).await,
        }
    }

    /// Wishes it undone.
    pub async fn cancel_job(&self, call: &Call, job: JobId) -> Result<JobView> {
        self.admit(&call.caller)?;
        self.engine.cancel(job).await?;
        self.job(&call.caller, job).await
    }
}

fn view(job: Job) -> JobView {
    let notes = job.result.as_ref().and_then(|result| result.get("notes")).cloned();
    let mut notes: Vec<String> = notes.and_then(|notes| serde_json::from_value(notes).ok()).unwrap_or_default();
    let instant = job.result.as_ref().and_then(|result| result.get("instant")).cloned();
    let instant = instant.and_then(|report| serde_json::from_value(report).ok()).flatten();
    notes.extend(job.left.iter().map(|left| format!("left behind: {left}")));
    let of = JobRef::from(&job);
    let error = job.error.map(|failure| {
        // A kind that a later version wrote is an internal one to this.
        let kind = serde_json::from_value(failure.kind.into()).unwrap_or(ErrorKind::Internal);
        JobError { kind, message: failure.message }
    });
    JobView {
        job: of,
        title: job.title,
        state: job.state,
        progress: job.progress,
        step: Some(job.message).filter(|text| !text.is_empty()),
        caller: job.caller,
        created: job.created,
        ended: job.ended,
        error,
        notes,
        instant,
        cancellable: !job.state.ended() && !job.committed && !job.cancel,
    }
}
