//! Small files that survive a power failure or are not there: written beside their name, synced, renamed, the folder synced.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FallocateFlags, RenameFlags, fallocate, renameat_with};
use rustix::io::Errno;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::fault;
use crate::life::Life;

/// A folder of such files.
#[derive(Clone, Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    life: Life,
}

impl Folder {
    /// Makes the folder if need be, readable by its owner only.
    pub(crate) fn open(path: PathBuf, life: Life) -> crate::Result<Folder> {
        make(&path).map_err(|error| fault::of_io(format_args!("make {}", path.display()), &error))?;
        Ok(Folder { path, life })
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The value stored under a name. A file that does not parse is an error: it was written whole.
    pub(crate) fn read<T: DeserializeOwned>(&self, name: &str) -> crate::Result<Option<T>> {
        let path = self.file(name);
        let failed = |error: &io::Error| fault::of_io(format_args!("read {}", path.display()), error);
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| failed(&error.into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed(&error)),
        }
    }

    /// Stores a value durably.
    pub(crate) fn write(&self, name: &str, value: &impl Serialize) -> crate::Result<()> {
        self.life.check()?;
        let path = self.file(name);
        let store = || {
            make(path.parent().unwrap_or(&self.path))?;
            let beside = path.with_extension("new");
            let mut file = File::create(&beside)?;
            file.write_all(&serde_json::to_vec_pretty(value)?)?;
            file.sync_all()?;
            fs::rename(&beside, &path)?;
            sync_parent(&path)
        };
        store().map_err(|error| fault::of_io(format_args!("write {}", path.display()), &error))
    }

    /// Removes a value durably; what is not there is a success.
    pub(crate) fn remove(&self, name: &str) -> crate::Result<()> {
        self.life.check()?;
        remove_file(&self.file(name))
    }
}

/// Holds some room in a folder, for what must be written there when its file system is full: stopping a machine writes.
const SPARE: &str = ".spare";
/// Its size; less where there is no room for that.
const SPARE_SIZES: [u64; 4] = [256 << 10, 128 << 10, 64 << 10, 16 << 10];

/// Runs what replaces a small file below a folder; on a full file system once more, in the room that the folder holds.
pub(crate) fn with_spare<T, E>(
    folder: &Path,
    is_full: impl Fn(&E) -> bool,
    write: impl Fn() -> Result<T, E>,
) -> Result<T, E> {
    let spare = folder.join(SPARE);
    let mut done = write();
    if done.as_ref().is_err_and(is_full) && fs::remove_file(&spare).is_ok() {
        done = write();
    }
    if !fs::metadata(&spare).is_ok_and(|held| held.len() >= SPARE_SIZES[SPARE_SIZES.len() - 1]) {
        // The room of what was replaced is free now, so there is enough for the next time.
        let hold =
            |size: &u64| File::create(&spare).and_then(|file| Ok(fallocate(file, FallocateFlags::empty(), 0, *size)?));
        SPARE_SIZES.iter().find(|size| hold(size).is_ok());
    }
    done
}

/// Removes a file durably; what is not there is a success.
pub(crate) fn remove_file(path: &Path) -> crate::Result<()> {
    match fs::remove_file(path) {
        Ok(()) => sync_parent(path),
        // A file system that may only be read says so before it looks.
        Err(_) if is_absent(path) => Ok(()),
        Err(error) => Err(error),
    }
    .map_err(|error| fault::of_io(format_args!("remove {}", path.display()), &error))
}

fn is_absent(path: &Path) -> bool {
    path.symlink_metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// Gives a whole, synced file the name that it is to have, durably, unless something bears that name.
pub(crate) fn place_new(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // Not every file system can do that; whoever calls has looked.
        Err(Errno::INVAL | Errno::NOSYS) => fs::rename(from, to)?,
        done => done?,
    }
    sync_parent(to)
}

fn make(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// A rename or removal lasts when its folder is on disk.
fn sync_parent(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Needs the right to mount.
    #[test]
    fn what_is_not_there_need_not_be_removed_from_what_may_only_be_read() {
        let dir = tempfile::tempdir().expect("a folder");
        let run = |words: &[&str]| Command::new(words[0]).args(&words[1..]).arg(dir.path()).status();
        if !run(&["mount", "-t", "tmpfs", "none"]).is_ok_and(|status| status.success()) {
            println!("SKIPPED: a file system that may only be read needs the right to mount one");
            return;
        }
        let file = dir.path().join("image");
        fs::write(&file, b"memory").expect("there is room");
        let read_only = run(&["mount", "-o", "remount,ro"]).expect("mount is there").success();
        let (there, absent) = (remove_file(&file), remove_file(&dir.path().join("other")));
        let gone = run(&["umount"]).expect("umount is there").success();
        assert!(read_only && gone, "it cannot be mounted anew or not be taken away");
        assert!(there.expect_err("it may only be read").message.contains("remove "), "of what was there");
        absent.expect("it is not there");
    }
}
