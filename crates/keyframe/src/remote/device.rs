//! `keyframe disk …` and `keyframe nic …`

use anyhow::{Result, bail};
use keyframe_manager::request::{DiskAttach, DiskResize, NicSpec, VmUpdate, VmView};
use keyframe_model::Nic;
use keyframe_model::agent::Bytes;

use super::vm::{disk_spec, nic_spec, update};
use super::{Remote, typed, view};
use crate::cli::{DiskArgs, DiskCommand, NicArgs, NicCommand, Output};

/// `keyframe disk …`
pub(crate) fn disk(output: &Output, args: &DiskArgs) -> Result<()> {
    let remote = &mut Remote::new(output, &args.remote)?;
    match &args.command {
        DiskCommand::List { vm } => {
            let disks = remote.client.get(&["vms", vm, "disks"], &[])?.value;
            remote.show(&disks, |out| Ok(view::device::disks(&typed::<Vec<_>>(&disks)?, out)?))
        }
        DiskCommand::Attach { vm, disk, slot, wait } => {
            let wish = DiskAttach::at(disk_spec(disk)?, *slot);
            let answer = remote.client.post(&["vms", vm, "disks"], &wish)?;
            remote.finish(&answer, *wait, &format!("{vm}: disk attached"))
        }
        DiskCommand::Detach { vm, disk, wait } => {
            let answer = remote.client.delete(&["vms", vm, "disks", disk], &[])?;
            remote.finish(&answer, *wait, &format!("{vm}: {disk} detached"))
        }
        DiskCommand::Resize { vm, disk, size, shrink, wait } => {
            let wish = DiskResize { size: Bytes(size.0), shrink: *shrink };
            let answer = remote.client.post(&["vms", vm, "disks", disk, "resize"], &wish)?;
            remote.finish(&answer, *wait, &format!("{vm}: {disk} resized to {size}"))
        }
    }
}

/// `keyframe nic …`
pub(crate) fn nic(output: &Output, args: &NicArgs) -> Result<()> {
    let remote = &mut Remote::new(output, &args.remote)?;
    let (vm, wait) = match &args.command {
        NicCommand::List { vm } => {
            let found = remote.client.get(&["vms", vm], &[])?.value;
            let nics = found["hardware"]["nics"].clone();
            return remote.show(&nics, |out| Ok(view::device::nics(&typed::<Vec<_>>(&nics)?, out)?));
        }
        NicCommand::Add { vm, wait, .. }
        | NicCommand::Remove { vm, wait, .. }
        | NicCommand::Plug { vm, wait, .. }
        | NicCommand::Unplug { vm, wait, .. } => (vm, *wait),
    };
    let answer = remote.client.get(&["vms", vm], &[])?;
    let found: VmView = typed(&answer.value)?;
    let mut nics: Vec<NicSpec> = found.vm.hardware.nics.iter().map(kept).collect();
    match &args.command {
        NicCommand::List { .. } => {}
        NicCommand::Add { nic, .. } => nics.push(nic_spec(nic)),
        NicCommand::Remove { nic, .. } => {
            nics.remove(place(&found, nic)?);
        }
        NicCommand::Plug { nic, .. } => nics[place(&found, nic)?].link_up = true,
        NicCommand::Unplug { nic, .. } => nics[place(&found, nic)?].link_up = false,
    }
    let wish = VmUpdate { nics: Some(nics), ..VmUpdate::default() };
    update(remote, vm, &wish, answer.tag.as_deref(), wait)
}

/// An interface that stays as it is.
fn kept(nic: &Nic) -> NicSpec {
    NicSpec { id: Some(nic.id), connection: nic.connection.clone(), mac: Some(nic.mac.clone()), link_up: nic.link_up }
}

/// Where in the list an interface is, by its place in the machine or its address.
fn place(vm: &VmView, name: &str) -> Result<usize> {
    let is = |nic: &Nic| nic.slot.to_string() == name || nic.mac.eq_ignore_ascii_case(name);
    match vm.vm.hardware.nics.iter().position(is) {
        Some(index) => Ok(index),
        None => bail!("{} has no network interface {name}; `keyframe nic list {}` shows them", vm.vm.name, vm.vm.name),
    }
}
