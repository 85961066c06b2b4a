//! The manager: what `start` puts together and `stop` takes apart, and the way every order goes.
//!
//! ```text
//!  caller ─► admitted? ─► one transaction: asked before under that key? checks, busy, job, key ─► at work
//! ```

use std::sync::Arc;
use std::time::Duration;

use keyframe_catalog::{Catalog, Request, Transaction};
use keyframe_model::agent::{Bytes, JobId, Timestamp, VmId};
use parking_lot::Mutex;
use tokio::task::JoinSet;

use crate::agent::{Agent, AgentAddress, Console};
use crate::event::EventStream;
use crate::job::{Engine, Kind, Limits};
use crate::request::{Call, Caller, ConsoleRequest, JobRef, Key};
use crate::{Error, ErrorKind, Result, compress, kind, reconcile};

/// What a manager is made of.
#[derive(Clone)]
pub struct Config {
    /// What is known.
    pub catalog: Catalog,
    /// Where the host's agent is.
    pub agent: AgentAddress,
    /// Says to another manager on the same catalog who this one is.
    pub holder: String,
    /// How long another manager on the same catalog is waited for.
    pub takeover: Duration,
    /// How long a call to an agent that does not answer is repeated before its caller is told.
    pub patience: Duration,
    /// How patient and how busy jobs are.
    pub jobs: Limits,
    /// How often the hosts are asked what their machines do, besides what they say by themselves.
    pub look: Duration,
    /// How old a snapshot is when its memory is compressed; never when absent.
    pub compress_after: Option<Duration>,
    /// Most snapshots of a machine.
    pub max_snapshots: u32,
    /// Room kept for a catalog in a file, for when its disk is full; none if 0.
    pub reserve: Bytes,
    /// How long ended jobs and the keys of requests are remembered.
    pub memory: Duration,
}

impl Config {
    /// The usual.
    pub fn new(catalog: Catalog, agent: AgentAddress) -> Config {
        Config {
            catalog,
            agent,
            holder: format!("process {}", std::process::id()),
            takeover: Duration::from_secs(10),
            patience: Duration::from_secs(5),
            jobs: Limits::default(),
            look: Duration::from_secs(10),
            compress_after: Some(Duration::from_secs(3600)),
            max_snapshots: 10_000,
            reserve: Bytes::mib(16),
            memory: Duration::from_secs(30 * 24 * 3600),
        }
    }
}

/// The manager of an installation. Cheap to share behind an `Arc`.
pub struct Manager {
    pub(crate) catalog: Catalog,
    pub(crate) agent: Agent,
    pub(crate) engine: Engine,
    /// Most snapshots of a machine.
    pub(crate) max_snapshots: u32,
    tasks: Mutex<JoinSet<()>>,
}

impl Manager {
    /// Becomes the catalog's manager, takes up what the one before left unfinished, and looks after the hosts from then on.
    /// Does not wait for a host.
    pub async fn start(config: Config) -> Result<Arc<Manager>> {
        let Config { catalog, agent, holder, takeover, patience, jobs, look, .. } = config;
        let Config { compress_after, max_snapshots, reserve, memory, .. } = config;
        catalog.claim(&holder, takeover).await?;
        catalog.set_reserve(reserve);
        let agent = Agent::new(&agent, patience)?;
        let engine = Engine::new(catalog.clone(), kind::registry(&agent), jobs);
        reconcile::register(&catalog, &agent).await?;
        let unfinished = engine.recover().await?;
        tracing::info!(unfinished, agent = agent.name(), "the manager is up");
        let manager = Arc::new(Manager { catalog, agent, engine, max_snapshots, tasks: Mutex::default() });
        let mut tasks = JoinSet::new();
        tasks.spawn(reconcile::listen(manager.clone(), look));
        tasks.spawn(reconcile::tidy(manager.clone(), memory));
        if let Some(age) = compress_after {
            tasks.spawn(compress::compress(manager.clone(), age));
        }
        *manager.tasks.lock() = tasks;
        Ok(manager)
    }

