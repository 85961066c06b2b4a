//! Jobs.

use std::time::Duration;

use keyframe_model::agent::JobId;

use crate::request::{Call, Caller, JobFilter, JobView, Page, PageRequest};
use crate::{Manager, Result};

impl Manager {
    /// All that match, newest first.
    pub async fn list_jobs(&self, caller: &Caller, filter: &JobFilter, page: &PageRequest) -> Result<Page<JobView>> {
        Err(self.unfinished(format_args!("{:?}", (&caller, &filter, &page,))))
    }

    /// One.
    pub async fn job(&self, caller: &Caller, job: JobId) -> Result<JobView> {
        Err(self.unfinished(format_args!("{:?}", (&caller, &job,))))
    }

    /// Waits until it has ended, or for so long; answers how it stands then.
    pub async fn wait_job(&self, caller: &Caller, job: JobId, longest: Duration) -> Result<JobView> {
        Err(self.unfinished(format_args!("{:?}", (&caller, &job, &longest,))))
    }

    /// Wishes it undone.
    pub async fn cancel_job(&self, call: &Call, job: JobId) -> Result<JobView> {
        Err(self.unfinished(format_args!("{:?}", (&call, &job,))))
    }
}
