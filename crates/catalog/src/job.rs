//! Jobs. What each did so far is in its steps.

use keyframe_agent_api::{Generation, JobId, SnapshotId, TemplateId, Timestamp, VmId};
use keyframe_model::{JobKind, JobState, Progress};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::any::AnyRow;

use crate::event::{Change, EventKind};
use crate::sql::{Columns, Conditions, args, document, word};
use crate::{Error, ErrorKind, Page, PageOf, Result, Transaction};

/// A job.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Job {
    /// Never changes.
    pub id: JobId,
    /// What it does.
    pub kind: JobKind,
    /// How it stands.
    pub state: JobState,
    /// Raised with every change.
    pub generation: Generation,
    /// What it does, for people: "snapshot web-1 as nightly".
    pub title: String,
    /// Who ordered it.
    pub caller: String,
    /// The machines that it makes or works on.
    pub vms: Vec<VmId>,
    /// The machine that it copies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<VmId>,
    /// The snapshot that it makes or works on.
    pub snapshot: Option<SnapshotId>,
    /// The template that it makes or works on.
    pub template: Option<TemplateId>,
    /// All that was decided before it began.
    pub plan: Value,
    /// How far it is.
    pub progress: Progress,
    /// What it is doing, for people.
    pub message: String,
    /// Somebody wishes it undone.
    pub cancel: bool,
    /// It has begun what cannot be undone.
    pub committed: bool,
    /// Why it is being undone, or was.
    pub error: Option<JobFailure>,
    /// What it could neither do nor undo.
    pub left: Vec<String>,
    /// What came of it.
    pub result: Option<Value>,
    /// When it was ordered.
    pub created: Timestamp,
    /// When it began.
    pub started: Option<Timestamp>,
    /// When it ended.
    pub ended: Option<Timestamp>,
}

/// Why a job failed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct JobFailure {
    /// For programs.
    pub kind: String,
    /// For people.
    pub message: String,
}

/// Which jobs.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct JobFilter {
    /// In this state.
    pub state: Option<JobState>,
    /// That have not ended, or that have.
    pub open: Option<bool>,
    /// Of this kind.
    pub kind: Option<JobKind>,
    /// About this machine.
    pub vm: Option<VmId>,
}

impl Transaction {
    /// Adds a job.
    pub async fn insert_job(&mut self, job: &Job) -> Result<()> {
        let sql = "INSERT INTO jobs (id, kind, state, is_open, generation, cancel_wish, ended, document) \
                   VALUES ($1, $2, $3, $4, $5, $6, $7, $8)";
        let args = args![
            job.id,
            word(&job.kind)?,
            word(&job.state)?,
            !job.state.ended(),
            job.generation,
            job.cancel,
            job.ended,
            document(job, job.id)?
        ];
        self.execute("add a job", sql, args).await?;
        for &vm in job.vms.iter().chain(job.source.iter().filter(|source| !job.vms.contains(source))) {
            let sql = "INSERT INTO job_vms (job, vm) VALUES ($1, $2)";
            self.execute("add a job's machine", sql, args![job.id, vm]).await?;
        }
        self.note_of(EventKind::Job, job.id, job.vms.first().copied(), job.generation, Change::Made);
        Ok(())
    }

    /// A job.
    pub async fn job(&mut self, id: JobId) -> Result<Job> {
        let row = self.row_if_any("read a job", "SELECT * FROM jobs WHERE id = $1", args![id]).await?;
        row.as_ref()
            .map(read)
            .transpose()?
            .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("there is no job {id}")))
    }

    /// Replaces a job that has not changed since, and raises its generation, here too. Its machines stay what they were.
    pub async fn update_job(&mut self, job: &mut Job) -> Result<()> {
        let next = Job { generation: job.generation.next(), ..job.clone() };
        let sql = "UPDATE jobs SET state = $3, is_open = $4, generation = $5, cancel_wish = $6, ended = $7, \
                   document = $8 WHERE id = $1 AND generation = $2";
        let args = args![
            job.id,
            job.generation,
            word(&next.state)?,
            !next.state.ended(),
            next.generation,
            next.cancel,
            next.ended,
            document(&next, job.id)?
        ];
        if self.execute("change a job", sql, args).await? == 0 {
            self.job(job.id).await?;
            let message = format!("job {} has changed since it was read; read it again", job.id);
            return Err(Error::new(ErrorKind::Stale, message));
        }
        *job = next;
        self.note_of(EventKind::Job, job.id, job.vms.first().copied(), job.generation, Change::Changed);
        Ok(())
    }

    /// Jobs, the newest first.
    pub async fn jobs(&mut self, filter: &JobFilter, page: &PageOf<JobId>) -> Result<Page<Job>> {
        let mut conditions = Conditions::default();
        if let Some(state) = &filter.state {
            conditions.and("state = ?", word(state)?);
        }
        if let Some(open) = filter.open {
            conditions.and("is_open = ?", open);
        }
        if let Some(kind) = &filter.kind {
            conditions.and("kind = ?", word(kind)?);
        }
        if let Some(vm) = filter.vm {
            conditions.and("id IN (SELECT job FROM job_vms WHERE vm = ?)", vm);
        }
        self.page("jobs", true, conditions, page, read).await
    }

    /// Jobs that have not ended, the oldest first.
    pub async fn unfinished_jobs(&mut self) -> Result<Vec<Job>> {
        let sql = "SELECT * FROM jobs WHERE is_open = 1 ORDER BY id";
        self.rows("list unfinished jobs", sql, args![]).await?.iter().map(read).collect()
    }

    /// Removes at most so many jobs that ended before, with their steps, and says how many.
    pub async fn prune_jobs(&mut self, ended_before: Timestamp, limit: u32) -> Result<u64> {
        let sql = "DELETE FROM jobs WHERE id IN \
                   (SELECT id FROM jobs WHERE ended < $1 ORDER BY ended LIMIT $2)";
        self.execute("prune jobs", sql, args![ended_before, limit]).await
    }
}

fn read(row: &AnyRow) -> Result<Job> {
    row.document("document")
}
