//! Where everything of an agent lies. Paths of sockets have room for 107 bytes only, so below a long data directory they
//! move to a short one that is derived from it.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::{Result, fault};

/// Longest name of a socket below the run directory: `vms/UUID/console.sock`.
const LONGEST: usize = "/vms/00000000-0000-0000-0000-000000000000/console.sock".len();
/// `sun_path` of `sockaddr_un` (unix(7)), without the final zero.
const SUN_PATH: usize = 107;

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

    /// Makes the directories, for their owner only.
    pub fn make(&self) -> Result<()> {
        use std::os::unix::fs::DirBuilderExt;
        for path in [&self.data, &self.run] {
            let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
            made.map_err(|error| fault::of_io(format_args!("make {}", path.display()), &error))?;
        }
        Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

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
