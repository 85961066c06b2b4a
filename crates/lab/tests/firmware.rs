//! A machine under UEFI with a seed for cloud-init, made by the command line: its variable store is a disk like the others.

use std::fs;

use anyhow::{Context, Result, ensure};
use keyframe_lab::scratch;
use keyframe_lab::site::{Site, SiteOptions};
use serde_json::Value;

const USER_DATA: &str = "#cloud-config\nhostname: by-hand\n";
/// What the guest finds on the disk that says that it is the seed, without the zeros between its files.
const READ_SEED: &str = "for d in $(ls /sys/block | grep vd); do
    grep -qx cidata /sys/block/$d/serial && exec tr -d '\\000' </dev/$d; done; exit 1";

#[test]
fn a_machine_under_uefi_reads_its_seed_and_goes_back_with_its_variables() -> Result<()> {
    let site = Site::up(&scratch::keyframe()?, &SiteOptions::default())?;
    let seed = site.data().join("user-data");
    fs::write(&seed, USER_DATA)?;
    let more = ["--firmware", "uefi", "--user-data", &seed.display().to_string(), "--nic", "none"];
    let vm = site.create_with("web", "256M", "lab=pages,16", &more)?;
    let variables = store(&vm.show()?)?;
    vm.start()?;
    let firmware = vm.in_guest("ls /sys/firmware/efi")?;
    ensure!(firmware.contains("systab"), "it was not started by UEFI: {firmware}");
    let found = vm.in_guest(READ_SEED)?;
    for part in ["CIDATA", USER_DATA.trim_end(), "local-hostname: web"] {
        ensure!(found.contains(part), "no {part:?} in the seed that the guest sees: {found}");
    }

    let snapshot = vm.snapshot("running", &["--memory"])?;
    ensure!(store(&snapshot)? == variables, "the snapshot has no variables: {snapshot}");
    vm.wait_for_tick(vm.tick()? + 20)?;
    println!("gone back: {:?}", vm.go_back("running", &["--discard-current"])?);
    ensure!(store(&vm.show()?)? == variables, "it has other variables than before");
    ensure!(vm.in_guest(READ_SEED)? == found, "the seed is another one after it");
    vm.sound()?;

    site.json(["clone", &vm.at("running"), "--name", "copy"])?;
    let copied = store(&site.machine("copy")?.show()?)?;
    ensure!(copied != variables, "the clone writes into its source's variables");
    site.wait_until_at_rest()
}

/// The volume with the firmware's variables, of a machine or a snapshot.
fn store(of: &Value) -> Result<Value> {
    let mut disks = of["hardware"]["disks"].as_array().context("there are disks")?.iter();
    let store = disks.find(|disk| disk["firmware_variables"] == true).context("no disk is for variables")?;
    ensure!(store["size"].as_u64().is_some_and(|size| size > 0), "it has no room: {store}");
    Ok(store["volume"].clone())
}
