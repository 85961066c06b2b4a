//! Starting, stopping, pausing, resuming and resetting.

use std::time::{Duration, Instant};

use async_trait::async_trait;
use keyframe_model::Rest;
use keyframe_model::agent::{Generation, PauseReason, Power, StartVm, StopHow, StopVm, VmId};
use serde_json::Value;
use tokio::time::sleep;

use super::Output;
use crate::agent::Agent;
use crate::job::{Context, Step};
use crate::kind::hold::{PAUSED, rest_of};
use crate::{Error, ErrorKind, Result};

/// What a start may take besides loading memory.
const START: Duration = Duration::from_secs(120);
/// How long a guest is asked to power off before it is asked whether that is still wished.
const ASK: Duration = Duration::from_secs(5);
/// How long a guest that a disk had stopped is looked at after it went on, and how often.
const AFTER_RESUME: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(25);

/// Asks the host whether it could start a machine, before anything is given up for that.
pub(crate) struct Check {
    pub(crate) agent: Agent,
    pub(crate) vm: VmId,
    pub(crate) wish: StartVm,
}

#[async_trait]
impl Step for Check {
    fn name(&self) -> String {
        format!("see whether {} can be started", self.wish.machine.name)
    }

    async fn run(&self, _: &Context) -> Result<Value> {
        self.agent.check(self.vm, &self.wish).await.map(|()| Value::Null)
    }

    async fn undo(&self, _: &Context) -> Result<()> {
        Ok(())
    }
}

/// Starts a machine; undone, it is off.
pub(crate) struct Start {
    pub(crate) agent: Agent,
    pub(crate) vm: VmId,
    pub(crate) wish: StartVm,
    /// The machine is new: undone, the host forgets it too.
    pub(crate) new: bool,
}

#[async_trait]
impl Step for Start {
    fn name(&self) -> String {
        format!("start {}", self.wish.machine.name)
    }

    async fn run(&self, _: &Context) -> Result<Value> {
        Output::Power(start(&self.agent, self.vm, &self.wish).await?).value()
    }

    async fn undo(&self, _: &Context) -> Result<()> {
        off(&self.agent, self.vm, self.wish.generation).await?;
        if self.new { forget(&self.agent, self.vm, self.wish.generation).await } else { Ok(()) }
    }

    fn deadline(&self) -> Duration {
        START
    }
}

/// Starts a machine once; says what it does then.
pub(super) async fn start(agent: &Agent, vm: VmId, wish: &StartVm) -> Result<Power> {
    match agent.start(vm, wish).await {
        Ok(status) => Ok(status.power),
        Err(e) if e.kind == ErrorKind::State => match agent.vm(vm).await?.power {
            // It was started by this very wish, and has ended by itself while nobody heard of it.
            Power::Off => Ok(Power::Off),
            _ => Err(e),
        },
        Err(e) => Err(e),
    }
}

