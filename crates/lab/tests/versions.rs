//! The memory of a guest under another version of QEMU than the one it was taken from, or one that can do less.
//!
//! `KEYFRAME_OLDER_QEMU` names an older QEMU than the one that is installed; otherwise Debian 12's is unpacked into the
//! scratch folder, where apt has it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use keyframe_lab::console::Mark;
use keyframe_lab::machine::Machine;
use keyframe_lab::process::run_tool;
use keyframe_lab::scratch;
use keyframe_lab::site::{PATIENCE, Site, SiteOptions};

const INSTALLED: &str = "qemu-system-x86_64";
/// What a QEMU says that is the installed one in truth.
const PRETENDED: &str = "7.2.22";
const OLDER: [&str; 2] = ["qemu-system-x86=1:7.2*", "qemu-system-common=1:7.2*"];
const UNPACK: &str = r#"set -e
rm -rf "$0.new"; mkdir "$0.new"; cd "$0.new"
apt-get -q=2 -o APT::Sandbox::User=root download "$@" >/dev/null
for deb in *.deb; do dpkg -x "$deb" .; done
rm -rf "$0"; mv "$0.new" "$0""#;
/// Runs it, with the firmware of this system.
const RUN: &str = r#"#!/bin/sh
here=$(dirname "$0")
export QEMU_MODULE_DIR="$(echo "$here"/usr/lib/*/qemu)"
exec "$here/usr/bin/qemu-system-x86_64" -L /usr/share/seabios -L /usr/share/qemu -L /usr/lib/ipxe/qemu "$@"
"#;
const BUSY: &str = "lab=stamp";

/// `10.0.2` of a QEMU.
fn version(program: &Path) -> Result<String> {
    let said = run_tool(Command::new(program).arg("--version"))?;
    let version = said.split_once("version ").and_then(|(_, rest)| rest.split_whitespace().next());
    version.map(str::to_owned).with_context(|| format!("{} does not say its version: {said}", program.display()))
}

/// Has the agent use another QEMU from now on. Machines run on in the one that they have.
fn change(site: &Site, from: &Path, to: &Path) -> Result<()> {
    site.down()?;
    let file = site.data().join("keyframe.toml");
    let text = fs::read_to_string(&file)?;
    let others: Vec<&str> = text.lines().filter(|line| !line.starts_with("qemu = ")).collect();
    let text = others.join("\n").replace("[agent]", &format!("[agent]\nqemu = \"{}\"", to.display()));
    fs::write(file, text)?;
    // Whether KVM works does not depend on it, and trying takes its time where it does not.
    let answer = site.data().join("vms/accelerator.json");
    if answer.exists() {
        let known = fs::read_to_string(&answer)?;
        fs::write(&answer, known.replace(&format!(" {}\"", version(from)?), &format!(" {}\"", version(to)?)))?;
    }
    site.start()?;
    site.wait_until_up()
}

/// The memory in a snapshot cannot be used, the machine does not suffer from the attempt.
fn is_refused(site: &Site, vm: &Machine<'_>, name: &str, versions: [&str; 2]) -> Result<()> {
    let process = vm.pid()?;
    let at = vm.at(name);
    for line in [&["snapshot", "apply", &at][..], &["clone", &at, "--memory", "--name", "fork"]] {
        let refused = site.refusal(line)?;
        println!("{}: {refused}", line.join(" "));
        for part in versions.iter().chain(&["without"]) {
            ensure!(refused.contains(part), "`{}` does not say {part:?}: {refused}", line.join(" "));
        }
    }
    ensure!(vm.pid()? == process, "it is another process after a refusal");
    vm.next_stamp().context("it does not run on after a refusal").map(drop)
}

