//! The memory of a guest under another version of QEMU than the one it was taken from.
//!
//! `KEYFRAME_OLDER_QEMU` names an older QEMU than the one that is installed; otherwise Debian 12's is unpacked into the
//! scratch folder, where apt has it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
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
cat >qemu <<END
#!/bin/sh
export QEMU_MODULE_DIR="$0/$(echo usr/lib/*/qemu)"
exec "$0/usr/bin/qemu-system-x86_64" -L /usr/share/seabios -L /usr/share/qemu "\$@"
END
chmod +x qemu
rm -rf "$0"; mv "$0.new" "$0""#;
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
    let older = site.data().join("older-qemu");
    let script = format!(
        "#!/bin/sh\n[ \"$1\" != --version ] || {{ echo 'QEMU emulator version {PRETENDED}'; exit; }}\nexec {INSTALLED} \"$@\"\n"
    );
    fs::write(&older, script)?;
    fs::set_permissions(&older, fs::Permissions::from_mode(0o755))?;

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

/// An older QEMU, if this host can have one.
fn older_qemu() -> Result<PathBuf> {
    if let Some(named) = std::env::var_os("KEYFRAME_OLDER_QEMU") {
        return Ok(named.into());
    }
    let folder = scratch::folder()?.join("qemu-older");
    let program = folder.join("qemu");
    if !program.exists() {
        run_tool(Command::new("sh").args(["-c", UNPACK]).arg(&folder).args(OLDER))?;
    }
    // It uses the libraries and the firmware of this system, which may be too old or too new.
    version(&program).map(|_| program)
}

#[test]
fn a_machine_of_an_older_qemu_goes_on_without_its_memory_in_a_newer_one_and_back() -> Result<()> {
    let older = match older_qemu() {
        Ok(older) => older,
        Err(why) => {
            println!("SKIPPED: there is no older QEMU here: {why:#}");
            return Ok(());
        }
    };
    let installed = Path::new(INSTALLED);
    let versions = [version(&older)?, version(installed)?];
    let versions = [versions[0].as_str(), versions[1].as_str()];
    println!("from {} to {}", versions[0], versions[1]);
    let site = Site::up(&scratch::keyframe()?, &SiteOptions::default())?;
    change(&site, installed, &older)?;
    let vm = site.create("web", "128M", BUSY)?;
    // Its options are newer than that QEMU.
    vm.act("nic", "remove", &["0"])?;
    vm.start()?;
    vm.next_stamp()?;
    vm.snapshot("older", &["--memory"])?;

    change(&site, &older, installed)?;
    is_refused(&site, &vm, "older", versions)?;
    boots_from(&vm, "older")?;

    change(&site, installed, &older)?;
    goes_on(&vm, "older")?;
    site.wait_until_at_rest()
}
