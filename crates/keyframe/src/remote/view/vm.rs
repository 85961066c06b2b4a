//! Machines.

use std::io::{self, Write};

use keyframe_manager::request::VmView;
use keyframe_model::VmState;
use keyframe_model::agent::{Bytes, CloudInit};

use super::{fields, moment, or_dash, print, size, word};

pub(in crate::remote) fn list(vms: &[VmView], space: bool, out: &mut impl Write) -> io::Result<()> {
    let mut heading = vec!["VM", "STATE", "CPUS", "MEMORY", "DISKS", "CREATED (UTC)"];
    if space {
        heading.splice(5..5, ["UNIQUE", "WOULD FREE"]);
    }
    let row = |view: &VmView| {
        let (vm, disks) = (&view.vm, view.vm.hardware.disks.iter().map(|disk| disk.size).sum::<Bytes>());
        let mut row = vec![
            vm.name.to_string(),
            vm.state.to_string(),
            vm.hardware.cpus.to_string(),
            size(vm.hardware.memory),
            size(disks),
            moment(vm.created),
        ];
        if space {
            let takes =
                |of: fn(&keyframe_manager::request::VmSpace) -> Bytes| or_dash(view.space.as_ref().map(of).map(size));
            row.splice(5..5, [takes(|space| space.unique), takes(|space| space.would_free)]);
        }
        row
    };
    print(&heading, vms.iter().map(row).collect(), out)
}

/// Which files its seed has. What is in them may be secret.
fn files(seed: &CloudInit) -> String {
    let given = |file: &'static str, there: bool| there.then_some(file);
    let all = [
        given("user-data", !seed.user_data.is_empty()),
        given("meta-data", seed.meta_data.is_some()),
        given("network-config", seed.network_config.is_some()),
    ];
    all.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

pub(in crate::remote) fn show(view: &VmView, out: &mut impl Write) -> io::Result<()> {
    let vm = &view.vm;
    let mut list = vec![("vm", vm.name.to_string()), ("id", vm.id.to_string()), ("state", vm.state.to_string())];
    if let VmState::Error { trouble } = &vm.state {
        list.push(("reason", trouble.reason.clone()));
    }
    if !vm.description.is_empty() {
        list.push(("description", vm.description.clone()));
    }
    list.push(("created (utc)", moment(vm.created)));
    list.push(("generation", vm.generation.to_string()));
    list.push(("processors", vm.hardware.cpus.to_string()));
    list.push(("memory", size(vm.hardware.memory)));
    list.push(("firmware", word(vm.hardware.firmware)));
    list.push(("machine type", vm.hardware.machine_type.clone()));
    list.extend(vm.hardware.direct_boot.as_ref().map(|boot| ("kernel", boot.kernel.clone())));
    list.extend(vm.hardware.cloud_init.as_ref().map(|seed| ("cloud-init", files(seed))));
    for disk in &vm.hardware.disks {
        let note = if disk.read_only { ", read-only" } else { "" };
        list.push((
            "disk",
            format!("{} at {}: {} on {}{note}", disk.name, disk.slot, size(disk.size), disk.volume.array),
        ));
    }
    for nic in &vm.hardware.nics {
        let cable = if nic.link_up { "" } else { ", cable out" };
        list.push(("nic", format!("{} at {}: {}{cable}", nic.mac, nic.slot, super::device::leads(&nic.connection))));
    }
    list.extend(view.snapshots.map(|count| ("snapshots", count.to_string())));
    list.extend(view.current_name.as_ref().map(|name| ("current", name.to_string())));
    if let Some(status) = &view.status {
        list.extend(status.pid.map(|pid| ("process", pid.to_string())));
        let how = if status.emulated { "emulated" } else { "kvm" };
        list.extend(status.hypervisor.clone().map(|name| ("hypervisor", format!("{name}, {how}"))));
        if status.memory_pending.0 > 0 {
            list.push(("memory to come", size(status.memory_pending)));
        }
        list.extend(status.vnc.clone().map(|socket| ("vnc", socket)));
    }
    if let Some(space) = &view.space {
        list.push(("referenced", size(space.referenced)));
        list.push(("unique", size(space.unique)));
        list.push(("would free", size(space.would_free)));
    }
    let allowed: Vec<String> = view.allowed.iter().map(|activity| word(*activity)).collect();
    list.push(("allowed now", allowed.join(", ")));
    list.extend(vm.notice.as_ref().map(|notice| ("noticed (utc)", moment(notice.at))));
    list.extend(view.notices.iter().map(|notice| ("notice", notice.clone())));
    fields(&list, out)
}