    /// Lets go of everything. Jobs are left to the next start.
    pub async fn stop(&self) {
        let mut tasks = std::mem::take(&mut *self.tasks.lock());
        tasks.shutdown().await;
        self.engine.stop().await;
        self.catalog.release().await;
    }

    /// What is known: for whoever keeps tokens there.
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// Returns when another manager has taken over: the process must end.
    pub async fn until_fenced(&self) {
        self.engine.until_fenced().await;
    }

    /// Changes after that number, or from now on.
    pub async fn events(&self, caller: &Caller, after: Option<i64>) -> Result<EventStream> {
        self.admit(caller)?;
        EventStream::new(self.catalog.clone(), after).await
    }

    /// Opens a guest's serial console for a WebSocket client with that key.
    pub async fn console(&self, caller: &Caller, vm: VmId, key: &str, wish: ConsoleRequest) -> Result<Console> {
        self.admit(caller)?;
        let opened = self.agent.console(vm, key, wish.force).await;
        let Err(e) = opened else { return opened };
        if e.kind != ErrorKind::Busy {
            return Err(e);
        }
        let name = self.catalog.read().await?.vm(vm).await?.name;
        let message = format!("the console of {name} is in use; end that session, or take it over with --force");
        Err(Error { message, ..e })
    }

    /// Whether the caller may. So far there are only those who may do everything.
    pub(crate) fn admit(&self, caller: &Caller) -> Result<()> {
        if caller.admin {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Forbidden, format!("{} may not do that", caller.name)))
    }

    /// The job of an earlier call that said the same with the same key, if there was one.
    ///
    /// Whoever takes calls with keys asks before anything is looked up for one, and again when one has failed: what it is
    /// about may be gone, renamed or busy because the same call got through in the meantime.
    pub async fn repeated(&self, call: &Call) -> Result<Option<JobRef>> {
        self.admit(&call.caller)?;
        let Some(key) = &call.key else { return Ok(None) };
        let mut tx = self.catalog.read().await?;
        match tx.request(&stored(call, key)).await? {
            Some(request) if request.fingerprint == key.said => Ok(Some(job_ref(&mut tx, request.job).await?)),
            Some(_) | None => Ok(None),
        }
    }

    /// Orders a job, unless the same call has.
    pub(crate) async fn order<K: Kind>(&self, call: &Call, order: K::Order) -> Result<JobRef> {
        let tx = self.catalog.write().await?;
        self.order_in::<K>(tx, call, order).await
    }

    /// Orders a job in a transaction that has changed other things already; if the same call has ordered one, they are not
    /// changed.
    pub(crate) async fn order_in<K: Kind>(&self, mut tx: Transaction, call: &Call, order: K::Order) -> Result<JobRef> {
        if let Some(key) = &call.key
            && let Some(request) = tx.request(&stored(call, key)).await?
        {
            if request.fingerprint == key.said {
                return job_ref(&mut tx, request.job).await;
            }
            let message = "this idempotency key was used for a different request; choose another";
            return Err(Error::new(ErrorKind::Taken, message));
        }
        let job = self.engine.enqueue::<K>(&mut tx, &call.caller.name, order).await?;
        if let Some(key) = &call.key {
            let (key, fingerprint) = (stored(call, key), key.said.clone());
            tx.remember_request(&Request { key, fingerprint, job, at: Timestamp::now() }).await?;
        }
        let answer = job_ref(&mut tx, job).await?;
        tx.commit().await?;
        self.engine.wake(job);
        Ok(answer)
    }
}

/// The keys of one caller are nobody else's.
fn stored(call: &Call, key: &Key) -> String {
    format!("{}:{}", call.caller.name, key.word)
}

async fn job_ref(tx: &mut Transaction, job: JobId) -> Result<JobRef> {
    Ok(JobRef::from(&tx.job(job).await?))
}
