//! Hosts.

use crate::request::{Caller, HostView};
use crate::{Manager, Result};

impl Manager {
    /// All of them.
    pub async fn list_hosts(&self, caller: &Caller) -> Result<Vec<HostView>> {
        Err(self.unfinished(format_args!("{:?}", (&caller,))))
    }

    /// One, by its name.
    pub async fn host(&self, caller: &Caller, name: &str) -> Result<HostView> {
        Err(self.unfinished(format_args!("{:?}", (&caller, &name,))))
    }
}
