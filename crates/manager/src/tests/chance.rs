//! Orders that nobody has thought of, one or two at once, on a host on which anything fails, is slow or dies by chance: after
//! them everything is at rest and holds what it must, and in the end the host has what the catalog refers to, no more and no
//! less.
//!
//! `KEYFRAME_CHANCE=17x200` plays 200 worlds of the seeds from 17 on; a world that breaks a promise names its seed and its orders.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use keyframe_agent::hypervisor::fake::Memory;
use keyframe_agent::testing::Dice;
use keyframe_model::agent::{Bytes, JobId, SnapshotId, TemplateId, VmId, VolumeRef};
use keyframe_model::{JobState, Rest, Snapshot, SnapshotKind, SnapshotState, Vm, VmState};
use serde_json::json;

use super::contents::Effect;
use super::scenario::clone_of;
use super::site::{LIMITS, Site, call, caller, done, job, wish};
use crate::agent::Agent;
use crate::job::Limits;
use crate::job::kit::at_rest;
use crate::kind::hold::rest_of;
use crate::request::{
    Apply, CloneMemory, CloneSource, DiskAttach, DiskContent, DiskResize, DiskSpec, SnapshotCreate, SnapshotDelete,
    StartRequest, StopRequest, TemplateCreate, TemplateSource, VmDelete,
};
use crate::{Config, ErrorKind, Manager, Result, reconcile};

/// Orders of one world.
const ORDERS: usize = 20;
/// Machines of one, at most: more only take longer.
const MACHINES: usize = 4;
/// One call of a driver of so many meets with something.
const ONE_OF: usize = 25;
/// A job that has not ended by then is stuck.
const PATIENCE: Duration = Duration::from_secs(60);

