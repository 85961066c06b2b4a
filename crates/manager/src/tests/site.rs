//! A host with an agent, a catalog, and a manager on them.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use keyframe_agent::array::Array;
use keyframe_agent::hypervisor::fake::{Fake, FakeOptions};
use keyframe_agent::testing::{TestAgent, TestOptions};
use keyframe_catalog::{Catalog, Owner};
use keyframe_model::agent::{Bytes, JobId, Power, SnapshotId, VmId, VolumeRef};
use keyframe_model::{JobState, SnapshotKind, Vm};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::agent::{Agent, AgentAddress};
use crate::job::Limits;
use crate::request::{
    Apply, Call, Caller, DiskContent, DiskSpec, JobView, Outcome, PlanView, SnapshotCreate, VmCreate, VmView,
};
use crate::{Config, Error, Manager, Result};

/// The size of test disks.
pub(crate) const DISK: Bytes = Bytes(1 << 16);

/// Quick, because what it waits for is in this process.
pub(crate) const LIMITS: Limits = Limits {
    jobs: 8,
    patience: Duration::from_secs(20),
    first_wait: Duration::from_millis(2),
    longest_wait: Duration::from_millis(50),
    report: Duration::from_millis(50),
};

/// A host, which outlives its agents and managers.
pub(crate) struct Site {
    pub(crate) fake: Arc<Fake>,
    agent: Mutex<Option<TestAgent>>,
    pub(crate) catalog: Catalog,
    dir: TempDir,
}

/// Whoever may do everything.
pub(crate) fn caller() -> Caller {
    Caller::admin("test")
}

/// A call of theirs.
pub(crate) fn call() -> Call {
    Call::by(caller())
}

/// Ends an agent on a thread of its own: it waits for its runtime, which no other runtime's thread may do.
fn elsewhere(agent: Option<TestAgent>) {
    std::thread::spawn(move || drop(agent)).join().unwrap();
}

impl Drop for Site {
    fn drop(&mut self) {
        elsewhere(self.agent.lock().take());
    }
}

impl Site {
    /// A new one, whose guests write to their disks if `disks`.
    pub(crate) async fn new(disks: bool) -> Site {
        Site::on(tempfile::tempdir().unwrap(), disks).await
    }

    /// One on what lies in a folder.
    pub(crate) async fn on(dir: TempDir, disks: bool) -> Site {
        let fake = Arc::new(Fake::new(dir.path().join("machines"), FakeOptions { disks }));
        let agent = TestAgent::start(dir.path(), fake.clone(), &TestOptions::default()).unwrap();
        let catalog = Catalog::open(dir.path().join("catalog.db").to_str().unwrap()).await.unwrap();
        Site { fake, agent: Mutex::new(Some(agent)), catalog, dir }
    }

    /// Ends everything on it, as if its power had been cut, and leaves what lies there.
    pub(crate) async fn fall_silent(&self) {
        self.catalog.close().await;
        elsewhere(self.agent.lock().take());
    }

