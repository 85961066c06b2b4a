//! Holds a job before or after one of its steps until a test in another process says go on. Not in a build for use.
//!
//! `KEYFRAME_BREAKPOINTS` names a folder. A test writes a file `armed` there that says where: `disk-attach 1 after`, or
//! `disk-attach 0 before undo`. The first job that gets there renames it to `reached`, and waits until that is gone. So nothing
//! is held twice, neither the same step tried again nor the manager started after this one. `disk-attach 1 panics` has the step
//! panic instead, as a bug in it would.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use keyframe_catalog::Leftover;
use keyframe_model::JobKind;
use keyframe_model::agent::JobId;
use serde_json::Value;

use super::tap::Tap;
use super::{Context, Probe, Step};
use crate::Result;

/// The environment variable that names the folder.
pub(super) const FOLDER: &str = "KEYFRAME_BREAKPOINTS";
/// Between looks for the end of a wait.
const LOOK: Duration = Duration::from_millis(5);

/// All breakpoints of an engine.
pub(super) struct Breakpoints(Arc<PathBuf>);

impl Breakpoints {
    pub(super) fn of(folder: PathBuf) -> Breakpoints {
        Breakpoints(Arc::new(folder))
    }
}

#[async_trait]
impl Tap for Breakpoints {
    fn wrap(&self, kind: JobKind, steps: Vec<Box<dyn Step>>) -> Vec<Box<dyn Step>> {
        let kind = match serde_json::to_value(kind) {
            Ok(Value::String(name)) => name,
            _ => return steps,
        };
        let wrap = |(index, inner)| {
            let (folder, place) = (self.0.clone(), format!("{kind} {index}"));
            Box::new(Held { inner, folder, place }) as Box<dyn Step>
        };
        steps.into_iter().enumerate().map(wrap).collect()
    }

    async fn recorded(&self, _job: JobId, _what: &str) {}
}

/// A step that can be held.
struct Held {
    inner: Box<dyn Step>,
    folder: Arc<PathBuf>,
    /// Kind and number.
    place: String,
}

impl Held {
    /// Whether a test waits for this moment; it is told that it has come.
    fn is_awaited(&self, when: &str) -> bool {
        let (armed, here) = (self.folder.join("armed"), format!("{} {when}", self.place));
        fs::read_to_string(&armed).is_ok_and(|place| place.trim() == here)
            && fs::rename(&armed, self.folder.join("reached")).is_ok()
    }

    async fn reach(&self, when: &str) {
        if self.is_awaited(when) {
            while self.folder.join("reached").exists() {
                tokio::time::sleep(LOOK).await;
            }
        }
    }
}

#[async_trait]
impl Step for Held {
    fn name(&self) -> String {
        self.inner.name()
    }

    async fn run(&self, cx: &Context) -> Result<Value> {
        assert!(!self.is_awaited("panics"), "a test has this step panic");
        self.reach("before").await;
        let output = self.inner.run(cx).await?;
        self.reach("after").await;
        Ok(output)
    }

    async fn undo(&self, cx: &Context) -> Result<()> {
        self.reach("before undo").await;
        self.inner.undo(cx).await?;
        self.reach("after undo").await;
        Ok(())
    }

    async fn probe(&self, cx: &Context) -> Result<Probe> {
        self.inner.probe(cx).await
    }

    fn deadline(&self) -> Duration {
        self.inner.deadline()
    }

    fn commits(&self) -> bool {
        self.inner.commits()
    }

    fn clears(&self) -> bool {
        self.inner.clears()
    }

    fn leaves(&self) -> Vec<Leftover> {
        self.inner.leaves()
    }
}
