//! A whole agent as a process has it: lock, log, arrays, machines, sockets, and an end in order on a signal.
//!
//! Machines outlive it: they are processes of their own, and their disks wait for the exports to come back.

use std::ffi::OsString;
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use keyframe_agent_api::{Bytes, Fault, FaultKind};
use keyframe_engine::Pool;
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::Result;
use crate::agent::{Agent, Parts};
use crate::array::fake::{FakeArray, FakeOptions};
use crate::array::{Array, Arrays, Engine, EngineOptions};
use crate::config::{Config, Driver, Log};
use crate::durable::Folder;
use crate::fault::{fault, of_io};
use crate::http::{Serving, bind, router, serve};
use crate::hypervisor::Hypervisor;
use crate::hypervisor::qemu::{Qemu, QemuConfig};
use crate::images::Images;
use crate::life::Life;
use crate::paths::Paths;
use crate::pid_file;

/// What calls that are under way get when everything else has ended.
const LAST_CALLS: Duration = Duration::from_secs(3);

/// What an agent process is started with.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// The data directory.
    pub data: PathBuf,
    /// From its file and the environment.
    pub config: Config,
    /// A program and its first arguments which lead to the hypervisor driver's helpers.
    pub helper: Vec<OsString>,
}

/// Sets up the log of this process, on standard error.
pub fn start_log(log: &Log) -> Result<()> {
    use std::io::IsTerminal;
    let filter = tracing_subscriber::EnvFilter::try_new(&log.filter)
        .map_err(|error| fault(FaultKind::Invalid, format!("log.filter {:?}: {error}", log.filter)))?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(std::io::stderr().is_terminal());
    // It would say what it cannot write there to the same place, and panic.
    let lines = lines.with_writer(std::io::stderr).log_internal_errors(false);
    let set = if log.json { lines.json().try_init() } else { lines.try_init() };
    set.map_err(|error| fault(FaultKind::Internal, format!("cannot start the log: {error}")))
}

/// A pool that an agent holds, for whoever serves more of it than the agent does.
pub struct HeldPool {
    /// Its file.
    pub file: PathBuf,
    /// The pool.
    pub pool: Pool,
}

/// Runs until SIGTERM or SIGINT. The caller has set up the log. What `beside` returns lives from when everything is served
/// until the pools are closed.
pub fn run<G>(options: &RunOptions, beside: impl FnOnce(&[HeldPool]) -> Result<G>) -> Result<()> {
    let paths =
        Paths::of(&std::path::absolute(&options.data).map_err(|error| of_io("find the data directory", &error))?);
    paths.make()?;
    // Until the process ends, and no sooner: calls that still wait have the pools open that the next agent is to open.
    let _lock = ManuallyDrop::new(pid_file::hold(&paths.pid_file(), "agent")?);
    let runtime = tokio::runtime::Runtime::new().map_err(|error| of_io("start the runtime", &error))?;
    let done = runtime.block_on(async {
        let stop = CancellationToken::new();
        let signals = signals(stop.clone())?;
        let ready = |pools: &[HeldPool]| {
            let beside = beside(pools)?;
            notify_ready();
            Ok(beside)
        };
        let result = run_until(options, &paths, stop, ready).await;
        signals.abort();
        result
    });
    // Calls that still wait, for a guest that is to power off, say: machines have no disks until the next agent serves them.
    runtime.shutdown_timeout(LAST_CALLS);
    done
}

fn signals(stop: CancellationToken) -> Result<tokio::task::JoinHandle<()>> {
    let failed = |error: std::io::Error| of_io("wait for signals", &error);
    let mut term = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    Ok(tokio::spawn(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping; machines run on");
        stop.cancel();
    }))
}

/// Tells whoever started this process that it serves.
fn notify_ready() {
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        tracing::warn!("cannot tell the service manager that the agent is ready: {error}");
    }
}

/// Runs until `stop`; `ready` is called when everything is served, and what it returns lives until the pools are closed.
async fn run_until<G>(
    options: &RunOptions,
    paths: &Paths,
    stop: CancellationToken,
    ready: impl FnOnce(&[HeldPool]) -> Result<G>,
) -> Result<()> {
    let (config, helper, places) = (options.config.clone(), options.helper.clone(), paths.clone());
    let started = tokio::task::spawn_blocking(move || start(&places, &config, helper)).await;
    let (agent, pools) = started.unwrap_or_else(|_| Err(crate::agent::panicked()))?;
    let served = serve_until(&agent, paths, &options.config, stop, || ready(&pools)).await;
    drop(pools);
    let stopped = tokio::task::spawn_blocking(move || agent.stop()).await;
    std::fs::remove_file(paths.agent_socket()).unwrap_or(());
    served.and(stopped.unwrap_or_else(|_| Err(crate::agent::panicked())))
}

