//! Where tests get between the engine and the world. Nothing is here in a manager that was built for use.

use std::sync::Arc;

use async_trait::async_trait;
use keyframe_model::JobKind;
use keyframe_model::agent::JobId;

use super::Step;

/// Sees every record, and may stand in for any step.
#[async_trait]
pub(crate) trait Tap: Send + Sync {
    /// The steps as the engine is to see them.
    fn wrap(&self, kind: JobKind, steps: Vec<Box<dyn Step>>) -> Vec<Box<dyn Step>>;

    /// Called after each record is durable; the job goes on when it returns.
    async fn recorded(&self, job: JobId, what: &str);
}

/// What a running manager has.
pub(crate) struct NoTap;

#[async_trait]
impl Tap for NoTap {
    fn wrap(&self, _kind: JobKind, steps: Vec<Box<dyn Step>>) -> Vec<Box<dyn Step>> {
        steps
    }

    async fn recorded(&self, _job: JobId, _what: &str) {}
}

pub(crate) type SharedTap = Arc<dyn Tap>;

/// What an engine has that nobody is to test from within this process.
pub(crate) fn usual() -> SharedTap {
    #[cfg(debug_assertions)]
    if let Some(folder) = std::env::var_os(super::breakpoint::FOLDER) {
        return Arc::new(super::breakpoint::Breakpoints::of(folder.into()));
    }
    Arc::new(NoTap)
}
