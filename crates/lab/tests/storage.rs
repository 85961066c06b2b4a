//! Pools and volumes without a control plane, under a machine that is ours: snapshot, clone, wreck and revert it, and prove
//! after each step that it worked.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use keyframe_lab::scene::{Pair, Scene};
use keyframe_lab::stamps::{Journal, Stamps};
use keyframe_lab::steps::{Steps, human, spread};
use keyframe_lab::vm::Vm;

/// Taken of the running machine.
const SNAPSHOTS: usize = 12;
/// The file systems of every so many are checked; the stamps are in all.
const FILE_SYSTEMS_EVERY: usize = 4;

/// The file system's tables, its journal and the system's programs.
const WRECKED_MIB: u64 = 32;
const QUIET: &str = "quiet";

#[test]
fn a_running_machine_is_snapshotted_cloned_wrecked_and_reverted() -> Result<()> {
    let mut steps = Steps::default();
    let scene = steps.run("prepare the guest, make a pool and serve it", || {
        Ok((Scene::open(&keyframe_lab::scratch::keyframe()?)?, "pool of 4 GiB".into()))
    })?;
    let names: Vec<String> = (1..=SNAPSHOTS).map(|i| format!("s{i:03}")).collect();
    let original = begin(&mut steps, &scene, &names)?;
    let [reverted, clone] = clone_wreck_revert(&mut steps, &scene, &names, original)?;
    check_all(&mut steps, &scene, &names, FILE_SYSTEMS_EVERY)?;
    steps.run("check that the reverted machine and the clone still run", || {
        let (one, other) = (scene.next_stamp(&reverted, 0)?, scene.next_stamp(&clone, 0)?);
        Ok(((), format!("at stamps {one} and {other}")))
    })?;
    let root = Pair::original().root;
    let tree = scene.store.tree(&root)?;
    println!("\nTree of the root disk, with what each node holds alone\n{tree}");
    steps.run("end both machines and the server", || {
        reverted.kill()?;
        clone.kill()?;
        Ok((scene.store.close()?, "in order".into()))
    })?;
    println!("\n{}", steps.table());
    Ok(())
}

/// From images to a running machine with snapshots. Returns the machine.
fn begin(steps: &mut Steps, scene: &Scene, names: &[String]) -> Result<Vm> {
    steps.run("import the root and data disk of a guest", || Ok((scene.import()?, "256 MiB + 64 MiB".into())))?;
    let mut vm = steps.run("boot a machine from them over NBD", || {
        let (vm, _, ready) = scene.boot("original", &Pair::original())?;
        Ok((vm, format!("guest up after {}; it numbers its writes to both disks", human(ready))))
    })?;
    steps.run(&format!("take {} snapshots of both disks while it writes", names.len()), || {
        let times = take_snapshots(scene, &vm, names)?;
        Ok(((), format!("each, as the caller sees it: {}", spread(&times))))
    })?;
    steps.run("take one with the guest's file systems frozen", || {
        let held = snapshot_frozen(scene, &mut vm)?;
        Ok(((), format!("guest held for {}", human(held))))
    })?;
    Ok(vm)
}

/// Returns the reverted machine and the clone, both running.
fn clone_wreck_revert(steps: &mut Steps, scene: &Scene, names: &[String], original: Vm) -> Result<[Vm; 2]> {
    let middle = &names[names.len() / 2];
    let clone = steps.run(&format!("clone {middle} and boot the clone beside the original"), || {
        let (clone, cloned, ready) = boot_clone(scene, &original, middle)?;
        Ok((clone, format!("cloned in {}, up after {}; both run", human(cloned), human(ready))))
    })?;
    steps.run(&format!("overwrite {WRECKED_MIB} MiB of the original's root disk, cut its power"), || {
        wreck(scene, original)?;
        Ok(((), "garbage where the system was".into()))
    })?;
    let back = &names[names.len() / 4];
    let reverted = steps.run(&format!("revert to {back} and boot again"), || {
        let (vm, reverted, ready) = revert(scene, back)?;
        let remark = format!("reverted in {}, up after {}, all data as of {back}", human(reverted), human(ready));
        Ok((vm, remark))
    })?;
    Ok([reverted, clone])
}

/// All snapshots must have outlived the revert, those newer than the one reverted to included.
fn check_all(steps: &mut Steps, scene: &Scene, names: &[String], file_systems_every: usize) -> Result<()> {
    let stamps = steps.run("check that every snapshot shows one instant", || {
        let stamps = check_stamps(scene, names)?;
        let remark =
            format!("{} of {} do; stamps {} to {}", stamps.len(), names.len(), stamps[0].a, stamps[stamps.len() - 1].a);
        Ok((stamps, remark))
    })?;
    steps.run("check file systems and data in the snapshots", || {
        let checked = check_file_systems(scene, file_systems_every, names, &stamps)?;
        Ok(((), format!("{checked} snapshots without fault, the newest included")))
    })
}

