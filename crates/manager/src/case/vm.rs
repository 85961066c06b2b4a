//! Machines.

use keyframe_catalog::{Transaction, VmPhase};
use keyframe_model::agent::{Bytes, CreateVolume, Micros, VmId, VmStatus, VolumeRef, VolumeSource};
use keyframe_model::copy::{NicPolicy, copy};
use keyframe_model::{Activity, Hardware, Name, Rest, Vm, VmState};

use super::build::{add_disk, add_variables, check, empty, nics, usual_nic};
use super::page::{answer, wanted};
use super::snapshot::check_description;
use super::tree::text;
use crate::kind::configure::{ConfigureOrder, VmConfigure};
use crate::kind::fresh::Random;
use crate::kind::hold::check_generation;
use crate::kind::power::{self, Plain, PowerOrder, Starting, Stopping};
use crate::kind::source::Source;
use crate::kind::{vm_create, vm_delete};
use crate::request::{
    Call, Caller, DeletePlanView, JobRef, Outcome, Page, PageRequest, PlanView, SnapshotName, StartRequest,
    StopRequest, VmCreate, VmDelete, VmFilter, VmSource, VmUpdate, VmView,
};
use crate::{Error, ErrorKind, Manager, Result, space};

/// How long a guest may take to shut down when nobody says.
const SHUTDOWN: Micros = Micros(60_000_000);

impl Manager {
    /// All machines that match, by the order of their making.
    pub async fn list_vms(&self, caller: &Caller, filter: &VmFilter, page: &PageRequest) -> Result<Page<VmView>> {
        self.admit(caller)?;
        let phase = filter.state.as_deref().map(phase).transpose()?;
        let (name, search) = (filter.name.clone(), filter.search.clone());
        let mut tx = self.catalog.read().await?;
        let found = tx.vms(&keyframe_catalog::VmFilter { name, search, phase }, &wanted(page)?).await?;
        let held_trees = tx.held_trees().await?;
        let mut page = answer(
            found,
            |vm| vm.id.to_string(),
            |vm| {
                let deleting = held_trees.contains(&vm.id);
                view(vm, None, deleting)
            },
        );
        if filter.space {
            for view in &mut page.items {
                let (held, memory) = held(&mut tx, view.vm.id).await?;
                view.space = space::of_vm(&self.agent, &view.vm, held, memory).await.ok();
            }
        }
        Ok(page)
    }

    /// One machine.
    pub async fn vm(&self, caller: &Caller, vm: VmId) -> Result<VmView> {
        self.admit(caller)?;
        let mut tx = self.catalog.read().await?;
        let vm = tx.vm(vm).await?;
        let count = u32::try_from(tx.count_snapshots(vm.id).await?).unwrap_or(u32::MAX);
        let (held, memory) = held(&mut tx, vm.id).await?;
        let deleting = tx.held_trees().await?.contains(&vm.id);
        let current_name = match vm.current {
            Some(current) => Some(tx.snapshot(current).await?.name),
            None => None,
        };
        drop(tx);
        // A view without what the host says is better than none.
        let status = self.agent.vm(vm.id).await.ok();
        let space = space::of_vm(&self.agent, &vm, held, memory).await.ok();
        Ok(VmView { snapshots: Some(count), current_name, space, ..view(vm, status, deleting) })
    }

    /// A machine by its identifier or its name.
    pub async fn find_vm(&self, caller: &Caller, name: &str) -> Result<VmId> {
        self.admit(caller)?;
        let missing = || Error::not_found(format!("machine {name}"), "vm list");
        let mut tx = self.catalog.read().await?;
        if let Ok(id) = name.parse() {
            return Ok(tx.vm(id).await.map_err(|e| Error::of_lookup(e, missing))?.id);
        }
        let found = tx.find_vm(&name.parse()?).await?;
        found.map(|vm| vm.id).ok_or_else(missing)
    }