#[test]
fn memory_of_a_newer_qemu_is_refused_with_both_versions_and_its_disks_can_be_applied() -> Result<()> {
    let site = Site::up(&scratch::keyframe()?, &SiteOptions::default())?;
    let installed = Path::new(INSTALLED);
    let newer = version(installed)?;
    let text = format!(
        "#!/bin/sh\n[ \"$1\" != --version ] || {{ echo 'QEMU emulator version {PRETENDED}'; exit; }}\nexec {INSTALLED} \"$@\"\n"
    );
    let older = script(&site.data().join("older-qemu"), &text)?;

    let vm = site.boot("web", "128M", BUSY)?;
    vm.next_stamp()?;
    vm.snapshot("newer", &["--memory"])?;
    change(&site, installed, &older)?;
    is_refused(&site, &vm, "newer", [&newer, PRETENDED])?;
    // The host has another QEMU now, the machine runs in the one it was started in.
    vm.snapshot("still-newer", &["--memory"])?;
    is_refused(&site, &vm, "still-newer", [&newer, PRETENDED])?;

    boots_from(&vm, "newer")?;
    change(&site, &older, installed)?;
    goes_on(&vm, "still-newer")?;
    site.wait_until_at_rest()
}

/// The disks of a snapshot can be used without its memory.
fn boots_from(vm: &Machine<'_>, name: &str) -> Result<()> {
    let from = vm.console().mark();
    vm.apply(name, &["--without-memory", "--start"])?;
    vm.ready(from)?;
    vm.next_stamp().map(drop)
}

/// A snapshot with memory can be applied, and the guest does not boot.
fn goes_on(vm: &Machine<'_>, name: &str) -> Result<()> {
    vm.apply(name, &[])?;
    let booted = vm.expect(vm.console().mark(), PATIENCE, "STAMP", |line| {
        let booted = line.starts_with("GUEST-READY");
        (booted || line.starts_with("STAMP ")).then_some(booted)
    })?;
    ensure!(!booted, "it went on without the memory of {name}");
    Ok(())
}

/// Writes a program.
fn script(file: &Path, text: &str) -> Result<PathBuf> {
    fs::write(file, text)?;
    fs::set_permissions(file, fs::Permissions::from_mode(0o755))?;
    Ok(file.to_owned())
}

/// An older QEMU, if this host can have one.
fn older_qemu() -> Result<PathBuf> {
    if let Some(named) = std::env::var_os("KEYFRAME_OLDER_QEMU") {
        return Ok(named.into());
    }
    let folder = scratch::folder()?.join("qemu-older");
    if !folder.join("usr").exists() {
        run_tool(Command::new("sh").args(["-c", UNPACK]).arg(&folder).args(OLDER))?;
    }
    let program = script(&folder.join("qemu"), RUN)?;
    // It uses the libraries and the firmware of this system, which may be too old or too new.
    version(&program).map(|_| program)
}

#[test]
fn a_machine_of_an_older_qemu_goes_on_in_a_newer_one_and_back() -> Result<()> {
    let older = match older_qemu() {
        Ok(older) => older,
        Err(why) => {
            println!("SKIPPED: there is no older QEMU here: {why:#}");
            return Ok(());
        }
    };
    let installed = Path::new(INSTALLED);
    let versions = [version(&older)?, version(installed)?];
    println!("from {} to {}", versions[0], versions[1]);
    let site = Site::up(&scratch::keyframe()?, &SiteOptions::default())?;
    change(&site, installed, &older)?;
    let vm = site.boot("web", "128M", BUSY)?;
    vm.next_stamp()?;
    vm.snapshot("older", &["--memory"])?;

    change(&site, &older, installed)?;
    goes_on(&vm, "older")?;
    site.run(["snapshot", "verify", &vm.at("older")])?;
    vm.snapshot("newer", &["--memory"])?;

    change(&site, installed, &older)?;
    is_refused(&site, &vm, "newer", [&versions[1], &versions[0]])?;
    let verified = site.refusal(["snapshot", "verify", &vm.at("newer")])?;
    ensure!(verified.contains("not loadable here") && !verified.contains("damaged"), "{verified}");
    goes_on(&vm, "older")?;
    site.wait_until_at_rest()
}

