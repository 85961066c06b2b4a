//! A real agent in this process, with fake arrays, for tests of those who talk to agents. It can be crashed: from one
//! moment on nothing that it does has an effect on arrays, machines or its files, whatever its threads still try.

mod dice;
mod line;
mod mortal;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::middleware::from_fn_with_state;
use keyframe_agent_api::{Fault, FaultKind};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use crate::Result;
use crate::agent::{Agent, Parts};
use crate::array::fake::{FakeArray, FakeOptions};
use crate::array::{Array, Arrays};
use crate::http::{Serving, bind, router, serve};
use crate::hypervisor::Hypervisor;
use crate::images::Images;
use crate::life::Life;
use crate::paths::Paths;

pub use dice::Dice;
pub(crate) use dice::Fate;
pub use line::{Line, Lost};
pub use mortal::Mortal;

/// What a test agent is made of.
#[derive(Clone, Debug)]
pub struct TestOptions {
    /// Names of fake arrays, and what they are like.
    pub arrays: Vec<(String, FakeOptions)>,
    /// Where it reads what memory the host and its processes have: of a host with little, a folder with the like of
    /// `/proc/meminfo` and `/proc/PID/status`.
    pub proc: PathBuf,
}

impl Default for TestOptions {
    /// Two arrays: `fake` and `fake2`.
    fn default() -> TestOptions {
        let array = |name: &str| (name.to_owned(), FakeOptions::default());
        TestOptions { arrays: vec![array("fake"), array("fake2")], proc: "/proc".into() }
    }
}

/// Longer than a fake driver takes for anything.
const LAST_EFFECTS: Duration = Duration::from_millis(500);

/// A running test agent. Dropping it crashes it.
pub struct TestAgent {
    paths: Paths,
    life: Life,
    line: Line,
    arrays: Vec<(String, Arc<FakeArray>)>,
    agent: Option<Arc<Agent>>,
    runtime: Option<Runtime>,
    stop: CancellationToken,
    served: Option<tokio::task::JoinHandle<Result<()>>>,
}

impl TestAgent {
    /// Starts an agent on a directory, new or left by another that was stopped or crashed. The machines are the test's, so
    /// that they outlive the agent.
    pub fn start(dir: &Path, hypervisor: Arc<dyn Hypervisor>, options: &TestOptions) -> Result<TestAgent> {
        let paths = Paths::of(dir);
        paths.make()?;
        let life = Life::new();
        let open = |(name, options): &(String, FakeOptions)| {
            let array = FakeArray::open(name, &dir.join("arrays").join(name), options, life.clone())?;
            Ok((name.clone(), Arc::new(array)))
        };
        let arrays = options.arrays.iter().map(open).collect::<Result<Vec<_>>>()?;
        let parts = Parts {
            name: "test".into(),
            data: dir.to_owned(),
            nbd_socket: paths.nbd_socket(),
            arrays: Arrays::new(arrays.iter().map(|(name, array)| (name.clone(), Arc::clone(array) as Arc<dyn Array>))),
            hypervisor: Arc::new(Mortal::new(hypervisor, life.clone())),
            images: Images::default(),
            proc: options.proc.clone(),
            life: life.clone(),
        };
        let agent = Agent::start(parts)?;
        let runtime = Runtime::new().map_err(|error| Fault::new(FaultKind::Internal, error.to_string()))?;
        let stop = CancellationToken::new();
        let line = Line::default();
        let serving = {
            let _inside = runtime.enter();
            let router = router(Arc::clone(&agent)).layer(from_fn_with_state(line.clone(), line::pass));
            Serving { router, unix: bind(&paths.agent_socket())?, remote: None }
        };
        let served = Some(runtime.spawn(serve(serving, stop.clone())));
        Ok(TestAgent { paths, life, line, arrays, agent: Some(agent), runtime: Some(runtime), stop, served })
    }

    /// Where it is asked.
    pub fn socket(&self) -> PathBuf {
        self.paths.agent_socket()
    }

    /// Where it serves exports.
    pub fn nbd_socket(&self) -> PathBuf {
        self.paths.nbd_socket()
    }

    /// The agent itself, for asking without HTTP.
    pub fn agent(&self) -> &Arc<Agent> {
        self.agent.as_ref().expect("an agent that was not crashed")
    }

    /// One of its arrays.
    pub fn array(&self, name: &str) -> &Arc<FakeArray> {
        let found = self.arrays.iter().find(|(known, _)| known == name);
        &found.unwrap_or_else(|| panic!("no fake array {name}")).1
    }

    /// Its life: once it is ended, by a fault or by hand, the agent changes nothing more.
    pub fn life(&self) -> &Life {
        &self.life
    }

    /// The line on which it is called.
    pub fn line(&self) -> &Line {
        &self.line
    }

    /// As `kill -9`: nothing is cleaned up. Returns when its sockets are dead.
    pub fn crash(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.life.end();
        if let Some(runtime) = self.runtime.take() {
            if let Some(served) = self.served.take() {
                // Waited for, so that the socket is dead when another agent binds it.
                served.abort();
                drop(runtime.block_on(served));
            }
            // What a driver is in the middle of has its effect before the next agent looks. Threads that wait in one end by
            // themselves; what they do then has no effect.
            runtime.shutdown_timeout(LAST_EFFECTS);
        }
        if let Some(agent) = self.agent.take() {
            // A dead process's connections are closed, too.
            agent.stop_exports().unwrap_or(());
        }
    }

    /// In order, as on SIGTERM.
    pub fn stop(mut self) -> Result<()> {
        self.stop.cancel();
        if let Some(agent) = &self.agent {
            agent.begin_stop();
        }
        let (Some(runtime), Some(agent), Some(served)) = (self.runtime.take(), self.agent.take(), self.served.take())
        else {
            return Ok(());
        };
        let served = runtime.block_on(served).unwrap_or_else(|_| Err(crate::agent::panicked()));
        let stopped = agent.stop();
        runtime.shutdown_background();
        served.and(stopped)
    }
}

impl Drop for TestAgent {
    fn drop(&mut self) {
        self.end();
    }
}
