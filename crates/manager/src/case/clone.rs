//! Clones and forks.

use crate::request::{Call, CloneCreate, JobRef};
use crate::{Manager, Result};

impl Manager {
    /// Makes machines of a snapshot, a template, or another machine.
    pub async fn clone_vm(&self, call: &Call, wish: CloneCreate) -> Result<JobRef> {
        Err(self.unfinished(format_args!("{:?}", (&call, &wish,))))
    }
}
