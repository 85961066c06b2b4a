//! Keyframe as the lab sees it: every call of its command line is in this file, and nowhere else.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::process::{Ending, Process, run_tool};
use crate::vm::Disk;

/// A pool and the server that serves it; the server ends when dropped.
pub struct Store {
    keyframe: PathBuf,
    server: Process,
    sockets: TempDir,
}

/// The server replays its journal before it listens.
const START: Duration = Duration::from_secs(30);

impl Store {
    /// Makes a pool in the file `pool` and starts a server for it.
    pub fn create(keyframe: &Path, pool: &Path, size: &str) -> Result<Store> {
        run_tool(Command::new(keyframe).args(["pool", "create"]).arg(pool).args(["--size", size]))?;
        let sockets = tempfile::Builder::new().prefix("keyframe-store-").tempdir()?;
        let mut command = Command::new(keyframe);
        command.args(["pool", "serve", "--pool"]).arg(pool);
        command.arg("--control").arg(sockets.path().join("control"));
        command.arg("--nbd").arg(format!("unix:{}", sockets.path().join("nbd").display()));
        command.stdout(Stdio::null());
        let server = Process::spawn("keyframe pool serve", &mut command, Ending::Ask, &sockets.path().join("log"))?;
        let mut store = Store { keyframe: keyframe.to_owned(), server, sockets };
        store.wait_until_served()?;
        Ok(store)
    }

    /// Copies a raw image into a new volume.
    pub fn import(&self, image: &Path, volume: &str) -> Result<()> {
        let line = ["volume", "import", "--format", "raw"].map(OsStr::new);
        self.call(line.into_iter().chain([image.as_os_str(), OsStr::new(volume)])).map(drop)
    }

    /// Snapshots all `volumes` at one instant; returns how long the caller waited.
    pub fn snapshot(&self, volumes: &[&str], name: &str) -> Result<Duration> {
        let mut line = ["volume", "snapshot", "create"].map(str::to_owned).to_vec();
        line.extend(volumes.iter().map(|volume| format!("{volume}@{name}")));
        let began = Instant::now();
        self.call(&line)?;
        Ok(began.elapsed())
    }

    /// Makes the volume `new` from `source`, a volume or `volume@snapshot`.
    pub fn clone_volume(&self, source: &str, new: &str) -> Result<()> {
        self.call(["volume", "clone", source, new]).map(drop)
    }

    /// Puts a volume back to one of its snapshots, `volume@snapshot`.
    pub fn revert(&self, snapshot: &str) -> Result<()> {
        self.call(["volume", "revert", snapshot]).map(drop)
    }

    /// The tree of a volume's snapshots and clones with what each node holds alone, as it is shown to people.
    pub fn tree(&self, volume: &str) -> Result<String> {
        self.call(["volume", "tree", volume, "--space"])
    }

    /// A volume, or read-only a `volume@snapshot`, as a disk for a machine.
    pub fn disk(&self, export: &str) -> Disk {
        Disk::Nbd { socket: self.sockets.path().join("nbd"), export: export.to_owned() }
    }

    /// Ends the server in order.
    pub fn close(mut self) -> Result<()> {
        self.server.ask_to_end()
    }

    fn wait_until_served(&mut self) -> Result<()> {
        let deadline = Instant::now() + START;
        loop {
            let answer = self.call(["volume", "list", "--json"]);
            if answer.is_ok() {
                return Ok(());
            }
            self.server.check_running()?;
            if Instant::now() > deadline {
                return answer.map(drop).with_context(|| format!("no server within {START:?}"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn call(&self, line: impl IntoIterator<Item: AsRef<OsStr>>) -> Result<String> {
        let mut command = Command::new(&self.keyframe);
        run_tool(command.args(line).env("KEYFRAME_CONTROL", self.sockets.path().join("control")))
    }
}