    /// Makes a machine.
    pub async fn create_vm(&self, call: &Call, wish: VmCreate) -> Result<JobRef> {
        self.admit(&call.caller)?;
        wish.name.check_new()?;
        check_description(&wish.description)?;
        if wish.source.is_none() && call.expected.is_some() {
            let message = "a machine that is made of nothing has no generation to compare with; expect none";
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        let host = self.agent.host().await?;
        let (mut hardware, mut contents, source) = match wish.source {
            None => (Hardware { machine_type: host.machine_type.clone(), ..empty() }, Vec::new(), None),
            Some(source) => self.source(source, &wish).await?,
        };
        hardware.cpus = wish.cpus.unwrap_or(hardware.cpus);
        hardware.memory = wish.memory.unwrap_or(hardware.memory);
        for spec in &wish.disks {
            add_disk(&mut hardware, &mut contents, &host, spec)?;
        }
        if source.is_none() {
            hardware.firmware = wish.firmware.unwrap_or_default();
            add_variables(&mut hardware, &mut contents, &host)?;
        }
        match (&wish.nics, &source) {
            (Some(wished), _) => hardware.nics = nics(&[], wished)?,
            (None, None) => hardware.nics = nics(&[], &[usual_nic()])?,
            (None, Some(_)) => {}
        }
        hardware.cloud_init = wish.cloud_init.clone().or(hardware.cloud_init);
        hardware.direct_boot = wish.direct_boot.clone().or(hardware.direct_boot);
        check(&hardware)?;
        let VmCreate { name, description, start, .. } = wish;
        let expected = call.expected;
        let order = vm_create::VmCreateOrder { name, description, hardware, contents, source, expected, start };
        self.order::<vm_create::VmCreate>(call, order).await
    }

    /// What a machine made of something else starts from.
    async fn source(&self, source: VmSource, wish: &VmCreate) -> Result<(Hardware, Vec<CreateVolume>, Option<Source>)> {
        if wish.firmware.is_some() {
            return Err(Error::new(ErrorKind::Invalid, "the firmware is that of the source; leave it out"));
        }
        let mut tx = self.catalog.read().await?;
        let (hardware, snapshot, source) = match source {
            VmSource::Template { template } => {
                let template = tx.template(template).await?;
                (template.hardware, template.snapshot, Source::Template(template.id))
            }
            VmSource::Snapshot { snapshot } => {
                let snapshot = tx.snapshot(snapshot).await?;
                (snapshot.hardware, snapshot.id, Source::Snapshot(snapshot.id))
            }
        };
        let copy = copy(&hardware, snapshot, &NicPolicy::Keep, "", &mut Random);
        let contents =
            copy.sources.into_iter().map(|of| CreateVolume { source: VolumeSource::Snapshot(of), size: None });
        Ok((copy.hardware, contents.collect(), Some(source)))
    }

    /// Changes a machine: its name and description at once, its hardware by a job.
    pub async fn update_vm(&self, call: &Call, vm: VmId, wish: VmUpdate) -> Result<Outcome<VmView>> {
        self.admit(&call.caller)?;
        wish.name.as_ref().map_or(Ok(()), Name::check_new)?;
        check_description(wish.description.as_deref().unwrap_or_default())?;
        let mut tx = self.catalog.write().await?;
        let mut now = tx.vm(vm).await?;
        check_generation(now.name.as_str(), now.generation, call.expected)?;
        if wish.name.is_some() || wish.description.is_some() {
            now.name = wish.name.clone().unwrap_or(now.name);
            now.description = wish.description.clone().unwrap_or(now.description);
            tx.update_vm(&mut now).await?;
        }
        if wish.cpus.is_none() && wish.memory.is_none() && wish.nics.is_none() {
            let deleting = tx.held_trees().await?.contains(&vm);
            tx.commit().await?;
            return Ok(Outcome::Done(view(now, None, deleting)));
        }
        now.allows(Activity::Reconfiguring)?;
        let nics = wish.nics.as_ref().map(|wished| nics(&now.hardware.nics, wished)).transpose()?;
        let order = ConfigureOrder { vm, expected: None, cpus: wish.cpus, memory: wish.memory, nics };
        Ok(Outcome::Job(self.order_in::<VmConfigure>(tx, call, order).await?))
    }

    /// Starts it.
    pub async fn start_vm(&self, call: &Call, vm: VmId, wish: StartRequest) -> Result<JobRef> {
        self.admit(&call.caller)?;
        let order = PowerOrder { vm, expected: call.expected, act: Starting { paused: wish.paused } };
        self.order::<power::VmStart>(call, order).await
    }

    /// Stops it.
    pub async fn stop_vm(&self, call: &Call, vm: VmId, wish: StopRequest) -> Result<JobRef> {
        self.admit(&call.caller)?;
        if wish.hard && wish.never_hard {
            return Err(Error::new(ErrorKind::Invalid, "a stop is either hard or never hard, not both"));
        }
        let deadline = wish.deadline.unwrap_or(SHUTDOWN);
        let act = Stopping { hard: wish.hard, deadline, then_hard: !wish.never_hard, even_if_off: false };
        if wish.hard {
            return self.stop_hard(call, vm, act).await;
        }
        self.order::<power::VmStop>(call, PowerOrder { vm, expected: call.expected, act }).await
    }

    /// Lets its processors stand still.
    pub async fn pause_vm(&self, call: &Call, vm: VmId) -> Result<JobRef> {
        self.admit(&call.caller)?;
        self.order::<power::VmPause>(call, PowerOrder { vm, expected: call.expected, act: Plain }).await
    }

    /// Lets them go on.
    pub async fn resume_vm(&self, call: &Call, vm: VmId) -> Result<JobRef> {
        self.admit(&call.caller)?;
        self.order::<power::VmResume>(call, PowerOrder { vm, expected: call.expected, act: Plain }).await
    }

    /// Presses the reset button.
    pub async fn reset_vm(&self, call: &Call, vm: VmId) -> Result<JobRef> {
        self.admit(&call.caller)?;
        self.order::<power::VmReset>(call, PowerOrder { vm, expected: call.expected, act: Plain }).await
    }

    /// Deletes it with its snapshots; a plan only, if `dry_run`.
    pub async fn delete_vm(&self, call: &Call, vm: VmId, wish: VmDelete) -> Result<Outcome<PlanView>> {
        self.admit(&call.caller)?;
        let order = vm_delete::VmDeleteOrder { vm, expected: call.expected, force: wish.force };
        if wish.dry_run {
            return Ok(Outcome::Done(PlanView::Delete(self.vm_deletion(&order).await?)));
        }
        Ok(Outcome::Job(self.order::<vm_delete::VmDelete>(call, order).await?))
    }

    async fn vm_deletion(&self, order: &vm_delete::VmDeleteOrder) -> Result<DeletePlanView> {
        let mut tx = self.catalog.read().await?;
        let vm_delete::Deletion { vm, snapshots, objections, .. } = vm_delete::preview(&mut tx, order).await?;
        let mut owners: Vec<_> = snapshots.iter().map(|s| keyframe_catalog::Owner::Snapshot(s.id)).collect();
        owners.push(keyframe_catalog::Owner::Vm(vm.id));
        let volumes = tx.unreferenced_without(&owners).await?;
        drop(tx);
        let memory = snapshots.iter().map(space::stored).sum();
        let runs = matches!(vm.state, VmState::At { rest: Rest::Running | Rest::Paused { .. } });
        Ok(DeletePlanView {
            loses_memory: if runs { vm.hardware.memory } else { Bytes(0) },
            removed: snapshots.iter().map(|s| SnapshotName { id: s.id, name: s.name.clone() }).collect(),
            moved: Vec::new(),
            current_changes: false,
            current: None,
            would_free: space::would_free(&self.agent, &snapshots, &volumes).await? + memory,
            memory,
            volumes,
            obstacles: objections.into_iter().map(text).collect(),
        })
    }
}

/// The volumes of a machine's snapshots, and what their memories take.
async fn held(tx: &mut Transaction, vm: VmId) -> Result<(Vec<VolumeRef>, Bytes)> {
    let held = tx.snapshotted_volumes(vm).await?.into_iter().map(|(volume, ..)| volume).collect();
    Ok((held, tx.stored_memory(vm).await?))
}

fn phase(state: &str) -> Result<VmPhase> {
    Ok(match state {
        "stopped" => VmPhase::Stopped,
        "running" => VmPhase::Running,
        "paused" => VmPhase::Paused,
        "busy" => VmPhase::Busy,
        "error" => VmPhase::Error,
        other => {
            let message =
                format!("'{}' is no state; say stopped, running, paused, busy or error", other.escape_debug());
            return Err(Error::new(ErrorKind::Invalid, message));
        }
    })
}

/// A machine as callers see it; `deleting` says whether snapshots of it are being deleted.
fn view(vm: Vm, status: Option<VmStatus>, deleting: bool) -> VmView {
    let mut notices = Vec::new();
    if let Some(status) = &status {
        if status.emulated && matches!(vm.state, VmState::At { .. }) {
            notices.push("the guest is emulated, which is many times slower than the processor".to_owned());
        }
        if status.memory_pending.0 > 0 {
            notices.push(format!("{} bytes of its memory are still to be loaded", status.memory_pending));
        }
    }
    notices.extend(vm.notice.iter().map(|notice| notice.text.clone()));
    if let VmState::Error { trouble } = &vm.state {
        notices.push(format!("in error: {}; {}", trouble.reason, trouble.ways_out()));
    }
    VmView { allowed: vm.allowed(deleting), vm, snapshots: None, current_name: None, status, space: None, notices }
}