/// Waits for a new stamp before each one, so that no two snapshots may be equal.
fn take_snapshots(scene: &Scene, vm: &Vm, names: &[String]) -> Result<Vec<Duration>> {
    let mut times = Vec::new();
    for name in names {
        scene.next_stamp(vm, 0)?;
        times.push(scene.snapshot(&Pair::original(), name)?);
    }
    Ok(times)
}

/// Freeze, snapshot, thaw; thawed also when the snapshot fails. Returns how long the guest was held.
fn snapshot_frozen(scene: &Scene, vm: &mut Vm) -> Result<Duration> {
    let agent = vm.agent()?;
    let began = Instant::now();
    let frozen = agent.freeze()?;
    let taken = scene.snapshot(&Pair::original(), QUIET);
    agent.thaw()?;
    let held = began.elapsed();
    taken?;
    ensure!(frozen == 2, "{frozen} file systems were frozen, there are two");
    Ok(held)
}

/// Clones a snapshot and boots the clone. Returns it with the times for cloning and booting.
fn boot_clone(scene: &Scene, original: &Vm, snapshot: &str) -> Result<(Vm, Duration, Duration)> {
    let from = Pair::original().at(snapshot);
    let to = Pair::original().named("clone");
    let expected = scene.stamps(&from)?;
    let began = Instant::now();
    scene.clone_pair(&from, &to)?;
    let cloned = began.elapsed();
    let (clone, found, ready) = scene.boot("clone", &to)?;
    ensure!(found == expected, "the clone starts from {found:?}, the snapshot holds {expected:?}");
    let clone_at = scene.next_stamp(&clone, found.a)?;
    let original_at = scene.next_stamp(original, found.a)?;
    ensure!(original_at > clone_at, "the original has fallen behind its clone: {original_at}, {clone_at}");
    Ok((clone, cloned, ready))
}

fn wreck(scene: &Scene, mut vm: Vm) -> Result<()> {
    let from = vm.console().mark();
    vm.tell(&format!("wreck {WRECKED_MIB}"))?;
    // Not `expect`: the writer's complaints are what is wanted here.
    vm.console()
        .wait_for(from, Duration::from_secs(30), "WRECKED", |line| line.starts_with("WRECKED").then_some(()))?;
    vm.kill()?;
    let amid = (WRECKED_MIB / 2) << 20;
    let wrecked = scene.is_wrecked(&Pair::original().root, amid)?;
    ensure!(wrecked, "the garbage is not on the disk");
    Ok(())
}

/// Reverts to a snapshot and boots. Returns the machine with the times for reverting and booting.
fn revert(scene: &Scene, snapshot: &str) -> Result<(Vm, Duration, Duration)> {
    let volumes = Pair::original();
    let expected = scene.stamps(&volumes.at(snapshot))?;
    let began = Instant::now();
    scene.revert(&volumes.at(snapshot))?;
    let reverted = began.elapsed();
    let (vm, found, ready) = scene.boot("reverted", &volumes).context("boot after the revert")?;
    ensure!(found == expected, "after the revert the disks hold {found:?}, the snapshot holds {expected:?}");
    Ok((vm, reverted, ready))
}

/// The stamps of all snapshots, which must grow from each to the next.
fn check_stamps(scene: &Scene, names: &[String]) -> Result<Vec<Stamps>> {
    let mut all: Vec<Stamps> = Vec::new();
    for name in names {
        let stamps = scene.stamps(&Pair::original().at(name))?;
        if let Some(before) = all.last() {
            ensure!(stamps.a > before.a, "{name} holds stamp {}, the snapshot before it {}", stamps.a, before.a);
        }
        all.push(stamps);
    }
    Ok(all)
}

/// Returns how many snapshots were checked; the last one and the frozen one always are.
fn check_file_systems(scene: &Scene, every: usize, names: &[String], stamps: &[Stamps]) -> Result<usize> {
    let mut checked = 0;
    for (i, (name, stamps)) in names.iter().zip(stamps).enumerate() {
        if i % every.max(1) == 0 || i + 1 == names.len() {
            scene.check_file_systems(&Pair::original().at(name), *stamps, Journal::MayNeedReplay)?;
            checked += 1;
        }
    }
    let quiet = Pair::original().at(QUIET);
    scene.check_file_systems(&quiet, scene.stamps(&quiet)?, Journal::Clean).context("the frozen snapshot")?;
    Ok(checked + 1)
}