/// The first seed, and how many there are.
fn seeds() -> std::ops::Range<u64> {
    let text = std::env::var("KEYFRAME_CHANCE").unwrap_or_else(|_| "1x6".to_owned());
    let (first, count) = text.split_once('x').unwrap_or((&text, "1"));
    let (first, count): (u64, u64) = (first.parse().expect("a seed"), count.parse().expect("a number of worlds"));
    first..first + count
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_ordered_and_whatever_fails_nothing_is_lost_or_left() {
    for seed in seeds() {
        println!("seed {seed}");
        let mut world = World::new(seed).await;
        if let Err(what) = world.play().await {
            panic!("seed {seed}: {what}, after\n  {}", world.orders.join("\n  "));
        }
        world.manager.stop().await;
    }
}

/// What somebody finds who looks for something to order.
pub(super) struct Found {
    pub(super) vms: Vec<Vm>,
    pub(super) snapshots: Vec<Snapshot>,
    templates: Vec<TemplateId>,
}

pub(super) struct World {
    pub(super) site: Site,
    manager: Arc<Manager>,
    client: Agent,
    dice: Dice,
    orders: Vec<String>,
    /// What the volumes of snapshots held when they were first seen.
    contents: HashMap<(SnapshotId, VolumeRef), u64>,
    /// Where the guests were of which snapshots have the memory.
    pub(super) memories: HashMap<SnapshotId, Memory>,
}

/// What is said of an order, what it does, and what the manager says to it.
type Drawn = (String, Effect, Result<JobId>);
fn runs(vm: &Vm) -> bool {
    vm.state == VmState::At { rest: Rest::Running }
}

pub(super) type Checked = std::result::Result<(), String>;

async fn manager(site: &Site) -> Arc<Manager> {
    let jobs = Limits { patience: Duration::from_millis(300), ..LIMITS };
    Manager::start(Config { jobs, ..site.config() }).await.unwrap()
}

impl World {
    async fn new(seed: u64) -> World {
        let site = Site::new(true).await;
        let (manager, client) = (manager(&site).await, site.client());
        World {
            site,
            manager,
            client,
            dice: Dice::new(seed),
            orders: Vec::new(),
            contents: HashMap::new(),
            memories: HashMap::new(),
        }
    }

    async fn play(&mut self) -> Checked {
        let first = self.manager.create_vm(&call(), wish(&self.site, "web", &[1, 2], true)).await.unwrap();
        done(&self.manager, first.id).await;
        for _ in 0..ORDERS {
            let found = self.found().await;
            self.trouble(true);
            self.write(&found);
            let before = self.before(&found);
            let mut ordered = Vec::new();
            for _ in 0..1 + usize::from(self.dice.below(3) == 0) {
                ordered.extend(self.order(&found).await?);
            }
            let mut effects = Vec::new();
            for (effect, job) in ordered {
                let state = self.ended(job).await?;
                effects.extend(effect.after(state));
            }
            self.trouble(false);
            // Whoever looks at the host may have met its death meanwhile.
            if self.is_dead() {
                self.site.restart_agent();
            }
            self.is_at_rest().await?;
            let found = self.found().await;
            self.check_contents(&before, &found, &effects)?;
        }
        self.holds_what_it_is_to().await
    }

    /// Whether things go wrong.
    fn trouble(&mut self, begins: bool) {
        let Self { site, dice, .. } = self;
        site.fake.faults().clear();
        site.with_agent(|agent| {
            for name in ["fake", "fake2"] {
                agent.array(name).faults().clear();
                if begins {
                    agent.array(name).faults().seeded(Dice::new(dice.throw()), ONE_OF);
                }
            }
            if begins {
                site.fake.faults().seeded(Dice::new(dice.throw()), ONE_OF, agent.life());
            }
        });
    }

    async fn found(&self) -> Found {
        let mut tx = self.site.catalog.read().await.unwrap();
        let all = tx.dump().await.unwrap();
        let read = |what: &str| all[what].clone();
        let templates: Vec<keyframe_model::Template> = serde_json::from_value(read("templates")).unwrap();
        Found {
            vms: serde_json::from_value(read("vms")).unwrap(),
            snapshots: serde_json::from_value(read("snapshots")).unwrap(),
            templates: templates.into_iter().map(|template| template.id).collect(),
        }
    }

    /// One order, and what happens beside it.
    async fn order(&mut self, found: &Found) -> std::result::Result<Option<(Effect, JobId)>, String> {
        let (what, effect, ordered) = self.draw(found).await;
        self.orders.push(what);
        let job = match ordered {
            Ok(job) => job,
            Err(e) => return self.refused(&e).map(|()| None),
        };
        match self.dice.below(6) {
            0 => {
                self.orders.push("  cancel it".to_owned());
                if let Err(e) = self.manager.cancel_job(&call(), job).await {
                    self.refused(&e)?;
                }
            }
            1 => {
                self.orders.push("  restart the manager".to_owned());
                self.manager.stop().await;
                self.manager = manager(&self.site).await;
            }
            2 => {
                self.orders.push("  restart the agent".to_owned());
                self.restart_agent();
            }
            _ => {}
        }
        Ok(Some((effect, job)))
    }

    fn is_dead(&self) -> bool {
        self.site.with_agent(|agent| agent.life().ended())
    }

    fn restart_agent(&mut self) {
        // An agent that does not start is another matter.
        self.site.fake.faults().clear();
        self.site.restart_agent();
        self.trouble(true);
    }

    fn refused(&mut self, e: &crate::Error) -> Checked {
        self.orders.push(format!("  refused: {e}"));
        let planned = e.message.contains("planned failure");
        let told = !e.message.is_empty() && (planned || e.kind != ErrorKind::Internal);
        if told { Ok(()) } else { Err(format!("a refusal without a reason: {e:?}")) }
    }

    /// Waits for a job's end; an agent that dies meanwhile is followed by another.
    async fn ended(&mut self, job: JobId) -> std::result::Result<JobState, String> {
        let until = tokio::time::Instant::now() + PATIENCE;
        loop {
            let view = self.manager.wait_job(&caller(), job, Duration::from_millis(50)).await;
            let view = view.map_err(|e| format!("a job cannot be seen: {e}"))?;
            if self.is_dead() {
                self.orders.push("  the agent has died, and is started again".to_owned());
                self.restart_agent();
            } else if view.state.ended() {
                self.orders.push(format!("  {:?} {}", view.state, view.error.as_ref().map_or("", |e| &e.message)));
                let told = view.error.is_some_and(|e| !e.message.is_empty());
                return if view.state == JobState::Succeeded || told {
                    Ok(view.state)
                } else {
                    Err(format!("{} has {:?} without a reason", view.title, view.state))
                };
            }
            if tokio::time::Instant::now() > until {
                return Err(format!("{} is stuck: {:?}", view.title, view.step));
            }
        }
    }

    /// Something to order, and what the manager says to it.
    async fn draw(&mut self, found: &Found) -> Drawn {
        let (n, of) = (self.orders.len(), self.dice.below(4));
        let Some(vm) = self.dice.pick(&found.vms) else { return self.create(n).await };
        let snapshot = self.dice.pick(&found.snapshots);
        match (of, snapshot) {
            (0, _) => self.power(vm).await,
            (1, _) => self.disks(vm).await,
            (2, Some(snapshot)) => self.tree(snapshot).await,
            (3, _) if found.vms.len() < MACHINES => self.copy(n, vm, snapshot, found).await,
            (3, _) => {
                let wish = VmDelete { force: true, ..VmDelete::default() };
                (
                    format!("delete {}", vm.name),
                    Effect::Nothing,
                    self.manager.delete_vm(&call(), vm.id, wish).await.map(job),
                )
            }
            _ => self.snap(vm).await,
        }
    }

    /// Some guests write. One whose disk is away writes when it is back.
    fn write(&mut self, found: &Found) {
        for vm in found.vms.iter().filter(|vm| runs(vm)) {
            if self.dice.below(2) == 0 {
                let written = self.site.fake.step(vm.id, 1 + self.dice.below(9));
                self.orders.push(format!("  {} writes: {}", vm.name, written.is_ok()));
            }
        }
    }

    async fn create(&mut self, n: usize) -> Drawn {
        let wish = wish(&self.site, &format!("vm-{n}"), &[3], self.dice.below(2) == 0);
        (format!("create vm-{n}"), Effect::Nothing, self.manager.create_vm(&call(), wish).await.map(|made| made.id))
    }

    async fn snap(&mut self, vm: &Vm) -> Drawn {
        let kind = [SnapshotKind::Disk, SnapshotKind::DiskAndMemory][self.dice.below(2)];
        let wish = SnapshotCreate { kind: Some(kind), ..SnapshotCreate::default() };
        let what = format!("snapshot {} {kind:?}", vm.name);
        let captures = kind == SnapshotKind::DiskAndMemory && runs(vm);
        let effect = if captures { Effect::Captures(vm.id) } else { Effect::Nothing };
        (what, effect, self.manager.create_snapshot(&call(), vm.id, wish).await.map(|made| made.id))
    }

    async fn power(&mut self, vm: &Vm) -> Drawn {
        let (manager, dice, call, id) = (&self.manager, &mut self.dice, call(), vm.id);
        let (what, ordered) = match dice.below(5) {
            0 => ("start", manager.start_vm(&call, id, StartRequest { paused: dice.below(3) == 0 }).await),
            1 => {
                let wish = StopRequest { hard: dice.below(2) == 0, ..StopRequest::default() };
                ("stop", manager.stop_vm(&call, id, wish).await)
            }
            2 => ("pause", manager.pause_vm(&call, id).await),
            3 => ("resume", manager.resume_vm(&call, id).await),
            _ => ("start", manager.start_vm(&call, id, StartRequest::default()).await),
        };
        (format!("{what} {}", vm.name), Effect::Nothing, ordered.map(|made| made.id))
    }

    async fn disks(&mut self, vm: &Vm) -> Drawn {
        let (manager, dice, call, id) = (&self.manager, &mut self.dice, call(), vm.id);
        let (what, ordered) = match (dice.below(4), dice.pick(&vm.hardware.disks)) {
            (0, Some(disk)) => (format!("detach {}", disk.name), manager.detach_disk(&call, id, disk.id).await),
            (1 | 2, Some(disk)) => {
                let wish = DiskResize { size: Bytes(4096 * (1 + dice.throw() % 32)), shrink: true };
                (format!("resize {} to {}", disk.name, wish.size), manager.resize_disk(&call, id, disk.id, wish).await)
            }
            _ => {
                let disk = DiskSpec { content: DiskContent::Empty, size: Some(Bytes(1 << 14)), ..DiskSpec::default() };
                ("attach".to_owned(), manager.attach_disk(&call, id, DiskAttach::at(disk, None)).await)
            }
        };
        (format!("{what} of {}", vm.name), Effect::Changes(id), ordered.map(|made| made.id))
    }

    async fn tree(&mut self, snapshot: &Snapshot) -> Drawn {
        let (manager, dice, call) = (&self.manager, &mut self.dice, call());
        let (what, effect, ordered) = match dice.below(6) {
            act @ (0 | 1) => {
                let wish = SnapshotDelete { subtree: act == 1, dry_run: false };
                (
                    format!("delete, subtree {}", act == 1),
                    Effect::Nothing,
                    manager.delete_snapshot(&call, snapshot.id, wish).await,
                )
            }
            act => {
                let (discard_current, start) = (act % 2 == 0, dice.below(2) == 0);
                let wish = Apply { discard_current, start, ..Apply::default() };
                let effect = Effect::Applies { vm: snapshot.vm, snapshot: snapshot.id };
                let ordered = manager.apply_snapshot(&call, snapshot.id, wish).await;
                (format!("apply, discard {discard_current}"), effect, ordered)
            }
        };
        (format!("{what} {} of {}", snapshot.name, snapshot.vm), effect, ordered.map(job))
    }

    /// Clones, forks and templates, and machines that are copies of nothing.
    async fn copy(&mut self, n: usize, vm: &Vm, snapshot: Option<&Snapshot>, found: &Found) -> Drawn {
        let (manager, dice, call) = (&self.manager, &mut self.dice, call());
        let snapshot = snapshot.filter(|_| dice.below(2) == 0).map(|snapshot| snapshot.id);
        match (dice.below(6), found.templates.first()) {
            (0, _) => self.create(n).await,
            (1, Some(template)) => {
                let gone = manager.delete_template(&call, *template).await;
                ("delete a template".to_owned(), Effect::Nothing, gone.map(|made| made.id))
            }
            (1 | 2, _) => {
                let vm_source = TemplateSource::Vm { vm: vm.id };
                let source = snapshot.map_or(vm_source, |snapshot| TemplateSource::Snapshot { snapshot });
                let name = format!("template-{n}").parse().unwrap();
                let what = format!("template-{n} of {source:?}");
                let wish = TemplateCreate { name, description: String::new(), source };
                (what, Effect::Nothing, manager.create_template(&call, wish).await.map(|made| made.id))
            }
            (act, _) => {
                let vm_source = CloneSource::Vm { vm: vm.id };
                let source = snapshot.map_or(vm_source, |snapshot| CloneSource::Snapshot { snapshot });
                let memory = if act < 5 { CloneMemory::Yes } else { CloneMemory::No };
                let what = format!("clone {source:?} as copy-{n}, memory {memory:?}");
                let name = format!("copy-{n}");
                let wish = clone_of(source, &name, memory);
                let captures = snapshot.is_none() && memory == CloneMemory::Yes && runs(vm);
                let captures = captures.then_some(vm.id);
                (
                    what,
                    Effect::Copies { source, name, captures },
                    manager.clone_vm(&call, wish).await.map(|made| made.id),
                )
            }
        }
    }

    /// Nothing is locked or under way; machines do what is said of them; snapshots hold what they held.
    async fn is_at_rest(&mut self) -> Checked {
        let dump = self.site.catalog.read().await.unwrap().dump().await.unwrap();
        at_rest(&json!({ "catalog": dump }))?;
        reconcile::look_at_host(&self.manager).await.map_err(|e| format!("the host cannot be looked at: {e}"))?;
        let found = self.found().await;
        for vm in &found.vms {
            let VmState::At { rest } = vm.state else { continue };
            let does = self.client.vm(vm.id).await;
            let does = match does {
                Ok(status) => rest_of(&status.power),
                Err(e) if e.kind == ErrorKind::NotFound => Rest::Stopped,
                Err(e) => return Err(format!("the host does not say what {} does: {e}", vm.name)),
            };
            if does != rest {
                return Err(format!("{} is said to be {rest}, and is {does}", vm.name));
            }
        }
        for snapshot in found.snapshots.iter().filter(|snapshot| snapshot.state == SnapshotState::Ready) {
            for disk in &snapshot.hardware.disks {
                let holds = self.site.with_agent(|agent| {
                    agent.array(&disk.volume.array).content(&disk.volume.volume, Some(snapshot.id))
                });
                holds.map_err(|e| format!("snapshot {} has lost its disk {}: {e}", snapshot.name, disk.name))?;
                let now = self.site.content(&disk.volume, Some(snapshot.id));
                let then = *self.contents.entry((snapshot.id, disk.volume.clone())).or_insert(now);
                if now != then {
                    return Err(format!("disk {} of snapshot {} is not what it was", disk.name, snapshot.name));
                }
            }
        }
        Ok(())
    }

    /// When all that was left is gone, volumes, their snapshots, machines and memories are those of the catalog.
    async fn holds_what_it_is_to(&mut self) -> Checked {
        reconcile::clear(&self.manager).await.map_err(|e| format!("what is left cannot be deleted: {e}"))?;
        let mut tx = self.site.catalog.read().await.unwrap();
        let left = tx.leftovers().await.unwrap();
        let mut orphans = Vec::new();
        for left in left {
            if !tx.is_wanted(&left).await.unwrap() {
                orphans.push(left);
            }
        }
        if !orphans.is_empty() {
            return Err(format!("it is never cleared away: {orphans:?}"));
        }
        let dump = tx.dump().await.unwrap();
        drop(tx);
        let templates: Vec<keyframe_model::Template> = serde_json::from_value(dump["templates"].clone()).unwrap();
        let found = self.found().await;
        let broken = |vm: &Vm| matches!(vm.state, VmState::Error { .. });
        // What there is to be, whether it must be there, and what is there.
        let (mut may, mut must, mut is) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        let mut names = |name: String, sound: bool| {
            if sound {
                must.insert(name.clone());
            }
            may.insert(name);
        };
        for vm in &found.vms {
            vm.hardware.disks.iter().for_each(|disk| names(format!("volume {}", disk.volume), !broken(vm)));
            let on = !matches!(vm.state, VmState::At { rest: Rest::Stopped });
            if on {
                names(format!("machine {}", vm.id), !broken(vm));
            }
        }
        for snapshot in &found.snapshots {
            let sound = snapshot.state == SnapshotState::Ready;
            for disk in &snapshot.hardware.disks {
                names(format!("volume {}", disk.volume), sound);
                names(format!("volume {} at {}", disk.volume, snapshot.id), sound);
            }
            if snapshot.kind == SnapshotKind::DiskAndMemory {
                names(format!("memory {}", snapshot.id), sound);
            }
        }
        for template in &templates {
            for disk in &template.hardware.disks {
                names(format!("volume {}", disk.volume), true);
                names(format!("volume {} at {}", disk.volume, template.snapshot), true);
            }
        }
        let world = self.site.look().await;
        for volume in world["volumes"].as_array().unwrap() {
            let volume_ref: VolumeRef = serde_json::from_value(volume["volume"].clone()).unwrap();
            is.insert(format!("volume {volume_ref}"));
            for had in volume["had"].as_array().unwrap() {
                is.insert(format!("volume {volume_ref} at {}", had[0].as_str().unwrap()));
            }
        }
        for machine in world["vms"].as_array().unwrap() {
            let vm: VmId = serde_json::from_value(machine[0].clone()).unwrap();
            is.insert(format!("machine {vm}"));
        }
        for file in world["memory"].as_array().unwrap() {
            let file = file.as_str().unwrap();
            is.insert(format!("memory {}", file.split('.').next().unwrap_or(file)));
        }
        let lost: Vec<&String> = must.difference(&is).collect();
        let left: Vec<&String> = is.difference(&may).collect();
        if lost.is_empty() && left.is_empty() { Ok(()) } else { Err(format!("lost: {lost:?}, left: {left:?}")) }
    }
}
