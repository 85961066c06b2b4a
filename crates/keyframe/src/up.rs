//! `keyframe up` and `keyframe down`: everything of one machine, started and ended.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use keyframe_agent::paths::Paths;
use keyframe_agent::pid_file;
use keyframe_manager::request::{HostStatus, HostView, JobView, StopRequest, VmView};
use keyframe_model::agent::{Power, VmId};
use keyframe_model::{Rest, VmState};
use serde_json::{Value, json};

use crate::agent::data_dir;
use crate::cli::{DownArgs, Output, UpArgs};
use crate::manager::token_file;
use crate::remote::client::{Client, Server, socket, typed};
use crate::screen::print;
use crate::strangers::Host;
use crate::{daemon, supervise};

fn own_pid_file(paths: &Paths) -> PathBuf {
    paths.run.join("keyframe.pid")
}

/// Starts everything, unless it runs already; returns when it answers.
pub(crate) fn up(output: &Output, args: &UpArgs) -> Result<()> {
    let data = data_dir(args.data.as_deref())?;
    let paths = Paths::of(&data);
    paths.make()?;
    if args.foreground {
        let _lock = pid_file::hold(&own_pid_file(&paths), "`keyframe up`")?;
        return supervise::run(&data);
    }
    let log = data.join("keyframe.log");
    let was_up = comes_up(&data, &own_pid_file(&paths))?;
    if !was_up {
        // Those of a supervisor before may be about to end, and answer still.
        let ours = |pid| [socket(&data), paths.agent_socket()].iter().all(|socket| daemon::answers(socket, pid));
        daemon::start("up", &data, &log, |pid| ours(pid) && ready(&data).is_some())?;
    }
    let host = ready(&data).context("it was up, and is no longer; see its log")?;
    tell(output, &data, &log, was_up, &host)
}

