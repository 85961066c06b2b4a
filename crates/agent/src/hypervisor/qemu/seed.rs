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

#[cfg(test)]
mod tests {
    use std::io::Read;

    use keyframe_agent_api::{Bytes, Firmware};

    use super::*;

    #[test]
    fn the_volume_holds_what_cloud_init_looks_for() -> io::Result<()> {
        let machine = Machine {
            name: "web".into(),
            uuid: uuid::Uuid::from_u128(7),
            generation_id: uuid::Uuid::nil(),
            machine_type: String::new(),
            cpus: 1,
            memory: Bytes(0),
            firmware: Firmware::Bios,
            direct_boot: None,
            disks: Vec::new(),
            nics: Vec::new(),
            cloud_init: None,
        };
        let user_data = format!("#cloud-config\n{}", "#".repeat(300_000));
        let data =
            CloudInit { user_data: user_data.clone(), meta_data: None, network_config: Some("version: 2".into()) };
        let dir = tempfile::tempdir()?;
        let paths = [dir.path().join("one"), dir.path().join("two")];
        for path in &paths {
            write(path, &machine, &data)?;
        }
        assert!(std::fs::read(&paths[0])? == std::fs::read(&paths[1])?, "two seeds of the same data differ");
        let system = FileSystem::new(File::options().read(true).write(true).open(&paths[0])?, FsOptions::new())?;
        assert_eq!(system.volume_label_as_bytes(), b"CIDATA");
        let read = |name: &str| -> io::Result<String> {
            let mut text = String::new();
            system.root_dir().open_file(name)?.read_to_string(&mut text)?;
            Ok(text)
        };
        assert_eq!(read("user-data")?, user_data);
        let meta = "instance-id: 00000000-0000-0000-0000-000000000007\nlocal-hostname: web\n";
        assert_eq!(read("meta-data")?, meta);
        assert_eq!(read("network-config")?, "version: 2");
        Ok(())
    }
}
