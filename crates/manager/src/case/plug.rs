//! Pulling the plug of a machine that a job has. It always works: the job is called off, or finds its machine off.

use std::time::Duration;

use keyframe_model::agent::{JobId, StopHow, StopVm, VmId};
use keyframe_model::{Activity, VmState};
use tokio::time::{Instant, timeout_at};

use crate::kind::hold::check_generation;
use crate::kind::power::{PowerOrder, Stopping, VmStop};
use crate::request::{Call, JobRef};
use crate::{Error, ErrorKind, Manager, Result};

/// How long jobs that have lost their machine may take to end.
const END: Duration = Duration::from_secs(30);

impl Manager {
    /// Stops a machine at once, whatever is being done to it.
    pub(super) async fn stop_hard(&self, call: &Call, vm: VmId, mut act: Stopping) -> Result<JobRef> {
        let until = Instant::now() + END;
        let mut call = call.clone();
        loop {
            let order = PowerOrder { vm, expected: call.expected, act };
            let refused = match self.order::<VmStop>(&call, order).await {
                Err(e) if e.kind == ErrorKind::Busy => e,
                other => return other,
            };
            let Some(job) = self.take_away(&call, vm).await? else { return Err(refused) };
            // It may be off now, which is what is wished; and it has changed since the caller looked, by this very call.
            (act.even_if_off, call.expected) = (true, None);
            match timeout_at(until, self.engine.wait(job)).await {
                Ok(ended) => drop(ended?),
                Err(_) => {
                    let message = format!("{}; its plug has been pulled", refused.message);
                    return Err(Error { message, ..refused });
                }
            }
        }
    }

    /// Takes the machine away from the job that has it, if one has that may lose it: it is off, and the job is called off
    /// unless a machine that is off is what it works for, or it has gone too far.
    async fn take_away(&self, call: &Call, vm: VmId) -> Result<Option<JobId>> {
        let vm = self.catalog.read().await?.vm(vm).await?;
        check_generation(vm.name.as_str(), vm.generation, call.expected)?;
        let VmState::Busy { activity, job, .. } = vm.state else { return Ok(None) };
        match activity {
            Activity::Creating | Activity::Deleting => return Ok(None),
            Activity::Stopping => {}
            Activity::Starting
            | Activity::Pausing
            | Activity::Resuming
            | Activity::Resetting
            | Activity::Snapshotting
            | Activity::Applying
            | Activity::Cloning
            | Activity::Reconfiguring => match self.engine.cancel(job).await {
                Err(e) if e.kind != ErrorKind::State => return Err(e),
                Ok(()) | Err(_) => {}
            },
        }
        tracing::info!(vm = %vm.name, %job, "its plug is pulled, whatever the job does");
        match self.agent.stop(vm.id, &StopVm { generation: vm.generation, how: StopHow::Hard }).await {
            // A newer generation is that of whoever has it next, who is met in the next round.
            Err(e) if !matches!(e.kind, ErrorKind::NotFound | ErrorKind::Stale) => Err(e),
            Ok(_) | Err(_) => Ok(Some(job)),
        }
    }
}