/// Whether it is up, or is about to be. One that was killed may not be gone yet: that one never answers.
fn comes_up(data: &Path, pid_file: &Path) -> Result<bool> {
    let until = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while pid_file::holder(pid_file).is_some() {
        if ready(data).is_some() && pid_file::holder(pid_file).is_some() {
            return Ok(true);
        }
        anyhow::ensure!(std::time::Instant::now() < until, "it runs, but does not answer; see keyframe.log");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    Ok(false)
}

/// The local host, once manager and agent both answer.
fn ready(data: &Path) -> Option<HostView> {
    let client = Client::to(Server::Socket(socket(data))).ok()?;
    let hosts: Vec<HostView> = typed(&client.get(&["hosts"], &[]).ok()?.value).ok()?;
    hosts.into_iter().find(|host| host.status == HostStatus::Up && host.info.is_some())
}

fn tell(output: &Output, data: &Path, log: &Path, was_up: bool, host: &HostView) -> Result<()> {
    let (socket, token) = (socket(data), token_file(data));
    let http = crate::manager::address(&Paths::of(data)).map(|address| format!("http://{address}"));
    if output.json {
        let told = json!({ "data": data, "socket": socket, "http": http, "token": token, "log": log,
            "already_up": was_up, "host": host });
        return print(&format!("{told}\n"));
    }
    if output.quiet {
        return Ok(());
    }
    let mut list = vec![("data", data.display().to_string()), ("requests", socket.display().to_string())];
    if let Some(http) = http {
        list.push(("", format!("{http}, described at {http}/docs/; token in {}", token.display())));
    }
    if let Some(info) = &host.info {
        list.push(("guests run", crate::remote::accelerator(info)));
        list.push(("hypervisor", info.hypervisor.clone()));
        for array in &info.arrays {
            let (used, all) = (crate::ops::human(array.used.0), crate::ops::human(array.capacity.0));
            list.push(("storage", format!("{} ({}), {used} of {all} used", array.name, array.driver)));
        }
    }
    list.push(("log", log.display().to_string()));
    let mut text = format!("keyframe {}\n", if was_up { "is up already" } else { "is up" });
    for (name, value) in list {
        text.push_str(&format!("  {name:10}  {value}\n"));
    }
    print(&text)
}

/// Ends everything but the machines, and with `--vms` those too.
pub(crate) fn down(output: &Output, args: &DownArgs) -> Result<()> {
    let data = data_dir(args.data.as_deref())?;
    let paths = Paths::of(&data);
    let say = |line: String| match output.quiet || output.json {
        true => Ok(()),
        false => print(&format!("{line}\n")),
    };
    match std::fs::File::open(own_pid_file(&paths)) {
        Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => {
            bail!("whether keyframe is up on {} only its owner can see: {e}", data.display())
        }
        _ => {}
    }
    if pid_file::holder(&own_pid_file(&paths)).is_none() {
        return say(format!("keyframe is not up on {}", data.display()));
    }
    let client = Client::to(Server::Socket(socket(&data)))?;
    let host = Host::of(&paths, &client)?;
    if args.vms {
        stop_machines(&client, &say)?;
        let strangers = known(&client).and_then(|known| host.strangers(&known));
        let strangers =
            strangers.context("whether other machines run cannot be seen; `keyframe down` leaves them alone")?;
        for stranger in strangers {
            host.stop(&stranger)?;
            say(format!("{stranger}: stopped, though this catalog does not have it"))?;
        }
    }
    let left = machines_on(&client);
    let strangers = known(&client).and_then(|known| host.strangers(&known));
    daemon::end(&own_pid_file(&paths))?;
    for stranger in strangers.iter().flatten() {
        say(format!(
            "{stranger}: runs on, and is not in this catalog; `keyframe up` and `keyframe down --vms` stop it"
        ))?;
    }
    let left = left.and_then(|on| Ok(on + strangers?.len()));
    match left {
        Err(e) => say(format!("keyframe is down; which machines run on is not known: {e:#}")),
        Ok(0) => say("keyframe is down".into()),
        Ok(1) => say("keyframe is down; one machine runs on, and pauses when it writes to its disks".into()),
        Ok(left) => say(format!("keyframe is down; {left} machines run on, and pause when they write to their disks")),
    }
}

/// All machines that the manager knows.
fn known(client: &Client) -> Result<BTreeSet<VmId>> {
    client.list(&["vms"], &[], None)?.iter().map(|vm| Ok(typed::<VmView>(vm)?.vm.id)).collect()
}

/// How many machines are not known to be off.
fn machines_on(client: &Client) -> Result<usize> {
    let mut on = 0;
    for vm in client.list(&["vms"], &[], None)? {
        let vm: VmView = typed(&vm)?;
        let off = match vm.vm.state {
            VmState::At { rest } => rest == Rest::Stopped,
            VmState::Gone => true,
            VmState::Busy { .. } => false,
            // Its state does not say; its host may.
            VmState::Error { .. } => {
                let vm: VmView = typed(&client.get(&["vms", &vm.vm.id.to_string()], &[])?.value)?;
                vm.status.is_some_and(|status| status.power == Power::Off)
            }
        };
        on += usize::from(!off);
    }
    Ok(on)
}

/// The machine when nothing is being done to it any more.
fn at_rest(client: &Client, mut vm: VmView) -> Result<VmView> {
    while let VmState::Busy { job, .. } = &vm.vm.state {
        client.watch_job(&job.to_string())?;
        vm = typed(&client.get(&["vms", &vm.vm.id.to_string()], &[])?.value)?;
    }
    Ok(vm)
}

/// All are asked before any is waited for.
fn stop_machines(client: &Client, say: &dyn Fn(String) -> Result<()>) -> Result<()> {
    let mut ordered: Vec<(String, Value)> = Vec::new();
    for vm in client.list(&["vms"], &[], None)? {
        let vm = at_rest(client, typed(&vm)?)?;
        if !matches!(vm.vm.state, VmState::At { rest: Rest::Stopped } | VmState::Gone) {
            // A guest that stands still hears nothing, and one in error may not either.
            let hard = !matches!(vm.vm.state, VmState::At { rest: Rest::Running });
            let wish = StopRequest { hard, ..StopRequest::default() };
            let answer = client.post(&["vms", &vm.vm.id.to_string(), "stop"], &wish)?;
            ordered.push((vm.vm.name.to_string(), answer.value));
        }
    }
    for (name, mut value) in ordered {
        let mut job: JobView = typed(&value)?;
        while !job.state.ended() {
            value = client.watch_job(&job.job.id.to_string())?.value;
            job = typed(&value)?;
        }
        match job.error {
            None => say(format!("{name}: stopped"))?,
            Some(error) => anyhow::bail!("{name}: {}; nothing was ended", error.message),
        }
    }
    Ok(())
}
