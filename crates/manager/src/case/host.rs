//! Hosts.

use keyframe_catalog::Host;
use keyframe_model::agent::{Accelerator, HostInfo, Timestamp};

use crate::job::FULL;
use crate::request::{Caller, HostStatus, HostView};
use crate::{Error, ErrorKind, Manager, Result};

/// An array that is fuller than this is worth a notice, in percent.
const NEARLY_FULL: u64 = 90;

impl Manager {
    /// All of them.
    pub async fn list_hosts(&self, caller: &Caller) -> Result<Vec<HostView>> {
        self.admit(caller)?;
        let hosts = self.catalog.read().await?.hosts().await?;
        let mut views = Vec::with_capacity(hosts.len());
        for host in hosts {
            views.push(self.view(host).await?);
        }
        Ok(views)
    }

    /// One, by its name.
    pub async fn host(&self, caller: &Caller, name: &str) -> Result<HostView> {
        self.admit(caller)?;
        let host = self.catalog.read().await?.find_host(name).await?;
        self.view(host.ok_or_else(|| Error::not_found(format!("host {name}"), "host list"))?).await
    }

    async fn view(&self, host: Host) -> Result<HostView> {
        let mut view = self.seen(host).await?;
        view.notices.extend(self.catalog.is_short_of_room().then(|| FULL.to_owned()));
        Ok(view)
    }

    async fn seen(&self, host: Host) -> Result<HostView> {
        match self.agent.host().await {
            Ok(info) => Ok(HostView {
                name: host.name,
                status: HostStatus::Up,
                seen: Some(Timestamp::now()),
                notices: notices(&info),
                info: Some(info),
            }),
            Err(e) if e.kind == ErrorKind::Unreachable => Ok(HostView {
                name: host.name,
                status: HostStatus::Unreachable,
                seen: host.seen,
                info: host.info,
                notices: vec![e.message],
            }),
            Err(e) => Err(e),
        }
    }
}

fn notices(info: &HostInfo) -> Vec<String> {
    let mut all = Vec::new();
    if let Accelerator::Emulation { reason } = &info.accelerator {
        all.push(format!("guests are emulated, which is many times slower: {reason}"));
    }
    for array in &info.arrays {
        let percent = array.used.0.saturating_mul(100).checked_div(array.capacity.0).unwrap_or(0);
        if percent >= NEARLY_FULL {
            all.push(format!("array {} is {percent} % full; delete snapshots, or make it larger", array.name));
        }
    }
    all
}
