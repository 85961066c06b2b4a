//! A toy world: a shelf that boxes are put on, and a machine that is busy meanwhile.

mod behaviour;
mod planted;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use keyframe_catalog::{Catalog, Mode, Resource, Transaction};
use keyframe_model::agent::{Bytes, Firmware, Generation, JobId, Timestamp, VmId};
use keyframe_model::{Activity, Hardware, JobKind, Rest, Vm, VmEvent, VmState};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Begun, Context, Ending, Kind, Outcome, Probe, Step, kit};
use crate::{Error, ErrorKind, Result};

/// Boxes by name, with how often each was put there.
type Shelf = Arc<Mutex<BTreeMap<String, u32>>>;

/// What a toy does wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Bug {
    #[default]
    None,
    UndoForgets,
    UndoForgetsWhatFailed,
    UndoNotRepeatable,
    RunNotRepeatable,
    ProbeSaysDone,
    FinishLeavesBusy,
    FinishForgetsError,
    StepsDependOnTime,
}

/// What makes a toy's second step difficult.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Trouble {
    #[default]
    None,
    UnreachableTimes(u32),
    /// At the last step.
    LastUnreachableTimes(u32),
    Unreachable,
    Hangs,
    WaitsForCancel,
    CannotBeUndone,
    HoldsLast,
    Panics,
}

#[derive(Clone, Default)]
struct Toy {
    shelf: Shelf,
    undone: Arc<Mutex<BTreeSet<String>>>,
    bug: Bug,
    trouble: Trouble,
    tries: Arc<AtomicU32>,
    reached: Arc<tokio::sync::Notify>,
    release: Arc<tokio::sync::Notify>,
}

#[derive(Serialize, Deserialize)]
struct ToyPlan {
    vm: VmId,
    boxes: Vec<String>,
    /// The last box cannot be taken away again.
    commits: bool,
}

#[async_trait]
impl Kind for Toy {
    type Order = (VmId, bool);
    type Plan = ToyPlan;
    const KIND: JobKind = JobKind::VmConfigure;

    async fn begin(&self, tx: &mut Transaction, job: JobId, (vm, commits): (VmId, bool)) -> Result<Begun<ToyPlan>> {
        let mut vm = tx.vm(vm).await?;
        vm.state = vm.after(&VmEvent::Begin { activity: Activity::Reconfiguring, job })?;
        tx.update_vm(&mut vm).await?;
        tx.lock(job, &[(Resource::Vm(vm.id), Mode::Exclusive)]).await?;
        let boxes = ["a", "b", "c"].map(|name| format!("{name}-{}", vm.id)).to_vec();
        let title = format!("put {} boxes for {}", boxes.len(), vm.name);
        Ok(Begun::new(ToyPlan { vm: vm.id, boxes, commits }, title).vm(vm.id))
    }

    fn steps(&self, plan: &ToyPlan) -> Vec<Box<dyn Step>> {
        let boxes = plan.boxes.iter().enumerate();
        let mut steps: Vec<Box<dyn Step>> = boxes
            .map(|(at, name)| {
                let commits = plan.commits && at + 1 == plan.boxes.len();
                Box::new(Put { toy: self.clone(), name: name.clone(), at, commits }) as Box<dyn Step>
            })
            .collect();
        if self.bug == Bug::StepsDependOnTime && !self.shelf.lock().is_empty() {
            steps.truncate(1);
        }
        steps
    }

    async fn finish(&self, tx: &mut Transaction, job: &Ending<'_, ToyPlan>) -> Result<Value> {
        let mut vm = tx.vm(job.plan.vm).await?;
        let event = match job.outcome {
            Outcome::Done => VmEvent::Finished(Rest::Running),
            Outcome::Undone { .. } if self.bug == Bug::FinishForgetsError => VmEvent::Finished(Rest::Running),
            Outcome::Undone { .. } => VmEvent::Undone,
            Outcome::Broken { cause, .. } => VmEvent::Broke(cause.to_string()),
        };
        if self.bug != Bug::FinishLeavesBusy {
            vm.state = vm.after(&event)?;
        }
        tx.update_vm(&mut vm).await?;
        Ok(json!({ "boxes": job.outputs.get::<String>(0).unwrap_or_default() }))
    }
}

struct Put {
    toy: Toy,
    name: String,
    at: usize,
    commits: bool,
}

#[async_trait]
impl Step for Put {
    fn name(&self) -> String {
        format!("put {}", self.name.chars().next().unwrap_or('?'))
    }

