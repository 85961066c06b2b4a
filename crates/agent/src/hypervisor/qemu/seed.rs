//! The volume from which cloud-init's NoCloud source reads: a small FAT file system labelled `CIDATA`.
//!
//! The same data makes the same bytes, so that a machine resumed from memory finds what its guest has cached.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::Path;

use fatfs::{FileSystem, FormatVolumeOptions, FsOptions, format_volume};
use keyframe_agent_api::{CloudInit, Machine};

/// Room for the file system itself.
const OVERHEAD: u64 = 256 << 10;

/// Writes the volume to `path`.
pub(super) fn write(path: &Path, machine: &Machine, data: &CloudInit) -> io::Result<()> {
    let own = || format!("instance-id: {}\nlocal-hostname: {}\n", machine.uuid, machine.name);
    let meta = data.meta_data.clone().unwrap_or_else(own);
    let mut files = vec![("meta-data", meta.as_str()), ("user-data", data.user_data.as_str())];
    if let Some(network) = &data.network_config {
        files.push(("network-config", network));
    }
    let content: u64 = files.iter().map(|(_, text)| text.len() as u64).sum();
    let mut volume = File::options().create(true).truncate(true).read(true).write(true).open(path)?;
    volume.set_len((content + OVERHEAD).next_multiple_of(64 << 10))?;
    format_volume(&mut volume, FormatVolumeOptions::new().volume_label(*b"CIDATA     ").volume_id(0x6b66))?;
    volume.seek(SeekFrom::Start(0))?;
    let system = FileSystem::new(&mut volume, FsOptions::new())?;
    for (name, text) in files {
        system.root_dir().create_file(name)?.write_all(text.as_bytes())?;
    }
    system.unmount()
}