/// Lets the host forget a machine that is off.
pub(crate) async fn forget(agent: &Agent, vm: VmId, generation: Generation) -> Result<()> {
    match agent.remove(vm, generation).await {
        Err(e) if e.kind == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Whether nothing of a machine runs.
pub(super) async fn is_off(agent: &Agent, vm: VmId) -> Result<bool> {
    match agent.vm(vm).await {
        Ok(status) => Ok(status.power == Power::Off),
        Err(e) if e.kind == ErrorKind::NotFound => Ok(true),
        Err(e) => Err(e),
    }
}

/// Pulls the plug.
async fn off(agent: &Agent, vm: VmId, generation: Generation) -> Result<()> {
    match agent.stop(vm, &StopVm { generation, how: StopHow::Hard }).await {
        Ok(_) => Ok(()),
        // The host does not know it, so it has no process.
        Err(e) if e.kind == ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    }
}

/// Stops a machine; undone, it is started again.
pub(crate) struct Stop {
    pub(crate) agent: Agent,
    pub(crate) vm: VmId,
    pub(crate) name: String,
    pub(crate) generation: Generation,
    pub(crate) how: StopHow,
    /// How it is started again, if that is wished.
    pub(crate) back: Option<StartVm>,
    /// There is no way back.
    pub(crate) commits: bool,
}

impl Stop {
    /// Has the guest asked until it obeys, a while at a time: between, nothing keeps the machine from whoever calls the job off.
    /// A guest that does not obey in time loses its plug if that is wished, and people should know.
    async fn ask(&self, cx: &Context, deadline: Duration, then_hard: bool) -> Result<Output> {
        let began = Instant::now();
        loop {
            let left = deadline.saturating_sub(began.elapsed());
            let last = left <= ASK;
            let how = StopHow::Graceful { deadline: left.min(ASK).into(), then_hard: false };
            match self.agent.stop(self.vm, &StopVm { generation: self.generation, how }).await {
                Err(e) if e.kind == ErrorKind::Deadline && (then_hard || !last) => {}
                other => return Ok(Output::Power(other?.power)),
            }
            if cx.cancelled() {
                return Err(Error::cancelled());
            }
            if last {
                off(&self.agent, self.vm, self.generation).await?;
                return Ok(Output::Notes(vec![self.disobeyed(deadline)]));
            }
        }
    }

    fn disobeyed(&self, deadline: Duration) -> String {
        format!("the guest of {} did not power off within {deadline:?}, so its plug was pulled", self.name)
    }
}

#[async_trait]
impl Step for Stop {
    fn name(&self) -> String {
        format!("stop {}", self.name)
    }

    async fn run(&self, cx: &Context) -> Result<Value> {
        let left = match self.how {
            StopHow::Hard => {
                off(&self.agent, self.vm, self.generation).await?;
                Output::Power(Power::Off)
            }
            StopHow::Graceful { deadline, then_hard } => self.ask(cx, deadline.into(), then_hard).await?,
        };
        left.value()
    }

    async fn undo(&self, _: &Context) -> Result<()> {
        let Some(back) = &self.back else { return Ok(()) };
        if is_off(&self.agent, self.vm).await? {
            start(&self.agent, self.vm, back).await?;
        }
        Ok(())
    }

    fn deadline(&self) -> Duration {
        match self.how {
            StopHow::Graceful { deadline, .. } => START + deadline.into(),
            StopHow::Hard => START,
        }
    }

    fn commits(&self) -> bool {
        self.commits
    }
}

/// Lets the processors stand still; undone, they go on, unless they cannot.
pub(crate) struct Pause {
    pub(crate) agent: Agent,
    pub(crate) vm: VmId,
    pub(crate) name: String,
    pub(crate) generation: Generation,
}

#[async_trait]
impl Step for Pause {
    fn name(&self) -> String {
        format!("pause {}", self.name)
    }

    async fn run(&self, _: &Context) -> Result<Value> {
        Output::Power(self.agent.pause(self.vm, self.generation).await?.power).value()
    }

    async fn undo(&self, _: &Context) -> Result<()> {
        use PauseReason::{Asked, IoError, NoSpace};
        let status = self.agent.vm(self.vm).await?;
        if matches!(status.power, Power::Paused { reason: Asked | NoSpace | IoError }) {
            self.agent.resume(self.vm, self.generation).await?;
        }
        Ok(())
    }
}

/// Lets the processors go on; undone, they stand still, as they do when they cannot go on.
pub(crate) struct Resume {
    pub(crate) agent: Agent,
    pub(crate) vm: VmId,
    pub(crate) name: String,
    pub(crate) generation: Generation,
    /// Why they stood still.
    pub(crate) before: Rest,
}

impl Resume {
    /// Looks whether what stopped the guest stops it again. What it could not write is tried again before all else.
    async fn see(&self, mut power: Power) -> Result<Power> {
        let stopped_by_disk = Rest::Paused { reason: PauseReason::NoSpace } == self.before
            || Rest::Paused { reason: PauseReason::IoError } == self.before;
        let until = Instant::now() + AFTER_RESUME;
        while stopped_by_disk && power == Power::Running && Instant::now() < until {
            sleep(LOOK).await;
            power = self.agent.vm(self.vm).await?.power;
        }
        Ok(power)
    }
}

#[async_trait]
impl Step for Resume {
    fn name(&self) -> String {
        format!("resume {}", self.name)
    }

    async fn run(&self, _: &Context) -> Result<Value> {
        let power = self.agent.resume(self.vm, self.generation).await?.power;
        let power = self.see(power).await?;
        let (kind, way_out) = match power {
            Power::Paused { reason: PauseReason::NoSpace } => (
                ErrorKind::NoSpace,
                "delete snapshots or machines, or grow the pool with `keyframe pool grow`; it goes on by itself then",
            ),
            Power::Paused { reason: PauseReason::IoError } => {
                (ErrorKind::State, "a disk fails, and the agent's log says how; resume it again when that is mended")
            }
            Power::Off | Power::Running | Power::Paused { reason: PauseReason::Asked | PauseReason::Crashed } => {
                return Output::Power(power).value();
            }
        };
        let message = format!("{} went on and stands still again, {}; {way_out}", self.name, rest_of(&power));
        Err(Error::new(kind, message))
    }

    async fn undo(&self, _: &Context) -> Result<()> {
        let status = self.agent.vm(self.vm).await?;
        // One that stands still for a disk stays like that, unless it had been stopped by somebody.
        let pause = match status.power {
            Power::Running => true,
            Power::Paused { reason: PauseReason::NoSpace | PauseReason::IoError } => self.before == PAUSED,
            Power::Off | Power::Paused { reason: PauseReason::Asked | PauseReason::Crashed } => false,
        };
        if pause {
            self.agent.pause(self.vm, self.generation).await?;
        }
        Ok(())
    }
}

/// Presses the reset button, which nothing undoes. It is no point of no return all the same: a machine whose process has ended
/// cannot be reset however often that is tried, and nothing is wrong with it.
pub(crate) struct Reset {
    pub(crate) agent: Agent,
    pub(crate) vm: VmId,
    pub(crate) name: String,
    pub(crate) generation: Generation,
}

#[async_trait]
impl Step for Reset {
    fn name(&self) -> String {
        format!("reset {}", self.name)
    }

    async fn run(&self, _: &Context) -> Result<Value> {
        Output::Power(self.agent.reset(self.vm, self.generation).await?.power).value()
    }

    async fn undo(&self, _: &Context) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use keyframe_model::agent::{Generation, PauseReason, Power, StartFrom, StartVm};

    use super::start;
    use crate::ErrorKind;
    use crate::tests::site::{Site, make, wish};

    /// The host's answer was lost, and the guest has run and ended before it was asked again.
    #[tokio::test(flavor = "multi_thread")]
    async fn what_has_run_and_ended_is_not_started_again() {
        let site = Site::new(false).await;
        let manager = site.manager().await;
        let vm = make(&manager, wish(&site, "web", &[1], false)).await.vm;
        let machine = vm.hardware.machine(vm.id, &vm.name);
        let wish = StartVm { generation: Generation(50), machine, from: StartFrom::Cold, paused: false };
        let agent = site.client();
        assert_eq!(start(&agent, vm.id, &wish).await.unwrap(), Power::Running);
        site.fake.step(vm.id, 3).unwrap();
        site.fake.kill(vm.id).unwrap();
        assert_eq!(start(&agent, vm.id, &wish).await.unwrap(), Power::Off);
        assert!(site.fake.machine(vm.id).is_none(), "it was started a second time");
        // One that somebody else has started is another matter.
        let other = StartVm { generation: Generation(51), paused: true, ..wish };
        let paused = Power::Paused { reason: PauseReason::Asked };
        assert_eq!(start(&agent, vm.id, &other).await.unwrap(), paused);
        let third = StartVm { generation: Generation(52), ..other };
        assert_eq!(start(&agent, vm.id, &third).await.unwrap_err().kind, ErrorKind::State);
        manager.stop().await;
    }
}
