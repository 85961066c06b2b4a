//! From wishes to hardware: places, names, addresses and arrays that the caller left open.

use keyframe_model::agent::{Bytes, CreateVolume, Firmware, HostInfo, NicConnection, VolumeRef, VolumeSource};
use keyframe_model::hardware::{Fresh, MAX_DISKS, check_disk_size, parse_mac};
use keyframe_model::{Disk, Hardware, Nic};

use crate::kind::fresh::Random;
use crate::request::{DiskContent, DiskSpec, NicSpec};
use crate::{Error, ErrorKind, Result};

/// The name of the disk that holds the firmware's variables.
const VARIABLES: &str = "efivars";

/// What a new volume is to hold.
pub(crate) fn content(spec: &DiskSpec) -> Result<CreateVolume> {
    if let Some(size) = spec.size {
        check_disk_size(size)?;
    }
    let source = match &spec.content {
        DiskContent::Empty if spec.size.is_none() => {
            let disk = spec.name.as_ref().map_or_else(|| "a disk".to_owned(), |name| format!("disk {name}"));
            let message = format!("{disk} has neither an image nor a size; give it one of them");
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        DiskContent::Empty => VolumeSource::Empty,
        DiskContent::Image { path, format } if path.starts_with('/') => {
            VolumeSource::Image { path: path.clone(), format: *format }
        }
        DiskContent::Image { path, .. } => {
            let message = format!("the image '{}' must be an absolute path on the host", path.escape_debug());
            return Err(Error::new(ErrorKind::Invalid, message));
        }
    };
    Ok(CreateVolume { source, size: spec.size })
}

/// The array that is named, or the first of the host.
pub(crate) fn array(host: &HostInfo, wished: Option<&String>) -> Result<String> {
    match wished {
        Some(name) if host.arrays.iter().any(|array| array.name == *name) => Ok(name.clone()),
        Some(name) => {
            let known: Vec<&str> = host.arrays.iter().map(|array| array.name.as_str()).collect();
            let message = format!("host {} has no array {name}; it has {}", host.name, known.join(", "));
            Err(Error::new(ErrorKind::Invalid, message))
        }
        None => host.arrays.first().map(|array| array.name.clone()).ok_or_else(|| {
            Error::new(ErrorKind::Unsupported, format!("host {} has no array; configure one", host.name))
        }),
    }
}

/// Adds a disk that is to be made.
pub(crate) fn add_disk(
    hardware: &mut Hardware,
    contents: &mut Vec<CreateVolume>,
    host: &HostInfo,
    spec: &DiskSpec,
) -> Result<()> {
    let content = content(spec)?;
    let slot = hardware.disk_place(None)?;
    let name = hardware.disk_name(spec.name.clone(), slot)?;
    let id = Random.disk();
    let volume = VolumeRef { array: array(host, spec.array.as_ref())?, volume: id.to_string() };
    let size = content.size.unwrap_or_default();
    hardware.disks.push(Disk { id, name, slot, volume, size, read_only: spec.read_only, firmware_variables: false });
    contents.push(content);
    Ok(())
}

/// Adds the disk that holds the firmware's variables, where the firmware has any.
pub(crate) fn add_variables(hardware: &mut Hardware, contents: &mut Vec<CreateVolume>, host: &HostInfo) -> Result<()> {
    if hardware.firmware == Firmware::Bios {
        return Ok(());
    }
    let Some(path) = host.uefi_variables.clone() else {
        let message = format!("{} has no UEFI firmware; install OVMF, or choose bios", host.name);
        return Err(Error::new(ErrorKind::Unsupported, message));
    };
    let id = Random.disk();
    let slot = hardware.disk_place(Some(MAX_DISKS - 1))?;
    let name = hardware.disk_name(Some(VARIABLES.parse()?), slot)?;
    let volume = VolumeRef { array: array(host, None)?, volume: id.to_string() };
    let disk = Disk { id, name, slot, volume, size: Bytes(0), read_only: false, firmware_variables: true };
    hardware.disks.push(disk);
    let source = VolumeSource::Image { path, format: Some(keyframe_model::agent::ImageFormat::Raw) };
    contents.push(CreateVolume { source, size: None });
    Ok(())
}

/// All network interfaces as wished: those that the machine has keep their places and addresses.
pub(crate) fn nics(now: &[Nic], wished: &[NicSpec]) -> Result<Vec<Nic>> {
    let mut built = Hardware { nics: Vec::new(), ..empty() };
    for spec in wished {
        let old = spec.id.map(|id| {
            now.iter()
                .find(|nic| nic.id == id)
                .cloned()
                .ok_or_else(|| Error::not_found(format!("network interface {id}"), "nic list VM"))
        });
        let old = old.transpose()?;
        let mac = match (&spec.mac, &old) {
            (Some(mac), _) => parse_mac(mac)?,
            (None, Some(old)) => old.mac.clone(),
            (None, None) => Random.mac(),
        };
        let kept = |slot| now.iter().any(|nic| nic.slot == slot && wished.iter().any(|spec| spec.id == Some(nic.id)));
        let slot = match &old {
            Some(old) => old.slot,
            None => free_place(&built, kept)?,
        };
        let id = old.map_or_else(|| Random.nic(), |old| old.id);
        built.nics.push(Nic { id, slot, mac, connection: spec.connection.clone(), link_up: spec.link_up });
    }
    built.nics.sort_by_key(|nic| nic.slot);
    Ok(built.nics)
}

/// The first place that neither a new interface nor one that is kept has.
fn free_place(built: &Hardware, kept: impl Fn(u8) -> bool) -> Result<u8> {
    let mut taken = built.clone();
    loop {
        let slot = taken.nic_place()?;
        if !kept(slot) {
            return Ok(slot);
        }
        let mac = String::new();
        taken.nics.push(Nic { id: Random.nic(), slot, mac, connection: NicConnection::None, link_up: false });
    }
}

/// The interface of a machine whose maker said nothing.
pub(crate) fn usual_nic() -> NicSpec {
    NicSpec { id: None, connection: NicConnection::User, mac: None, link_up: true }
}

/// Hardware with nothing in it.
pub(crate) fn empty() -> Hardware {
    Hardware {
        machine_type: String::new(),
        generation_id: Random.uuid(),
        cpus: 1,
        memory: Bytes::mib(512),
        firmware: Firmware::Bios,
        direct_boot: None,
        disks: Vec::new(),
        nics: Vec::new(),
        cloud_init: None,
    }
}

/// Whether a machine can consist of this, whose disks may get their sizes from images only when they are made.
pub(crate) fn check(hardware: &Hardware) -> Result<()> {
    let mut sized = hardware.clone();
    for disk in sized.disks.iter_mut().filter(|disk| disk.size == Bytes(0)) {
        disk.size = keyframe_model::hardware::DISK_UNIT;
    }
    Ok(sized.check()?)
}