async fn serve_until<G>(
    agent: &Arc<Agent>,
    paths: &Paths,
    config: &Config,
    stop: CancellationToken,
    ready: impl FnOnce() -> Result<G>,
) -> Result<()> {
    let unix = bind(&paths.agent_socket())?;
    let remote = config.agent.listen.zip(config.agent.tls.as_ref().map(|tls| tls.within(&paths.data)));
    tracing::info!(socket = %paths.agent_socket().display(), "serving");
    let _beside = ready()?;
    let (agent_stops, stopping) = (Arc::clone(agent), stop.clone());
    tokio::spawn(async move {
        stopping.cancelled().await;
        agent_stops.begin_stop();
    });
    serve(Serving { router: router(Arc::clone(agent)), unix, remote }, stop).await
}

fn start(paths: &Paths, config: &Config, helper: Vec<OsString>) -> Result<(Arc<Agent>, Vec<HeldPool>)> {
    let life = Life::new();
    let (arrays, pools) = open_arrays(paths, config, &life)?;
    let mut qemu = QemuConfig::new(paths.vms(), helper);
    if let Some(program) = &config.agent.qemu {
        qemu.program.clone_from(program);
    }
    qemu.short = paths.run.join("vms");
    let hypervisor: Arc<dyn Hypervisor> = Arc::new(Qemu::new(qemu));
    let name = config.name.clone().unwrap_or_else(host_name);
    let images = Images::within(config.agent.images.clone());
    let (data, nbd_socket) = (paths.data.clone(), paths.nbd_socket());
    let proc = "/proc".into();
    Ok((Agent::start(Parts { name, data, nbd_socket, arrays, hypervisor, images, proc, life })?, pools))
}

fn open_arrays(paths: &Paths, config: &Config, life: &Life) -> Result<(Arrays, Vec<HeldPool>)> {
    let (mut arrays, mut pools) = (Vec::new(), Vec::new());
    for array in &config.arrays {
        let name = &array.name;
        let opened: Arc<dyn Array> = match &array.driver {
            Driver::Engine { pool } => {
                let pool = paths.data.join(pool);
                let size = config.agent.pool_size.map_or_else(|| usual_size(&paths.data), Ok)?;
                let options = EngineOptions { pool, create: Some(size), cache: config.agent.cache };
                let engine = open_pool(&paths.data, name, &options, life)?;
                pools.push(HeldPool { file: options.pool, pool: engine.pool().clone() });
                Arc::new(engine)
            }
            Driver::Fake { dir } => {
                Arc::new(FakeArray::open(name, &paths.data.join(dir), &FakeOptions::default(), life.clone())?)
            }
        };
        let info = opened.info()?;
        tracing::info!(array = %name, driver = %info.driver, used = info.used.0, capacity = info.capacity.0, "opened");
        arrays.push((name.clone(), opened));
    }
    Ok((Arrays::new(arrays), pools))
}

/// A pool is made only once, which a mark in the data directory says: one that is missing later is no reason to go on with an
/// empty one, for its disk may just not be mounted.
fn open_pool(data: &Path, name: &str, options: &EngineOptions, life: &Life) -> Result<Engine> {
    let marks = Folder::open(data.join("arrays"), life.clone())?;
    let mark = format!("{name}.json");
    if marks.read::<Made>(&mark)?.is_some() && options.is_missing()? {
        let why = format!(
            "the pool {} is not there, though it has been before; bring it back (is its disk mounted?), or remove {} to \
             begin with an empty one",
            options.pool.display(),
            marks.file(&mark).display()
        );
        return Err(Fault::new(FaultKind::NotFound, why));
    }
    let engine = Engine::open(name, options, life.clone())?;
    if marks.read::<Made>(&mark)?.is_none() {
        marks.write(&mark, &Made { pool: options.pool.clone() })?;
    }
    Ok(engine)
}

/// That there is a pool.
#[derive(Serialize, Deserialize)]
struct Made {
    /// Where it was then; for people.
    pool: PathBuf,
}

/// Four fifths of what the file system has free; the file is sparse and takes what is written.
fn usual_size(data: &Path) -> Result<Bytes> {
    let found = rustix::fs::statvfs(data);
    let found = found.map_err(|error| of_io(format_args!("look at {}", data.display()), &error.into()))?;
    let share = found.f_bavail * found.f_frsize / 5 * 4;
    Ok(Bytes(share - share % Bytes::MIB))
}

fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}
