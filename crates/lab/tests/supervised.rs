//! Whoever is killed is there again within seconds, machines run on; systemd can read the units that do it elsewhere.

use std::fs::File;
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use keyframe_lab::scratch;
use keyframe_lab::site::{Role, Site, SiteOptions, runs};

/// From the kill until everything answers: the pause before a restart, a replayed journal, and the manager's next look.
const SECONDS: Duration = Duration::from_secs(15);
const UNITS: [&str; 2] = ["keyframe-agent.service", "keyframe-manager.service"];

#[test]
fn who_was_killed_is_there_again_within_seconds_and_machines_run_on() -> Result<()> {
    let site = Site::up(&scratch::keyframe()?, &SiteOptions::default())?;
    let small = ["--memory", "32M", "--disk", "size=8M", "--nic", "none", "--start"];
    site.run(["vm", "create", "web"].iter().chain(&small))?;
    let machine = site.machine("web")?.pid()?;
    for role in [Role::Agent, Role::Manager] {
        let before = site.pid(role)?;
        site.kill(role)?;
        let began = Instant::now();
        site.wait_until(SECONDS, || {
            let now = site.pid(role)?;
            ensure!(now != before && runs(now), "there is no other {role:?}");
            Ok(())
        })?;
        site.wait_until_up()?;
        let took = began.elapsed();
        println!("{role:?}: there again after {took:?}");
        ensure!(took < SECONDS, "the {role:?} was away for {took:?}");
        ensure!(runs(machine), "the machine went with the {role:?}");
        site.run(["snapshot", "create", &format!("web@after-{role:?}"), "--memory"])?;
        ensure!(site.machine("web")?.pid()? == machine, "another process runs the machine");
    }
    site.wait_until_at_rest()
}

/// A call that waits for a guest holds the pool open for a moment after its agent was told to end.
#[test]
fn who_comes_next_waits_until_the_last_one_has_let_go_of_the_pool() -> Result<()> {
    let site = Site::up(&scratch::keyframe()?, &SiteOptions::default())?;
    site.run(["vm", "create", "web", "--memory", "32M", "--disk", "size=8M", "--nic", "none", "--start"])?;
    // It has no system that would obey.
    let order = ["vm", "stop", "web", "--deadline", "10s", "--no-wait"];
    site.run(order)?;
    let waits = |job: &serde_json::Value| job["kind"] == "vm-stop" && job["state"] == "running";
    site.wait_until(SECONDS, || {
        let jobs = site.json(["job", "list"])?;
        ensure!(jobs.as_array().is_some_and(|jobs| jobs.iter().any(waits)), "it is not being stopped: {jobs}");
        Ok(())
    })?;
    site.kill(Role::Supervisor)?;
    site.start()?;
    site.wait_until_at_rest()
}

/// The kernel has room for 107 bytes of a socket's path.
#[test]
fn a_data_directory_with_a_long_path_is_like_any_other() -> Result<()> {
    let work = scratch::work_folder()?;
    let under = work.path().join("x".repeat(120));
    std::fs::create_dir(&under)?;
    let site = Site::up(&scratch::keyframe()?, &SiteOptions { under: Some(under), ..SiteOptions::default() })?;
    site.run(["vm", "create", "web", "--memory", "32M", "--disk", "size=8M", "--nic", "none", "--start"])?;
    site.run(["snapshot", "create", "web@before", "--memory"])?;
    site.run(["snapshot", "apply", "web@before"])?;
    // The pool is reached through its own socket, too, and at rest it is asked by that.
    site.run(["pool", "info"])?;
    site.wait_until_at_rest()
}

/// As on a full disk, when not even the log has room.
#[test]
fn nobody_needs_a_log_that_can_be_written() -> Result<()> {
    let site = Site::up(&scratch::keyframe()?, &SiteOptions::default())?;
    site.down()?;
    let log = site.data().join("keyframe.log");
    std::fs::remove_file(&log)?;
    symlink("/dev/full", &log)?;
    site.start()?;
    // Each order is logged, and who is started anew is told of.
    site.run(["vm", "create", "web", "--memory", "32M", "--disk", "size=8M", "--nic", "none", "--start"])?;
    for role in [Role::Agent, Role::Manager] {
        let supervisor = site.pid(Role::Supervisor)?;
        site.kill(role)?;
        site.wait_until_up()?;
        ensure!(site.pid(Role::Supervisor)? == supervisor, "the supervisor went with the {role:?}");
        let at = format!("web@after-{role:?}");
        site.run(["snapshot", "create", &at, "--memory"])?;
        site.run(["snapshot", "apply", &at, "--discard-current"])?;
    }
    let mut refused = site.command(["vm", "show", "nobody"]);
    let status = refused.stdout(Stdio::null()).stderr(File::options().write(true).open("/dev/full")?).status()?;
    ensure!(status.code() == Some(1), "a refusal that cannot be said ends with {status}");
    site.wait_until_at_rest()
}

#[test]
fn systemd_understands_our_units() -> Result<()> {
    let systemd = Command::new("systemd-analyze").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !systemd.is_ok_and(|status| status.success()) {
        println!("skipped: there is no systemd-analyze here");
        return Ok(());
    }
    let (work, program) = (scratch::work_folder()?, scratch::keyframe()?);
    let mut files = Vec::new();
    for unit in UNITS {
        let from = scratch::checkout()?.join("contrib").join(unit);
        let text = std::fs::read_to_string(&from).with_context(|| format!("read {}", from.display()))?;
        // It wants the program to be there; where it is installed to is not the question.
        let here = text.replace("ExecStart=/usr/bin/keyframe ", &format!("ExecStart={} ", program.display()));
        ensure!(here != text, "{unit} does not start /usr/bin/keyframe");
        std::fs::write(work.path().join(unit), here)?;
        files.push(work.path().join(unit));
    }
    let output = Command::new("systemd-analyze").args(["verify", "--man=no"]).args(&files).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    // It looks at the units of this host, too, and complains of those.
    let ours: Vec<&str> = said.lines().filter(|line| UNITS.iter().any(|unit| line.contains(unit))).collect();
    ensure!(ours.is_empty() && output.status.success(), "systemd-analyze: {} {said}", output.status);
    Ok(())
}