    async fn run(&self, cx: &Context) -> Result<Value> {
        cx.progress(1, 2);
        let unreachable = || Err(Error::new(ErrorKind::Unreachable, "the shelf is out of reach"));
        if self.at == 1 {
            let tries = self.toy.tries.fetch_add(1, Ordering::SeqCst);
            if self.toy.trouble != Trouble::HoldsLast {
                self.toy.reached.notify_one();
            }
            match self.toy.trouble {
                Trouble::UnreachableTimes(times) if tries < times => return unreachable(),
                Trouble::Unreachable => return unreachable(),
                Trouble::Hangs => std::future::pending::<()>().await,
                Trouble::WaitsForCancel => {
                    cx.until_cancelled().await;
                    return Err(Error::cancelled());
                }
                Trouble::Panics => panic!("planted"),
                Trouble::None
                | Trouble::UnreachableTimes(_)
                | Trouble::LastUnreachableTimes(_)
                | Trouble::CannotBeUndone
                | Trouble::HoldsLast => {}
            }
        }
        if let (2, Trouble::LastUnreachableTimes(times)) = (self.at, self.toy.trouble)
            && self.toy.tries.fetch_add(1, Ordering::SeqCst) <= times
        {
            return unreachable();
        }
        if self.at == 2 && self.toy.trouble == Trouble::HoldsLast {
            self.toy.reached.notify_one();
            self.toy.release.notified().await;
        }
        if self.at == 2 && self.toy.trouble == Trouble::CannotBeUndone {
            return Err(Error::new(ErrorKind::NoSpace, "the shelf is full"));
        }
        let mut shelf = self.toy.shelf.lock();
        let count = shelf.entry(self.name.clone()).or_default();
        *count = if self.toy.bug == Bug::RunNotRepeatable { *count + 1 } else { 1 };
        Ok(json!(self.name))
    }

    async fn undo(&self, cx: &Context) -> Result<()> {
        if self.toy.trouble == Trouble::CannotBeUndone && self.at == 1 {
            return Err(Error::new(ErrorKind::Internal, "the shelf is out of reach"));
        }
        let failed_here = cx.outputs().raw(self.at).is_none();
        match self.toy.bug {
            Bug::UndoForgets if self.at == 1 => return Ok(()),
            Bug::UndoForgetsWhatFailed if failed_here => return Ok(()),
            _ => {}
        }
        let removed = self.toy.shelf.lock().remove(&self.name);
        let again = !self.toy.undone.lock().insert(self.name.clone());
        if removed.is_none() && again && self.toy.bug == Bug::UndoNotRepeatable {
            return Err(Error::new(ErrorKind::NotFound, "there is no such box"));
        }
        Ok(())
    }

    async fn probe(&self, _cx: &Context) -> Result<Probe> {
        if self.toy.bug == Bug::ProbeSaysDone {
            return Ok(Probe::Done(json!(self.name)));
        }
        Ok(if self.toy.shelf.lock().contains_key(&self.name) { Probe::Done(json!(self.name)) } else { Probe::NotDone })
    }

    fn deadline(&self) -> Duration {
        if self.toy.trouble == Trouble::Hangs { Duration::from_millis(50) } else { Duration::from_secs(60) }
    }

    fn commits(&self) -> bool {
        self.commits
    }
}

struct ToyWorld {
    toy: Toy,
    catalog: Catalog,
    vm: VmId,
    commits: bool,
    _dir: tempfile::TempDir,
}

impl ToyWorld {
    async fn new(toy: &Toy, commits: bool) -> ToyWorld {
        let dir = tempfile::tempdir().unwrap();
        let catalog = Catalog::open(dir.path().join("catalog.db").to_str().unwrap()).await.unwrap();
        let vm = stopped_vm("toy");
        let mut tx = catalog.write().await.unwrap();
        tx.insert_vm(&vm).await.unwrap();
        tx.commit().await.unwrap();
        let fresh = Toy { bug: toy.bug, trouble: toy.trouble, ..Toy::default() };
        ToyWorld { toy: fresh, catalog, vm: vm.id, commits, _dir: dir }
    }

    async fn vm(&self) -> Vm {
        self.catalog.read().await.unwrap().vm(self.vm).await.unwrap()
    }
}

#[async_trait]
impl kit::World for ToyWorld {
    type Kind = Toy;

    fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    fn kind(&self) -> Toy {
        self.toy.clone()
    }

    fn order(&self) -> (VmId, bool) {
        (self.vm, self.commits)
    }

    async fn look(&self) -> Value {
        json!(*self.toy.shelf.lock())
    }
}

fn stopped_vm(name: &str) -> Vm {
    Vm {
        id: VmId::new(),
        name: name.parse().unwrap(),
        description: String::new(),
        generation: Generation(1),
        state: VmState::At { rest: Rest::Stopped },
        created: Timestamp::now(),
        hardware: Hardware {
            machine_type: "none".into(),
            generation_id: VmId::new().uuid(),
            cpus: 1,
            memory: Bytes::mib(64),
            firmware: Firmware::Bios,
            direct_boot: None,
            disks: Vec::new(),
            nics: Vec::new(),
            cloud_init: None,
        },
        current: None,
        notice: None,
    }
}
