//! Snapshots for which the guest is asked to make its file systems clean, and what happens when it cannot.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use keyframe_lab::console::Mark;
use keyframe_lab::machine::Machine;
use keyframe_lab::process::run_tool;
use keyframe_lab::scratch;
use keyframe_lab::site::{Site, SiteOptions};

/// What a guest agent that does not answer may take in these tests, what one that does, and what a refusal may take besides.
const DEADLINE: &str = "3s";
const PATIENT: &str = "30s";
const REFUSED_WITHIN: Duration = Duration::from_secs(20);
/// How often a guest that writes on may be believed, because it came to no write while that was listened for: on a host that
/// is busy with much else, now and then.
const BELIEVED: usize = 4;

#[test]
fn a_quiesced_snapshot_needs_no_journal_replay_and_an_agent_that_fails_leaves_nothing_frozen() -> Result<()> {
    let site = Site::up(&scratch::keyframe()?, &SiteOptions::default())?;
    let vm = site.boot("web", "256M", "lab=stamp")?;
    vm.expect(Mark::default(), Duration::from_secs(60), "the log's first records", |line| {
        keyframe_lab::machine::number_after("STAMP ", line).filter(|stamp| *stamp > 40)
    })?;
    let clean = vm.snapshot("clean", &["--quiesce", "required", "--deadline", PATIENT])?;
    ensure!(clean["report"]["guest"]["answer"] == "frozen", "the guest was not frozen: {clean}");
    ensure!(clean["consistency"] == "filesystem", "not called consistent: {clean}");
    ensure!(vm.next_stamp().is_ok(), "the guest stays frozen");
    vm.run("sync")?;

    // It takes every byte and answers none.
    vm.run("kill -STOP $(cat /run/qga.pid)")?;
    fails_as_it_should(&site, &vm, "hangs", "does not answer", DEADLINE)?;
    vm.run("kill -CONT $(cat /run/qga.pid)")?;
    let again = vm.snapshot("again", &["--quiesce", "required", "--deadline", PATIENT])?;
    ensure!(again["consistency"] == "filesystem", "not called consistent: {again}");

    vm.run("kill -KILL $(cat /run/qga.pid)")?;
    fails_as_it_should(&site, &vm, "dead", "does not answer", DEADLINE)?;

    liar(&vm, "0 thawed", || fails_as_it_should(&site, &vm, "says-nothing-froze", "0, but it is not frozen", PATIENT))?;
    liar(&vm, "2 thawed", || fails_as_it_should(&site, &vm, "says-it-froze", "2, but it is not frozen", PATIENT))?;
    liar(&vm, "2 right", || {
        // Several, so that one of them is nearly always heard.
        let write = "dd if=/dev/zero of=/data/on$n bs=512 count=16000 oflag=direct conv=notrunc 2>/dev/null";
        vm.run(&format!("for n in 1 2; do (while [ ! -e /run/end ]; do {write}; done; rm /data/on$n) & done"))?;
        let judged = is_found_out(&site, &vm);
        vm.run("touch /run/end; killall -KILL dd; while ls /data/on* >/dev/null 2>&1; do usleep 20000; done; sync")?;
        judged
    })?;
    vm.run("qemu-ga -d -m virtio-serial -p /dev/virtio-ports/org.qemu.guest_agent.0 -t /run -f /run/qga.pid")?;
    let honest = vm.snapshot("honest", &["--quiesce", "required", "--deadline", PATIENT])?;
    ensure!(honest["consistency"] == "filesystem", "not called consistent: {honest}");
    vm.run("sync; touch /data/alive; sync")?;

    journals(&site, &vm, "clean", false)?;
    journals(&site, &vm, "again", false)?;
    journals(&site, &vm, "honest", false)?;
    // The control: the same look at a snapshot that nobody prepared finds a journal to replay.
    journals(&site, &vm, "dead", true)
}

/// Answers every call at once: so many file systems frozen, as the first word says, in the state of the second, or in the one
/// that they should be in.
const LIAR: &str = r#"
state=$2
exec 3<>/dev/virtio-ports/org.qemu.guest_agent.0
while :; do
    # The port reports end of file while nobody listens on the host.
    read -r line <&3 || { usleep 20000; continue; }
    case $line in
    *guest-sync*) printf '\377{"return":%s}\n' "$(echo "${line##*id}" | tr -dc 0-9)" >&3 ;;
    *fsfreeze-freeze*) [ $2 != right ] || state=frozen; echo "{\"return\":$1}" >&3 ;;
    *fsfreeze-thaw*) [ $2 != right ] || state=thawed; echo "{\"return\":$1}" >&3 ;;
    *fsfreeze-status*) echo "{\"return\":\"$state\"}" >&3 ;;
    *) echo '{"return":0}' >&3 ;;
    esac
