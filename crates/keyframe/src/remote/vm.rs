//! `keyframe vm …`

use std::path::Path;

use anyhow::{Context, Result};
use keyframe_manager::request::{
    DiskContent, DiskSpec, NicSpec, StartRequest, StopRequest, VmCreate, VmSource, VmUpdate,
};
use keyframe_model::agent::{Bytes, CloudInit, DirectBoot, Firmware, Micros, NicConnection};
use serde_json::{Value, json};

use super::client::Client;
use super::{Remote, flag, typed, view};
use crate::cli::{
    Cable, DiskText, FirmwareName, NicText, Output, VmArgs, VmCommand, VmCreateArgs, VmListArgs, VmsArgs,
};
use crate::failure;

/// `keyframe vm …`
pub(crate) fn vm(output: &Output, args: &VmArgs) -> Result<()> {
    let remote = &mut Remote::new(output, &args.remote)?;
    match &args.command {
        VmCommand::Create(args) => create(remote, args),
        VmCommand::List(args) => list(remote, args),
        VmCommand::Show { vm } => {
            let found = remote.client.get(&["vms", vm], &[])?.value;
            remote.show(&found, |out| Ok(view::vm::show(&typed(&found)?, out)?))
        }
        VmCommand::Start { vms, paused, wait } => {
            let wish = StartRequest { paused: *paused };
            act(remote, &VmsArgs { vms: vms.clone(), wait: *wait }, "start", &json!(wish), "started")
        }
        VmCommand::Stop { vms, hard, deadline, never_hard, wait } => {
            let wish = StopRequest { hard: *hard, deadline: deadline.map(Micros::from), never_hard: *never_hard };
            act(remote, &VmsArgs { vms: vms.clone(), wait: *wait }, "stop", &json!(wish), "stopped")
        }
        VmCommand::Reset(args) => act(remote, args, "reset", &json!({}), "reset"),
        VmCommand::Pause(args) => act(remote, args, "pause", &json!({}), "paused"),
        VmCommand::Resume(args) => act(remote, args, "resume", &json!({}), "resumed"),
        VmCommand::Rename { vm, new } => {
            let wish = VmUpdate { name: Some(new.parse()?), ..VmUpdate::default() };
            update(remote, vm, &wish, None, crate::cli::WaitArgs::default())
        }
        VmCommand::Set { vm, description, cpus, memory, wait } => {
            let memory = memory.map(|memory| Bytes(memory.0));
            let wish = VmUpdate { description: description.clone(), cpus: *cpus, memory, ..VmUpdate::default() };
            update(remote, vm, &wish, None, *wait)
        }
        VmCommand::Delete { vms, force, dry_run, wait } => {
            let query: Vec<_> = flag("force", *force).into_iter().chain(flag("dry_run", *dry_run)).collect();
            let json = remote.json;
            each(json, vms, |vm| {
                let answer = remote.client.delete(&["vms", vm], &query)?;
                match dry_run {
                    true => remote.plan(&answer.value, vm),
                    false => remote.finish(&answer, *wait, &format!("{vm}: deleted")),
                }
            })
        }
    }
}

/// Does it to every one, whatever becomes of the others; says of all failures but the last, which is the result.
fn each<T>(json: bool, all: impl IntoIterator<Item = T>, mut act: impl FnMut(T) -> Result<()>) -> Result<()> {
    let mut last = Ok(());
    for one in all {
        if let Err(error) = act(one)
            && let Err(before) = std::mem::replace(&mut last, Err(error))
        {
            failure::tell(&before, json);
        }
    }
    last
}

/// The same for each of some machines; all are ordered before any is waited for.
fn act(remote: &mut Remote, args: &VmsArgs, verb: &str, wish: &Value, done: &str) -> Result<()> {
    let (json, mut ordered) = (remote.json, Vec::new());
    let refused = each(json, &args.vms, |vm| {
        ordered.push((vm, remote.client.post(&["vms", vm, verb], wish)?));
        Ok(())
    });
    let ended = each(json, ordered, |(vm, answer)| remote.finish(&answer, args.wait, &format!("{vm}: {done}")));
    each(json, [refused, ended], |result| result)
}

/// A change that is made at once, or by a job. Lists are replaced as wholes, so whoever has read one to make another of it says
/// what the tag was then.
pub(super) fn update(
    remote: &mut Remote,
    vm: &str,
    wish: &VmUpdate,
    tag: Option<&str>,
    wait: crate::cli::WaitArgs,
) -> Result<()> {
    let answer = remote.client.patch(&["vms", vm], wish, tag)?;
    if super::as_job(&answer.value).is_some() {
        return remote.finish(&answer, wait, &format!("{vm}: changed"));
    }
    if remote.json {
        return remote.show(&answer.value, |_| Ok(()));
    }
    Ok(())
}

