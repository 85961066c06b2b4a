//! fio, and what its JSON says.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use keyframe_lab::process::run_tool;
use serde_json::Value;

use crate::tool::tool;

/// What fio talks to.
pub(crate) enum Via<'a> {
    /// A file, by direct I/O and io_uring.
    File(&'a Path),
    /// An export on a Unix socket.
    Nbd { socket: &'a Path, export: &'a str },
}

/// A run of 4 KiB requests at random.
pub(crate) struct Job<'a> {
    pub(crate) via: Via<'a>,
    pub(crate) write: bool,
    pub(crate) depth: usize,
    pub(crate) time: Duration,
}

impl Job<'_> {
    /// Runs it; requests in a second.
    pub(crate) fn iops(&self) -> Result<f64> {
        let mut command = fio(&self.via);
        command.arg(if self.write { "--rw=randwrite" } else { "--rw=randread" });
        command.args(["--bs=4k", "--norandommap", "--time_based"]);
        command.arg(format!("--iodepth={}", self.depth));
        command.arg(format!("--runtime={}ms", self.time.as_millis()));
        let text = run_tool(&mut command)?;
        // Some engines talk before they answer.
        let json = text.find('{').map_or("", |at| &text[at..]);
        let answer: Value = serde_json::from_str(json).with_context(|| format!("read fio's answer: {text}"))?;
        let side = if self.write { "write" } else { "read" };
        let iops = answer["jobs"][0][side]["iops"].as_f64();
        iops.filter(|iops| *iops > 0.0).context("fio reported no requests")
    }
}

fn fio(via: &Via) -> Command {
    let mut command = tool("fio");
    command.args(["--name=job", "--output-format=json", "--randrepeat=0", "--refill_buffers=0"]);
    match via {
        Via::File(path) => {
            command.args(["--ioengine=io_uring", "--direct=1"]);
            command.arg(format!("--filename={}", path.display()));
        }
        Via::Nbd { socket, export } => {
            command.arg("--ioengine=nbd");
            command.arg(format!("--uri=nbd+unix:///{export}?socket={}", socket.display()));
        }
    }
    command
}

/// Writes every block once, in order.
pub(crate) fn fill(via: &Via) -> Result<()> {
    let mut command = fio(via);
    run_tool(command.args(["--rw=write", "--bs=1M", "--iodepth=4"])).map(drop)
}
