//! A manager whose catalog is in PostgreSQL: killed in the middle of a job, and left without its database.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use keyframe_lab::postgres::Postgres;
use keyframe_lab::process::run_tool;
use keyframe_lab::scratch;
use keyframe_lab::site::{PATIENCE, Role, Site, SiteOptions, runs};
use serde_json::Value;

const DATABASE: &str = "keyframe";
/// Longer than any pause of the manager's after a failure.
const SOON: Duration = Duration::from_secs(30);
/// As long as a restart of the database takes that nobody is to notice.
const MOMENT: Duration = Duration::from_secs(1);

#[test]
fn jobs_outlive_the_manager_and_the_database() -> Result<()> {
    let postgres = Postgres::start()?;
    let catalog = postgres.create(DATABASE)?;
    let options =
        SiteOptions { manager: format!("listen = \"off\"\ncatalog = \"{catalog}\""), ..SiteOptions::default() };
    let site = Site::up(&scratch::keyframe()?, &options)?;
    let vm = site.boot("web", "128M", "lab=pages,16")?;
    vm.snapshot("one", &["--memory"])?;
    let later = vm.tick()? + 20;
    vm.wait_for_tick(later)?;
    vm.snapshot("two", &[])?;

    the_manager_is_killed_in_the_middle(&site)?;
    let tick = vm.tick()?;
    ensure!(tick < later, "the guest is at tick {tick}, and was to go back to before {later}");
    vm.sound()?;
    let tree = site.run(["snapshot", "tree", "web"])?;
    let (one, two) = (tree.find("one"), tree.find("two"));
    ensure!(one.is_some() && one < two && tree.contains("* web is here"), "{tree}");
    site.wait_until_at_rest()?;

    ensure!(!site.data().join("catalog.db").exists(), "there is a catalog in a file, too");
    let known = postgres.ask(DATABASE, "SELECT count(*) FROM snapshots")?;
    ensure!(known.trim() == "2", "PostgreSQL knows of {known} snapshots");

    let process = vm.pid()?;
    the_database_is_restarted(&site, &postgres)?;
    the_database_is_gone_for_a_while(&site, &postgres)?;
    both_are_gone(&site, &postgres)?;
    a_manager_without_its_database_says_so(&site, &postgres)?;
    ensure!(runs(process), "the machine was ended with the database");
    vm.wait_for_tick(vm.tick()? + 1)?;
    site.wait_until_at_rest()
}

fn succeeded(job: &Value) -> Result<()> {
    ensure!(job["state"] == "succeeded", "{job}");
    Ok(())
}

fn the_manager_is_killed_in_the_middle(site: &Site) -> Result<()> {
    let order = ["snapshot", "apply", "web@one", "--discard-current"];
    let mut held = site.hold(&order, "snapshot-apply 2 before")?;
    ensure!(held.reached, "the job has ended: {}", site.job(&held.job)?);
    site.kill(Role::Manager)?;
    held.release()?;
    site.wait_until_up()?;
    succeeded(&site.ended(&held.job)?)
}

/// Nobody who asks in that moment hears of it.
fn the_database_is_restarted(site: &Site, postgres: &Postgres) -> Result<()> {
    for line in [&["vm", "list"][..], &["vm", "set", "web", "--description", "while it was away"]] {
        postgres.crash()?;
        let asked = site.command(line).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        std::thread::sleep(MOMENT);
        postgres.recover()?;
        let output = asked.wait_with_output()?;
        ensure!(output.status.success(), "{line:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

/// What a program is told that asks while it is gone.
fn is_told_to_come_back(site: &Site) -> Result<()> {
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--include", "--unix-socket"]);
    let answer = run_tool(command.arg(site.data().join("run/manager.sock")).arg("http://keyframe/v1/vms"))?;
    let said = answer.to_lowercase();
    for part in ["503", "retry-after: ", "application/problem+json", "database"] {
        ensure!(said.contains(part), "no '{part}' in {answer}");
    }
    Ok(())
}

/// It is gone while a job is between two steps: the job waits for it.
fn the_database_is_gone_for_a_while(site: &Site, postgres: &Postgres) -> Result<()> {
    let manager = site.pid(Role::Manager)?;
    let mut held = site.hold(&["disk", "attach", "web", "size=8M,name=more"], "disk-attach 0 after")?;
    ensure!(held.reached, "the job has ended: {}", site.job(&held.job)?);
    postgres.crash()?;
    held.release()?;
    let refusal = site.refusal(["vm", "list"])?;
    println!("without its database: {refusal}");
    ensure!(refusal.contains("database") || refusal.contains("catalog"), "nobody could guess from it: {refusal}");
    is_told_to_come_back(site)?;
    postgres.recover()?;
    site.wait_until(SOON, || site.run(["vm", "list"]).map(drop))?;
    succeeded(&site.ended(&held.job)?)?;
    ensure!(site.pid(Role::Manager)? == manager, "it took another manager");
    site.run(["snapshot", "create", "web@three", "--memory"])?;
    site.wait_until_at_rest()
}

/// The manager that died cannot begin again before its database does.
fn both_are_gone(site: &Site, postgres: &Postgres) -> Result<()> {
    let mut held = site.hold(&["disk", "detach", "web", "more"], "disk-detach 0 before")?;
    ensure!(held.reached, "the job has ended: {}", site.job(&held.job)?);
    postgres.crash()?;
    site.kill(Role::Manager)?;
    held.release()?;
    site.wait_until(PATIENCE, || {
        let log = site.log();
        ensure!(log.contains("cannot open the catalog on PostgreSQL"), "no manager has tried to begin: {log}");
        Ok(())
    })?;
    postgres.recover()?;
    site.wait_until_up()?;
    succeeded(&site.ended(&held.job)?)
}

fn a_manager_without_its_database_says_so(site: &Site, postgres: &Postgres) -> Result<()> {
    site.down()?;
    postgres.crash()?;
    let refusal = site.refusal(["up"])?;
    println!("to begin without it: {refusal}");
    for reason in refusal.split(": ").filter(|part| part.len() > 15) {
        ensure!(refusal.matches(reason).count() == 1, "'{reason}' is said twice: {refusal}");
    }
    ensure!(refusal.contains("database") || refusal.contains("catalog"), "nobody could guess from it: {refusal}");
    postgres.recover()?;
    site.start().context("with its database again")?;
    site.wait_until(PATIENCE, || site.check_at_rest())
}