/// A QEMU that says to be newer, and makes a machine of another type than its memory is of, as often as there are files beside it:
/// it refuses what it reads.
const BREAKS_ITS_PROMISE: &str = r#"#!/bin/sh
[ "$1" != --version ] || { echo 'QEMU emulator version 99.0.0'; exit; }
case "$*" in *-incoming*) if rm "$0.once" 2>/dev/null || rm "$0.twice" 2>/dev/null; then
    n=$#
    for word; do
        case $word in *pc-q35-*) word=$(printf %s "$word" | sed 's/pc-q35-[0-9.]*/pc-q35-8.2/') ;; esac
        set -- "$@" "$word"
    done
    shift $n
fi ;; esac
exec qemu-system-x86_64 "$@"
"#;

#[test]
fn a_memory_that_a_newer_qemu_refuses_after_all_costs_the_running_guest_nothing() -> Result<()> {
    let site = Site::up(&scratch::keyframe()?, &SiteOptions::default())?;
    let newer = script(&site.data().join("newer-qemu"), BREAKS_ITS_PROMISE)?;
    let vm = site.boot("web", "128M", BUSY)?;
    vm.next_stamp()?;
    vm.snapshot("older", &["--memory"])?;
    change(&site, Path::new(INSTALLED), &newer)?;
    // It is tried once more, because a process may have been killed.
    for often in ["once", "twice"] {
        fs::write(site.data().join(format!("newer-qemu.{often}")), "")?;
    }
    let before = vm.next_stamp()?;
    let refused = site.refusal(["snapshot", "apply", &vm.at("older")])?;
    println!("{refused}");
    ensure!(refused.contains("Machine type received"), "QEMU's reason is not said: {refused}");
    let after = vm.next_stamp()?;
    ensure!(after > before, "the guest was at stamp {before}, and goes on at {after}");
    vm.sound()?;
    goes_on(&vm, "older")?;
    site.wait_until_at_rest()
}

/// A QEMU that is not let watch its memory, as in a container: so it can neither protect it nor let it come later.
const CANNOT_TRACK: &str = r#"#!/bin/sh
exec unshare --mount sh -c 'mount --bind /dev/null /dev/userfaultfd 2>/dev/null
    exec setpriv --bounding-set=-sys_ptrace qemu-system-x86_64 "$@"' sh "$@"
"#;

#[test]
fn where_memory_cannot_be_tracked_a_guest_stands_still_until_it_is_stored_and_that_is_said() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: only root can keep a process from tracking memory");
        return Ok(());
    }
    let site = Site::up(&scratch::keyframe()?, &SiteOptions::default())?;
    let poor = script(&site.data().join("poor-qemu"), CANNOT_TRACK)?;
    change(&site, Path::new(INSTALLED), &poor)?;
    let vm = site.boot("web", "128M", "lab=stamp lab=pages,16")?;
    vm.counters(Mark::default())?;
    let shown = vm.snapshot("still", &["--memory"])?;
    ensure!(shown["report"]["method"] == "stopped", "{shown}");
    let said = site.run(["snapshot", "show", &vm.at("still")])?;
    ensure!(said.contains("guest stopped until its memory was written"), "{said}");
    let tick = vm.tick()?;
    vm.wait_for_tick(tick + 20)?;
    println!("{:?}", vm.go_back("still", &[])?);
    vm.counters(vm.console().mark())?;
    // Storing its memory ends nothing: it can be taken again, and goes on.
    site.run(["vm", "pause", "web"])?;
    for name in ["rest", "rest-again"] {
        let shown = vm.snapshot(name, &["--memory"])?;
        ensure!(shown["report"]["method"] == "at-rest", "{shown}");
    }
    site.run(["vm", "resume", "web"])?;
    vm.counters(vm.console().mark())?;
    site.check_at_rest()
}