done
"#;

/// Puts the liar where the guest agent was, for as long as `meanwhile` takes.
fn liar(vm: &Machine<'_>, says: &str, meanwhile: impl FnOnce() -> Result<()>) -> Result<()> {
    vm.run(&format!("echo {} | base64 -d >/run/liar", STANDARD.encode(LIAR)))?;
    vm.run(&format!("{{ sh /run/liar {says} </dev/null >/dev/null 2>&1 & echo $! >/run/liar.pid; }}"))?;
    let done = meanwhile().with_context(|| format!("with an agent that lies: {says}"));
    vm.run("kill -KILL $(cat /run/liar.pid)")?;
    done
}

/// Required: refused in time. Preferred: taken all the same. The guest writes on after both.
fn fails_as_it_should(site: &Site, vm: &Machine<'_>, name: &str, why: &str, deadline: &str) -> Result<()> {
    let began = Instant::now();
    let target = vm.at("never");
    let refused = site.refusal(["snapshot", "create", &target, "--quiesce", "required", "--deadline", deadline])?;
    let took = began.elapsed();
    println!("{name}: refused after {took:?}: {refused}");
    ensure!(took < REFUSED_WITHIN, "it took {took:?} to refuse");
    ensure!(refused.contains(why), "the reason is not named: {refused}");
    ensure!(site.run(["snapshot", "show", &target]).is_err(), "there is a snapshot all the same");
    vm.run("sync; touch /data/alive; sync")?;

    let taken = vm.snapshot(name, &["--quiesce", "preferred", "--deadline", deadline])?;
    ensure!(taken["consistency"] == "crash", "it says more than is true: {taken}");
    let guest = &taken["report"]["guest"];
    ensure!(guest["answer"] == "failed" && guest["reason"].as_str().is_some_and(|why| !why.is_empty()), "why? {guest}");
    vm.run("sync; touch /data/alive; sync")?;
    vm.next_stamp().map(drop)
}

/// Only its writes betray it.
fn is_found_out(site: &Site, vm: &Machine<'_>) -> Result<()> {
    let (name, why) = ("says-all-that-is-right", "its disks are written to");
    for _ in 0..BELIEVED {
        match fails_as_it_should(site, vm, name, why, PATIENT) {
            Ok(()) => return Ok(()),
            Err(error) => println!("{name}: believed: {error:#}"),
        }
        for taken in ["never", name].map(|name| vm.at(name)) {
            if site.run(["snapshot", "show", &taken]).is_ok() {
                site.run(["snapshot", "delete", &taken])?;
            }
        }
    }
    fails_as_it_should(site, vm, name, why, PATIENT)
}

/// Looks at every disk of a snapshot with tools that are not ours.
fn journals(site: &Site, vm: &Machine<'_>, snapshot: &str, to_replay: bool) -> Result<()> {
    let shown = site.json(["snapshot", "show", &vm.at(snapshot)])?;
    let id = shown["id"].as_str().context("a snapshot has an id")?;
    let disks = shown["hardware"]["disks"].as_array().context("a snapshot has disks")?;
    ensure!(disks.len() == 2, "there are {} disks", disks.len());
    let image = site.data().join("exported");
    for disk in disks {
        let volume = disk["volume"]["volume"].as_str().context("a disk has a volume")?;
        let target = format!("{volume}@{id}");
        let mut export = site.command(["volume", "export", &target]);
        run_tool(export.arg(&image).arg("--control").arg(site.data().join("pool.kf.control")))?;
        let features = run_tool(Command::new("dumpe2fs").arg("-h").arg(&image))?;
        let recover = features.contains("needs_recovery");
        ensure!(recover == to_replay, "disk {} of {snapshot}: a journal to replay: {recover}", disk["name"]);
        if !to_replay {
            run_tool(Command::new("e2fsck").arg("-fn").arg(&image))?;
        }
        std::fs::remove_file(&image)?;
    }
    Ok(())
}
