//! Hosts, tokens, and what a search found.

use std::collections::HashMap;
use std::io::{self, Write};

use keyframe_api::{SearchView, TokenView};
use keyframe_manager::request::HostView;
use keyframe_model::agent::{Accelerator, HostInfo, VmId};

use super::{fields, moment, or_dash, print, size, word};

/// How guests are run.
pub(crate) fn accelerator(info: &HostInfo) -> String {
    match &info.accelerator {
        Accelerator::Kvm => "by the processor (KVM)".into(),
        Accelerator::Emulation { reason } => format!("emulated, many times slower: {reason}"),
    }
}

pub(in crate::remote) fn list(hosts: &[HostView], out: &mut impl Write) -> io::Result<()> {
    let row = |host: &HostView| {
        let info = host.info.as_ref();
        let runs = info.map(|info| match info.accelerator {
            Accelerator::Kvm => "kvm",
            Accelerator::Emulation { .. } => "emulation",
        });
        vec![
            host.name.clone(),
            word(host.status),
            or_dash(runs.map(str::to_owned)),
            or_dash(info.map(|info| info.cpus.to_string())),
            or_dash(info.map(|info| size(info.memory))),
            or_dash(info.map(|info| info.hypervisor.clone())),
        ]
    };
    print(&["HOST", "STATUS", "GUESTS", "CPUS", "MEMORY", "HYPERVISOR"], hosts.iter().map(row).collect(), out)
}

pub(in crate::remote) fn show(host: &HostView, out: &mut impl Write) -> io::Result<()> {
    let mut list = vec![("host", host.name.clone()), ("status", word(host.status))];
    list.extend(host.seen.map(|at| ("seen (utc)", moment(at))));
    if let Some(info) = &host.info {
        list.push(("name", info.name.clone()));
        list.push(("agent", info.agent.clone()));
        list.push(("hypervisor", info.hypervisor.clone()));
        list.push(("guests run", accelerator(info)));
        list.push(("processors", info.cpus.to_string()));
        list.push(("memory", size(info.memory)));
        list.push(("uefi", if info.uefi { "yes" } else { "no" }.to_owned()));
        list.push(("room for memory", size(info.memory_free)));
        for array in &info.arrays {
            let (used, all) = (size(array.used), size(array.capacity));
            list.push(("array", format!("{} ({}): {used} of {all} used", array.name, array.driver)));
        }
    }
    list.extend(host.notices.iter().map(|notice| ("notice", notice.clone())));
    fields(&list, out)
}

pub(in crate::remote) fn tokens(tokens: &[TokenView], out: &mut impl Write) -> io::Result<()> {
    let row = |token: &TokenView| {
        vec![
            token.name.clone(),
            moment(token.created),
            or_dash(token.expires.map(moment)),
            or_dash(token.used.map(moment)),
        ]
    };
    print(&["TOKEN", "CREATED (UTC)", "EXPIRES (UTC)", "USED (UTC)"], tokens.iter().map(row).collect(), out)
}

pub(in crate::remote) fn found(
    found: &SearchView,
    machines: &HashMap<VmId, String>,
    out: &mut impl Write,
) -> io::Result<()> {
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut add = |kind: &str, name: String, id: String, about: &str| {
        rows.push(vec![name, kind.to_owned(), id, about.lines().next().unwrap_or("").to_owned()]);
    };
    for view in &found.vms {
        add("vm", view.vm.name.to_string(), view.vm.id.to_string(), &view.vm.description);
    }
    for view in &found.snapshots {
        add(
            "snapshot",
            super::snapshot::full_name(view, machines),
            view.snapshot.id.to_string(),
            &view.snapshot.description,
        );
    }
    for view in &found.templates {
        add("template", view.template.name.to_string(), view.template.id.to_string(), &view.template.description);
    }
    print(&["NAME", "KIND", "ID", "ABOUT"], rows, out)?;
    if found.more { writeln!(out, "there is more; look in the lists") } else { Ok(()) }
}
