//! Where everything of an agent lies. Paths of sockets have room for 107 bytes only, so below a long data directory they
//! move to a short one that is derived from it.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use keyframe_agent_api::{Fault, FaultKind};
use rustix::fs::Mode;

use crate::{Result, fault};

/// Longest name of a socket below the run directory: `vms/UUID-1/console.sock`.
const LONGEST: usize = "/vms/00000000-0000-0000-0000-000000000000-1/console.sock".len();
/// `sun_path` of `sockaddr_un` (unix(7)), without the final zero.
const SUN_PATH: usize = 107;

/// Only the owner may look in, or open it.
const OWN_FOLDER: u32 = 0o700;
const OWN_FILE: u32 = 0o600;
/// What is ours in a data directory that may be somebody's home or worse.
const FOLDERS: [&str; 5] = ["arrays", "vms", "memory", "instants", "run"];
const FILES: [&str; 8] = [
    "pool.kf",
    "catalog.db",
    "catalog.db-wal",
    "catalog.db-shm",
    "admin.token",
    "keyframe.log",
    "agent.log",
    "manager.log",
];

/// The data directory, and what is where in it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Paths {
    /// The data directory.
    pub data: PathBuf,
    /// Sockets and process ids.
    pub run: PathBuf,
}

impl Paths {
    /// Of an absolute data directory.
    pub fn of(data: &Path) -> Paths {
        let data = data.to_owned();
        let run = data.join("run");
        if run.as_os_str().len() + LONGEST <= SUN_PATH {
            return Paths { data, run };
        }
        // FNV-1a: any hash that stays the same will do.
        let hash = data
            .as_os_str()
            .as_bytes()
            .iter()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
        let base = std::env::var_os("XDG_RUNTIME_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
        Paths { data, run: base.join(format!("keyframe-{hash:016x}")) }
    }

    /// Makes the directories, for their owner only, and sees to it that whatever else this process makes is too: disks,
    /// memories and secrets lie there. What an earlier version made for everybody is narrowed.
    ///
    /// # Errors
    ///
    /// `Invalid` if the folder of sockets is somebody else's, who could answer in our place.
    pub fn make(&self) -> Result<()> {
        rustix::process::umask(Mode::RWXG | Mode::RWXO);
        for path in [&self.data, &self.run] {
            let made = std::fs::DirBuilder::new().recursive(true).mode(OWN_FOLDER).create(path);
            // What is there and no folder is told below.
            if let Err(error) = made
                && error.kind() != std::io::ErrorKind::AlreadyExists
            {
                return Err(fault::of_io(format_args!("make {}", path.display()), &error));
            }
        }
        self.check_run()?;
        for name in FOLDERS {
            narrow(&self.data.join(name), OWN_FOLDER)?;
        }
        FILES.iter().try_for_each(|name| narrow(&self.data.join(name), OWN_FILE))
    }

    /// The folder for temporary files is everybody's, so anybody may have been there first.
    fn check_run(&self) -> Result<()> {
        let run = self.run.display();
        let found = self.run.symlink_metadata().map_err(|error| fault::of_io(format_args!("look at {run}"), &error))?;
        let me = rustix::process::geteuid().as_raw();
        if found.is_dir() && found.uid() == me {
            return narrow(&self.run, OWN_FOLDER);
        }
        let is = if found.is_dir() { format!("belongs to user {}", found.uid()) } else { "is no folder".into() };
        let why = format!(
            "{run}, where the sockets of {} go, {is}, so they would not be safe there; have it removed, or use a data \
             directory with a shorter path",
            self.data.display()
        );
        Err(Fault::new(FaultKind::Invalid, why))
    }

    /// Where the agent is asked.
    pub fn agent_socket(&self) -> PathBuf {
        self.run.join("agent.sock")
    }

    /// Where machines find their disks.
    pub fn nbd_socket(&self) -> PathBuf {
        self.run.join("nbd.sock")
    }

    /// Held by the agent that uses this directory, with its process id in it.
    pub fn pid_file(&self) -> PathBuf {
        self.run.join("agent.pid")
    }

    /// What belongs to machines.
    pub fn vms(&self) -> PathBuf {
        self.data.join("vms")
    }
}

/// Takes everybody else's rights to something that is there. A link is left to whoever made it.
fn narrow(path: &Path, mode: u32) -> Result<()> {
    let failed = |error: &std::io::Error| fault::of_io(format_args!("protect {}", path.display()), error);
    let found = match path.symlink_metadata() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        found => found.map_err(|error| failed(&error))?,
    };
    let ours = found.uid() == rustix::process::geteuid().as_raw() && (found.is_dir() || found.is_file());
    if !ours || found.mode() & 0o077 == 0 {
        return Ok(());
    }
    tracing::warn!("{} was open to others; it is its owner's only now", path.display());
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(|error| failed(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        path.symlink_metadata().unwrap().mode() & 0o777
    }

    #[test]
    fn what_was_open_to_others_is_narrowed_and_nothing_else_is_touched() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::of(&dir.path().join("data"));
        let wide =
            [("memory", 0o755, true), ("vms", 0o777, true), ("catalog.db", 0o644, false), ("notes", 0o644, false)];
        std::fs::create_dir(&paths.data).unwrap();
        for (name, mode, is_folder) in wide {
            let path = paths.data.join(name);
            if is_folder { std::fs::create_dir(&path) } else { std::fs::write(&path, "") }.unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        }
        std::fs::set_permissions(&paths.data, std::fs::Permissions::from_mode(0o755)).unwrap();
        paths.make().unwrap();
        let modes = ["memory", "vms", "run", "catalog.db", "notes"].map(|name| mode(&paths.data.join(name)));
        assert_eq!(modes, [0o700, 0o700, 0o700, 0o600, 0o644]);
        assert_eq!(mode(&paths.data), 0o755, "it may be a folder of others, too");
        std::fs::write(paths.data.join("new"), "").unwrap();
        assert_eq!(mode(&paths.data.join("new")), 0o600);
    }

    #[test]
    fn a_folder_for_sockets_that_somebody_else_made_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| Paths { data: dir.path().join("data"), run: dir.path().join(name) };
        let refused = |name: &str, why: &str| {
            let fault = at(name).make().unwrap_err();
            assert!(fault.kind == FaultKind::Invalid && fault.message.contains(why), "{name}: {fault}");
        };
        let theirs = dir.path().join("theirs");
        std::fs::create_dir(&theirs).unwrap();
        std::os::unix::fs::symlink(&theirs, dir.path().join("link")).unwrap();
        refused("link", "is no folder");
        std::fs::write(dir.path().join("file"), "").unwrap();
        refused("file", "is no folder");
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&theirs, Some(65534), None).unwrap();
            refused("theirs", "belongs to user 65534");
        }
        at("ours").make().unwrap();
        at("ours").make().unwrap();
    }

    #[test]
    fn sockets_of_deep_directories_lie_elsewhere() {
        let short = Paths::of(Path::new("/var/lib/keyframe"));
        assert_eq!(short.run, Path::new("/var/lib/keyframe/run"));
        let deep = PathBuf::from(format!("/{}", "d".repeat(60)));
        let (paths, again) = (Paths::of(&deep), Paths::of(&deep));
        assert_eq!(paths, again);
        assert!(!paths.run.starts_with(&deep), "{paths:?}");
        assert_ne!(paths.run, Paths::of(Path::new(&format!("/{}", "e".repeat(60)))).run);
    }
}
