//! Images that only QEMU reads: `qemu-img convert` writes into the new volume through an NBD server of our own, on a
//! private socket, for this one copy. No temporary image, no kernel module, and every feature of the format is QEMU's.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};
use keyframe_engine::Pool;
use keyframe_nbd::{Config, Listener, Server};

use super::percent::last_percent;
use crate::{Exports, Progress};

const TOOL: &str = "qemu-img";

fn missing(error: std::io::Error) -> anyhow::Error {
    match error.kind() {
        std::io::ErrorKind::NotFound => anyhow!("{TOOL} is needed to read this format: install qemu-utils"),
        _ => anyhow::Error::new(error).context(format!("run {TOOL}")),
    }
}

/// What `qemu-img` says on failure, without its own name.
fn complaint(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let lines: Vec<&str> = text.lines().map(|line| line.strip_prefix("qemu-img: ").unwrap_or(line)).collect();
    if lines.is_empty() { format!("{TOOL} failed without a message") } else { lines.join("; ") }
}

/// Ends with its owner, whatever happened.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // Both fail only if it has ended by itself.
        self.0.kill().and_then(|()| self.0.wait().map(drop)).unwrap_or(());
    }
}

/// Copies a qcow2 image into a volume that is still empty. Returns the bytes that the volume then holds.
pub(super) fn copy_in(pool: &Pool, image: &File, volume: &str, progress: &mut Progress<'_>) -> Result<u64> {
    let private = tempfile::Builder::new().prefix("keyframe-import-").tempdir().context("make a private folder")?;
    let socket = private.path().join("nbd");
    let config = Config { workers: 1, ..Config::default() };
    let server = Server::start(Exports::only(pool.clone(), volume), vec![Listener::unix(&socket)?], &config)?;
    let converted = convert(image, &socket, progress);
    server.stop()?;
    converted?;
    Ok(pool.show(volume)?.referenced.0)
}

/// The very file that was looked at, by its descriptor here, and nothing below it whatever it names by now.
fn source(image: &File) -> Result<String> {
    let is_device = image.metadata().context("look at the image")?.file_type().is_block_device();
    let driver = if is_device { "host_device" } else { "file" };
    let filename = format!("/proc/{}/fd/{}", std::process::id(), image.as_raw_fd());
    let file = serde_json::json!({ "driver": driver, "filename": filename });
    Ok(format!("json:{}", serde_json::json!({ "driver": "qcow2", "backing": null, "file": file })))
}

fn convert(image: &File, socket: &Path, progress: &mut Progress<'_>) -> Result<()> {
    let mut command = Command::new(TOOL);
    command.args(["convert", "-p", "-n", "--target-is-zero", "-W", "-m", "8", "-O", "raw"]).arg(source(image)?);
    command.arg(format!("nbd+unix:///?socket={}", percent_encoded(socket)));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = Killed(command.spawn().map_err(missing)?);
    let mut stdout = child.0.stdout.take().context("qemu-img has no output")?;
    let mut stderr = child.0.stderr.take().context("qemu-img has no error output")?;
    let errors = std::thread::spawn(move || {
        let mut text = Vec::new();
        // What was read before a failure is what there is to say.
        stderr.read_to_end(&mut text).unwrap_or(0);
        text
    });
    relay_progress(&mut stdout, progress)?;
    let status = child.0.wait().context("wait for qemu-img")?;
    let errors = errors.join().unwrap_or_default();
    if status.success() { Ok(()) } else { bail!("{}", complaint(&errors)) }
}

fn relay_progress(output: &mut impl Read, progress: &mut Progress<'_>) -> Result<()> {
    let mut buffer = [0; 4096];
    let mut shown = None;
    loop {
        let read = output.read(&mut buffer).context("read qemu-img's progress")?;
        if read == 0 {
            return Ok(());
        }
        let percent = last_percent(&String::from_utf8_lossy(&buffer[..read]));
        if let Some(done) = percent
            && shown != percent
        {
            shown = percent;
            progress(done, 10_000)?;
        }
    }
}

fn percent_encoded(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"/-._~".contains(byte);
    path.as_os_str()
        .as_bytes()
        .iter()
        .map(|byte| if plain(byte) { char::from(*byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn socket_paths_survive_a_uri() {
        let check = |path: &str, expected: &str| assert_eq!(percent_encoded(Path::new(path)), expected);
        check("/tmp/a-b/nbd", "/tmp/a-b/nbd");
        check("/tmp/a b&c?d%/nbd", "/tmp/a%20b%26c%3Fd%25/nbd");
        check("/tmp/ü", "/tmp/%C3%BC");
    }
}
