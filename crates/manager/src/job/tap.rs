//! Where the test kit gets between the engine and the world. Nothing is here in a running manager.

use std::sync::Arc;

use async_trait::async_trait;
use keyframe_model::agent::JobId;

use super::Step;

/// Sees every record, and may stand in for any step.
#[async_trait]
pub(crate) trait Tap: Send + Sync {
    /// The steps as the engine is to see them.
    fn wrap(&self, steps: Vec<Box<dyn Step>>) -> Vec<Box<dyn Step>>;

    /// Called after each record is durable; the job goes on when it returns.
    async fn recorded(&self, job: JobId, what: &str);
}

/// What a running manager has.
pub(crate) struct NoTap;

#[async_trait]
impl Tap for NoTap {
    fn wrap(&self, steps: Vec<Box<dyn Step>>) -> Vec<Box<dyn Step>> {
        steps
    }

    async fn recorded(&self, _job: JobId, _what: &str) {}
}

pub(crate) type SharedTap = Arc<dyn Tap>;
