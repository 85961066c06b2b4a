//! What a step of a job consists of.

use std::time::Duration;

use async_trait::async_trait;
use keyframe_catalog::Leftover;
use serde_json::Value;

use super::Context;
use crate::{Error, Result};

/// A step of a job. Everything that it does outside of the catalog it does under [`Context::key`] or names that the plan holds,
/// so that doing it again changes nothing.
#[async_trait]
pub trait Step: Send + Sync {
    /// What it does, for people: "create volume local/disk-1".
    fn name(&self) -> String;

    /// Does it, and says what later steps or the end need to know. May be called when it was done already, in part or in whole.
    async fn run(&self, cx: &Context) -> Result<Value>;

    /// Takes back what [`run`](Step::run) did: all, part, or nothing. May be called when it was taken back already.
    async fn undo(&self, cx: &Context) -> Result<()>;

    /// After a restart or a lost connection: whether it was done. By default it is run again.
    async fn probe(&self, _cx: &Context) -> Result<Probe> {
        Ok(Probe::Unknown)
    }

    /// How long one try of running or undoing may take; then it is dropped where it stands.
    fn deadline(&self) -> Duration {
        Duration::from_secs(60)
    }

    /// Cannot be undone. From the moment that it is begun the job only goes forward: it is not cancelled, and what fails is
    /// tried again.
    fn commits(&self) -> bool {
        false
    }

    /// It only clears away what the job has made or kept for its own use, and commits. If that cannot be done the job has
    /// succeeded all the same, and what it [leaves](Step::leaves) is deleted later.
    fn clears(&self) -> bool {
        false
    }

    /// What may be left of it on the host when it can be neither done nor undone. It is deleted later, unless the catalog
    /// refers to it.
    fn leaves(&self) -> Vec<Leftover> {
        Vec::new()
    }
}

/// Whether a step that was begun was done.
#[derive(Debug)]
pub enum Probe {
    /// It was, and this is what it returned.
    Done(Value),
    /// Nothing of it was.
    NotDone,
    /// It may have been; running it again settles it.
    Unknown,
    /// Running it again does not help: undo the job.
    GiveUp(Error),
}
