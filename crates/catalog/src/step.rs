//! What each job has done: one record for each step that was begun.

use keyframe_agent_api::{JobId, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::sql::{Columns, args, document};
use crate::{Result, Transaction};

/// A step that was begun.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct JobStep {
    /// Whose.
    pub job: JobId,
    /// Its place, from 0.
    pub index: u32,
    /// What it does, for people.
    pub name: String,
    /// How it stands.
    pub state: StepState,
    /// What it found out, for later ones.
    pub output: Option<Value>,
    /// The last failure, for people.
    pub error: Option<String>,
    /// When it was begun.
    pub started: Timestamp,
    /// When it was done or undone.
    pub ended: Option<Timestamp>,
}

/// The state of a step.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StepState {
    /// It may have done something, or nothing, or all.
    Started,
    /// It is done.
    Done,
    /// It may have been undone, or not.
    Undoing,
    /// It is undone.
    Undone,
    /// It could neither be done nor undone.
    Stuck,
}

impl Transaction {
    /// Adds or replaces a step's record.
    pub async fn put_step(&mut self, step: &JobStep) -> Result<()> {
        let sql = "INSERT INTO job_steps (job, position, document) VALUES ($1, $2, $3) \
                   ON CONFLICT (job, position) DO UPDATE SET document = excluded.document";
        let args = args![step.job, step.index, document(step, &step.name)?];
        self.execute("record a step", sql, args).await.map(drop)
    }

    /// The steps of a job that were begun, in their order.
    pub async fn steps(&mut self, job: JobId) -> Result<Vec<JobStep>> {
        let sql = "SELECT document FROM job_steps WHERE job = $1 ORDER BY position";
        self.rows("read steps", sql, args![job]).await?.iter().map(|row| row.document("document")).collect()
    }
}
