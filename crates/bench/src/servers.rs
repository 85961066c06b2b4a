//! NBD servers, each on a Unix socket, ended when dropped.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use keyframe_lab::process::{Ending, Process, run_tool};

use crate::fio::Via;
use crate::place::Place;
use crate::rng::Rng;
use crate::tool::tool;

const START: Duration = Duration::from_secs(30);

/// A running server.
pub(crate) struct Server {
    socket: PathBuf,
    _process: Process,
}

impl Server {
    fn start(place: &Place, name: &str, command: &mut Command, ending: Ending) -> Result<Server> {
        let socket = socket(place, name);
        command.stdout(Stdio::null());
        let mut process = Process::spawn(name, command, ending, &place.file(&format!("{name}.log")))?;
        let deadline = Instant::now() + START;
        while UnixStream::connect(&socket).is_err() {
            process.check_running()?;
            if Instant::now() > deadline {
                bail!("{name} does not listen after {START:?}: {}", process.last_words());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(Server { socket, _process: process })
    }

    /// `keyframe pool serve`.
    pub(crate) fn keyframe(place: &Place, keyframe: &Path, pool: &Path) -> Result<Server> {
        let name = "keyframe";
        let mut command = tool(keyframe);
        command.args(["pool", "serve", "--pool"]).arg(pool).arg("--control").arg(place.file("control"));
        command.arg("--nbd").arg(format!("unix:{}", socket(place, name).display()));
        Server::start(place, name, &mut command, Ending::Ask)
    }

    /// `qemu-nbd` with direct I/O, for any number of clients. Its export has the empty name.
    pub(crate) fn qemu(place: &Place, name: &str, format: &str, image: &Path) -> Result<Server> {
        let mut command = tool("qemu-nbd");
        command.args(["--cache=none", "--aio=native", "--persistent", "--shared=0", "-f", format, "-k"]);
        command.arg(socket(place, name)).arg(image);
        Server::start(place, name, &mut command, Ending::Ask)
    }

    /// `nbdkit` with one of its plugins.
    pub(crate) fn nbdkit(place: &Place, name: &str, plugin: &str, argument: &str) -> Result<Server> {
        let mut command = tool("nbdkit");
        command.args(["--foreground", "--unix"]).arg(socket(place, name)).args([plugin, argument]);
        Server::start(place, name, &mut command, Ending::Ask)
    }

    pub(crate) fn export<'a>(&'a self, export: &'a str) -> Via<'a> {
        Via::Nbd { socket: &self.socket, export }
    }
}

fn socket(place: &Place, name: &str) -> PathBuf {
    place.file(&format!("{name}.sock"))
}

/// A qcow2 image with the content of a raw one.
pub(crate) fn qcow2(raw: &Path, image: PathBuf) -> Result<PathBuf> {
    let mut command = tool("qemu-img");
    command.args(["convert", "-n", "-t", "none", "-S", "0", "-f", "raw", "-O", "qcow2"]).arg(raw).arg(&image);
    let size = std::fs::metadata(raw)?.len();
    let mut create = tool("qemu-img");
    create.args(["create", "-q", "-f", "qcow2", "-o", "preallocation=metadata"]).arg(&image).arg(size.to_string());
    run_tool(&mut create)?;
    run_tool(&mut command)?;
    Ok(image)
}

/// Writes 4 KiB at random places of a qcow2 image.
pub(crate) fn scribble(image: &Path, size: u64, writes: u64, rng: &mut Rng) -> Result<()> {
    let mut command = tool("qemu-io");
    command.args(["-f", "qcow2", "-t", "none"]);
    for _ in 0..writes {
        command.arg("-c").arg(format!("write -q -P 7 {} 4096", rng.below(size / 4096) * 4096));
    }
    run_tool(command.arg(image)).map(drop)
}

/// An internal snapshot of a qcow2 image that nobody uses; how long that takes.
pub(crate) fn internal_snapshot(image: &Path, name: &str) -> Result<Duration> {
    let start = Instant::now();
    run_tool(tool("qemu-img").args(["snapshot", "-c", name]).arg(image))?;
    Ok(start.elapsed())
}

/// A chain of `depth` overlays over a qcow2 image, each with a few writes; the topmost.
pub(crate) fn chain(place: &Place, base: PathBuf, size: u64, depth: u64, writes: u64) -> Result<PathBuf> {
    let mut rng = Rng::new(5);
    let mut top = base;
    for n in 0..depth {
        let next = place.file(&format!("layer-{n}.qcow2"));
        let mut command = tool("qemu-img");
        command.args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"]).arg(&top).arg(&next);
        run_tool(&mut command)?;
        scribble(&next, size, writes, &mut rng)?;
        top = next;
    }
    Ok(top)
}