    /// A new one whose guests do not write, a manager on it, and its machine `web`, with a disk of each of these bytes.
    pub(crate) async fn with_web(disks: &[u8], runs: bool) -> (Site, Arc<Manager>, Vm) {
        let site = Site::new(false).await;
        let manager = site.manager().await;
        let vm = make(&manager, wish(&site, "web", disks, runs)).await.vm;
        (site, manager, vm)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn address(&self) -> AgentAddress {
        AgentAddress::Unix(self.agent.lock().as_ref().unwrap().socket())
    }

    /// A client of its agent.
    pub(crate) fn client(&self) -> Agent {
        self.client_with(Duration::from_secs(5))
    }

    /// One that repeats calls for so long.
    pub(crate) fn client_with(&self, patience: Duration) -> Agent {
        Agent::new(&self.address(), patience).unwrap()
    }

    /// A manager on it.
    pub(crate) async fn manager(&self) -> Arc<Manager> {
        Manager::start(self.config()).await.unwrap()
    }

    /// How it is set.
    pub(crate) fn config(&self) -> Config {
        Config { jobs: LIMITS, reserve: Bytes(0), ..Config::new(self.catalog.clone(), self.address()) }
    }

    /// Kills the agent as `kill -9` does, and starts another.
    pub(crate) fn restart_agent(&self) {
        let mut agent = self.agent.lock();
        elsewhere(agent.take());
        *agent = Some(TestAgent::start(self.dir.path(), self.fake.clone(), &TestOptions::default()).unwrap());
    }

    /// Lets the agent die at a call of its array.
    pub(crate) fn with_agent<T>(&self, act: impl FnOnce(&TestAgent) -> T) -> T {
        act(self.agent.lock().as_ref().unwrap())
    }

    /// An image of a disk, each of its bytes this one.
    pub(crate) fn image(&self, byte: u8) -> String {
        let path = self.path(&format!("image-{byte}"));
        std::fs::write(&path, vec![byte; usize::try_from(DISK.0).unwrap()]).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// What is in a volume now, or was at a snapshot: its first byte and a hash of all.
    pub(crate) fn content(&self, volume: &VolumeRef, snapshot: Option<SnapshotId>) -> u64 {
        let bytes = self.with_agent(|agent| agent.array(&volume.array).content(&volume.volume, snapshot)).unwrap();
        let mut hasher = DefaultHasher::new();
        bytes.hash(&mut hasher);
        hasher.finish()
    }

    /// All that is on the host: volumes with their snapshots and contents, machines, memory images. What a disk held that was
    /// taken out is in nobody's reach, so it is left out.
    pub(crate) async fn look(&self) -> Value {
        let mut volumes = Vec::new();
        let mut catalog = self.catalog.read().await.unwrap();
        for name in ["fake", "fake2"] {
            let array = self.with_agent(|agent| agent.array(name).clone());
            for info in array.volumes(None, 10_000).unwrap() {
                let name = info.volume.volume.clone();
                let mut snapshots = array.snapshots(&name).unwrap();
                snapshots.sort();
                let versions: Vec<Value> =
                    snapshots.into_iter().map(|id| json!([id, self.content(&info.volume, Some(id))])).collect();
                let owners = catalog.owners_of(&info.volume).await.unwrap();
                let used = owners.iter().any(|owner| !matches!(owner, Owner::Snapshot(_)));
                let content = used.then(|| self.content(&info.volume, None));
                volumes.push(json!({ "volume": info.volume, "size": info.size, "content": content, "had": versions }));
            }
        }
        let client = self.client();
        let mut vms = Vec::new();
        for mut status in client.vms().await.unwrap() {
            // Whatever comes back comes last.
            status.machine.iter_mut().for_each(|machine| machine.disks.sort_by_key(|disk| disk.slot));
            if status.power != Power::Off {
                vms.push(json!([status.vm, status.power, status.machine]));
            }
        }
        vms.sort_by_key(ToString::to_string);
        json!({ "volumes": volumes, "vms": vms, "memory": self.files("memory"), "instants": self.files("instants") })
    }

    fn files(&self, folder: &str) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.path(folder)) else { return Vec::new() };
        let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

/// A machine to be made, with a disk of each of these images.
pub(crate) fn wish(site: &Site, name: &str, disks: &[u8], start: bool) -> VmCreate {
    let disk = |&byte: &u8| DiskSpec {
        content: DiskContent::Image { path: site.image(byte), format: None },
        ..DiskSpec::default()
    };
    VmCreate {
        name: name.parse().unwrap(),
        description: String::new(),
        source: None,
        cpus: None,
        memory: None,
        firmware: None,
        disks: disks.iter().map(disk).collect(),
        nics: None,
        cloud_init: None,
        direct_boot: None,
        start,
    }
}

/// Waits until the hypervisor has been called so for the `nth` time.
pub(crate) async fn called(site: &Site, call: &str, nth: usize) {
    let there = async {
        while site.fake.faults().calls().iter().filter(|made| *made == call).count() < nth {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), there).await.expect("it is never called");
}

/// Waits for a job's success.
pub(crate) async fn done(manager: &Manager, job: JobId) -> JobView {
    let view = ended(manager, job).await;
    assert_eq!(view.state, JobState::Succeeded, "{}: {:?} {:?}", view.title, view.error, view.notes);
    view
}

/// Waits for a job's end.
pub(crate) async fn ended(manager: &Manager, job: JobId) -> JobView {
    let view = manager.wait_job(&caller(), job, Duration::from_secs(60)).await.unwrap();
    assert!(view.state.ended(), "{} has not ended: {:?}", view.title, view.step);
    view
}

/// Makes a machine.
pub(crate) async fn make(manager: &Manager, wish: VmCreate) -> VmView {
    let job = manager.create_vm(&call(), wish).await.unwrap();
    done(manager, job.id).await;
    manager.vm(&caller(), job.vms[0]).await.unwrap()
}

/// Takes a snapshot.
pub(crate) async fn snap(manager: &Manager, vm: VmId, name: &str, kind: SnapshotKind) -> SnapshotId {
    let name = Some(name.parse().unwrap());
    let wish = SnapshotCreate { name, kind: Some(kind), ..SnapshotCreate::default() };
    let job = manager.create_snapshot(&call(), vm, wish).await.unwrap();
    done(manager, job.id).await;
    job.snapshot.unwrap()
}

/// The job of an outcome.
pub(crate) fn job(outcome: Outcome<PlanView>) -> JobId {
    match outcome {
        Outcome::Job(job) => job.id,
        Outcome::Done(plan) => panic!("a plan only: {plan:?}"),
    }
}

/// Applies a snapshot.
pub(crate) async fn apply(manager: &Manager, snapshot: SnapshotId, wish: Apply) -> JobView {
    let outcome = manager.apply_snapshot(&call(), snapshot, wish).await.unwrap();
    done(manager, job(outcome)).await
}

/// The error of what must be refused.
pub(crate) fn refused<T: std::fmt::Debug>(result: Result<T>) -> Error {
    result.expect_err("this must be refused")
}
