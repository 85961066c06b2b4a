//! The agent put together: arrays, exports, instants, machines. What serves it is in `http`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use keyframe_agent_api::{Bytes, Fault, HostInfo, RevertVolume, VmEvent, VmId, VolumeRef};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use crate::Result;
use crate::array::Arrays;
use crate::consoles::{Consoles, Session};
use crate::exports::Exports;
use crate::fault::of_io;
use crate::hypervisor::{Hypervisor, News};
use crate::images::Images;
use crate::instant::Instants;
use crate::life::Life;
use crate::machines::Machines;
use crate::room::Room;
use crate::turns::Turns;
use crate::volumes::Volumes;

/// Events that a slow listener may be behind before it loses some.
const EVENTS: usize = 1024;

/// What an agent is made of.
pub struct Parts {
    /// The host's name.
    pub name: String,
    /// Everything of the agent is below it.
    pub data: PathBuf,
    /// Where the exports are served.
    pub nbd_socket: PathBuf,
    /// The volumes' home.
    pub arrays: Arrays,
    /// What runs the machines.
    pub hypervisor: Arc<dyn Hypervisor>,
    /// Which files it may read for others.
    pub images: Images,
    /// Where the kernel tells of memory and processes: `/proc`.
    pub proc: PathBuf,
    /// Its own.
    pub life: Life,
}

/// An agent.
pub struct Agent {
    name: String,
    /// Its volumes.
    pub volumes: Volumes,
    /// Its machines.
    pub machines: Machines,
    /// Its instants.
    pub instants: Arc<Instants>,
    arrays: Arrays,
    hypervisor: Arc<dyn Hypervisor>,
    exports: Arc<Exports>,
    consoles: Consoles,
    events: broadcast::Sender<VmEvent>,
    stopping: CancellationToken,
    life: Life,
}

impl Agent {
    /// Takes a volume back to a snapshot, in its machine's turn: one of an older generation, or of a job that goes back the
    /// other way meanwhile, does not come after it.
    pub fn revert(&self, volume: &VolumeRef, wish: &RevertVolume) -> Result<()> {
        let _turn = self.machines.turns.take(wish.vm, wish.generation)?;
        self.volumes.revert(volume, wish)
    }

    /// Serves the exports, which the machines wait for, and then finds the machines that run since before.
    pub fn start(parts: Parts) -> Result<Arc<Agent>> {
        let Parts { name, data, nbd_socket, arrays, hypervisor, images, proc, life } = parts;
        let exports = Arc::new(Exports::start(&arrays, &nbd_socket)?);
        let (shared, machine) = (Arc::clone(&exports), Arc::clone(&hypervisor));
        let instants = Arc::new(Instants::open(arrays.clone(), shared, machine, &data, life.clone())?);
        let machines = Machines {
            arrays: arrays.clone(),
            exports: Arc::clone(&exports),
            hypervisor: Arc::clone(&hypervisor),
            instants: Arc::clone(&instants),
            turns: Turns::open(data.join("vms"), life.clone())?,
            images: images.clone(),
            room: Room::new(proc),
            known: Default::default(),
        };
        let volumes = Volumes::new(arrays.clone(), images, Arc::clone(&hypervisor));
        let (events, _) = broadcast::channel(EVENTS);
        let stopping = CancellationToken::new();
        let consoles = Consoles::default();
        let agent =
            Agent { name, volumes, machines, instants, arrays, hypervisor, exports, consoles, events, stopping, life };
        let agent = Arc::new(agent);
        agent.machines.adopt()?;
        agent.watch();
        Ok(agent)
    }

    fn watch(self: &Arc<Agent>) {
        let agent = Arc::downgrade(self);
        self.hypervisor.watch(Box::new(move |vm, news| {
            if let Some(agent) = agent.upgrade().filter(|agent| !agent.life.ended()) {
                agent.hear(vm, news);
            }
        }));
    }

    fn hear(&self, vm: VmId, news: News) {
        let event = match news {
            News::Does(power) => {
                tracing::info!(%vm, ?power, "a machine changed");
                match self.machines.status(vm) {
                    Ok(status) => VmEvent::Changed(Box::new(status)),
                    Err(fault) => VmEvent::Complaint { vm, fault },
                }
            }
            News::Complains(fault) => {
                tracing::error!(%vm, "{fault}");
                VmEvent::Complaint { vm, fault }
            }
        };
        // Nobody may be listening.
        self.events.send(event).unwrap_or(0);
    }

    /// What happens to machines from now on.
    pub fn events(&self) -> broadcast::Receiver<VmEvent> {
        self.events.subscribe()
    }

    /// The socket of a machine's console, for as long as the session lasts.
    pub fn console(&self, vm: VmId, force: bool) -> Result<(PathBuf, Session)> {
        let path = self.hypervisor.console(vm)?;
        Ok((path, self.consoles.open(vm, force)?))
    }

    /// What this host is.
    pub fn host(&self) -> Result<HostInfo> {
        let info = self.hypervisor.info()?;
        let system = rustix::system::sysinfo();
        Ok(HostInfo {
            name: self.name.clone(),
            agent: env!("CARGO_PKG_VERSION").into(),
            hypervisor: info.version,
            machine_type: info.machine_type,
            accelerator: info.accelerator,
            cpus: std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u32),
            memory: Bytes(system.totalram * u64::from(system.mem_unit)),
            uefi: info.uefi_variables.is_some(),
            uefi_variables: info.uefi_variables.map(|path| path.display().to_string()),
            memory_free: free(self.instants.memory())?,
            arrays: self.arrays.iter().map(|(_, array)| array.info()).collect::<Result<_>>()?,
        })
    }

    /// Whether it may still touch the world.
    pub fn life(&self) -> &Life {
        &self.life
    }

    /// Closes the connections of all exports.
    pub(crate) fn stop_exports(&self) -> Result<()> {
        self.exports.stop()
    }

    /// The agent is about to stop: streams of events end, and instants that are being taken are given up, so that the
    /// requests under way end soon.
    pub fn begin_stop(&self) {
        self.stopping.cancel();
        self.instants.cancel_all();
    }

    /// Cancelled when it is about to stop.
    pub fn stopping(&self) -> &CancellationToken {
        &self.stopping
    }

    /// Ends in order: the exports answer what runs and close, the arrays close. Machines run on and wait for the exports.
    pub fn stop(&self) -> Result<()> {
        self.begin_stop();
        let stopped = self.exports.stop();
        let closed: Vec<Result<()>> = self.arrays.iter().map(|(_, array)| array.close()).collect();
        stopped.and(closed.into_iter().collect())
    }
}

/// Free space of the file system that a path lies on.
fn free(path: &Path) -> Result<Bytes> {
    let found = rustix::fs::statvfs(path);
    let found = found.map_err(|error| of_io(format_args!("look at {}", path.display()), &error.into()))?;
    Ok(Bytes(found.f_bavail * found.f_frsize))
}

/// The fault of a call whose thread panicked.
pub(crate) fn panicked() -> Fault {
    Fault::new(keyframe_agent_api::FaultKind::Internal, "the call panicked; see the agent's log")
}