fn list(remote: &mut Remote, args: &VmListArgs) -> Result<()> {
    let mut query: Vec<(&str, String)> = flag("space", args.space).into_iter().collect();
    query.extend(args.state.clone().map(|state| ("state", state)));
    query.extend(args.search.clone().map(|word| ("search", word)));
    let items = Value::Array(remote.client.list(&["vms"], &query, args.limit.limit)?);
    remote.show(&items, |out| Ok(view::vm::list(&typed::<Vec<_>>(&items)?, args.space, out)?))
}

fn create(remote: &mut Remote, args: &VmCreateArgs) -> Result<()> {
    let wish = wish(&remote.client, args)?;
    let answer = remote.client.post(&["vms"], &wish)?;
    let said = if args.start { "made and started" } else { "made" };
    remote.finish(&answer, args.wait, &format!("{}: {said}", args.name))
}

fn wish(client: &Client, args: &VmCreateArgs) -> Result<VmCreate> {
    let source = match (&args.template, &args.snapshot) {
        (Some(template), _) => Some(VmSource::Template { template: client.id("templates", template)? }),
        (None, Some(snapshot)) => Some(VmSource::Snapshot { snapshot: client.id("snapshots", snapshot)? }),
        (None, None) => None,
    };
    let image = args.image.as_ref().map(|image| DiskText { image: Some(image.clone()), ..DiskText::default() });
    let disks = image.iter().chain(&args.disks).map(disk_spec).collect::<Result<_>>()?;
    let nics: Vec<NicSpec> = args.nics.iter().map(nic_spec).collect();
    let direct_boot = match &args.kernel {
        None => None,
        Some(kernel) => Some(DirectBoot {
            kernel: host_path(kernel)?,
            initrd: args.initrd.as_deref().map(host_path).transpose()?,
            command_line: args.append.clone(),
        }),
    };
    Ok(VmCreate {
        name: args.name.parse()?,
        description: args.description.clone(),
        source,
        cpus: args.cpus,
        memory: args.memory.map(|memory| Bytes(memory.0)),
        firmware: args.firmware.map(|firmware| match firmware {
            FirmwareName::Bios => Firmware::Bios,
            FirmwareName::Uefi => Firmware::Uefi,
        }),
        disks,
        nics: Some(nics).filter(|nics| !nics.is_empty()),
        cloud_init: cloud_init(args)?,
        direct_boot,
        start: args.start,
    })
}

fn cloud_init(args: &VmCreateArgs) -> Result<Option<CloudInit>> {
    let read = |file: &Option<std::path::PathBuf>| -> Result<Option<String>> {
        let Some(file) = file else { return Ok(None) };
        std::fs::read_to_string(file).map(Some).with_context(|| format!("cannot read {}", file.display()))
    };
    let (user, meta, network) = (read(&args.user_data)?, read(&args.meta_data)?, read(&args.network_config)?);
    if user.is_none() && meta.is_none() && network.is_none() {
        return Ok(None);
    }
    let user_data = user.unwrap_or_else(|| "#cloud-config\n".into());
    Ok(Some(CloudInit { user_data, meta_data: meta, network_config: network }))
}

/// The host has another working directory.
fn host_path(path: &Path) -> Result<String> {
    let path = std::path::absolute(path).with_context(|| format!("cannot use the path {}", path.display()))?;
    path.into_os_string().into_string().map_err(|path| anyhow::anyhow!("the path {} is not UTF-8", path.display()))
}

/// What was typed as a disk.
pub(super) fn disk_spec(disk: &DiskText) -> Result<DiskSpec> {
    let content = match &disk.image {
        Some(image) => DiskContent::Image { path: host_path(image)?, format: None },
        None => DiskContent::Empty,
    };
    Ok(DiskSpec {
        name: disk.name.as_deref().map(str::parse).transpose()?,
        content,
        size: disk.size.map(Bytes),
        array: disk.array.clone(),
        read_only: disk.read_only,
    })
}

/// What was typed as a network interface.
pub(super) fn nic_spec(nic: &NicText) -> NicSpec {
    let connection = match &nic.cable {
        Cable::User => NicConnection::User,
        Cable::None => NicConnection::None,
        Cable::Bridge { name, vlan } => NicConnection::Bridge { bridge: name.clone(), vlan: *vlan },
        Cable::Isolated(network) => NicConnection::Isolated { network: network.clone() },
    };
    NicSpec { id: None, connection, mac: nic.mac.clone(), link_up: !nic.down }
}
