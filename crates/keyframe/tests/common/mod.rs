//! What the tests share: a sandbox with a small pool, the real binary, a server, and QEMU's tools.

#![expect(dead_code, reason = "each test program uses its part")]

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::SeekFrom;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// Long enough for the slowest machine; only failures wait for it.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a command did.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ran {
    fn of(command: &mut Command) -> Ran {
        let output = command.output().unwrap_or_else(|error| panic!("run {command:?}: {error}"));
        Ran {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// The output of a command that must succeed and complain of nothing.
    #[track_caller]
    pub(crate) fn good(self) -> String {
        assert_eq!((self.code, self.err.as_str()), (Some(0), ""), "{}", self.out);
        self.out
    }

    #[track_caller]
    pub(crate) fn json(self) -> Value {
        serde_json::from_str(&self.good()).unwrap()
    }

    /// The complaint of a command that must fail with this code, on one line, and print no result.
    #[track_caller]
    pub(crate) fn bad(self, code: i32) -> String {
        assert_eq!((self.code, self.out.as_str()), (Some(code), ""), "{}", self.err);
        assert!(self.err.starts_with("keyframe: "), "{}", self.err);
        self.err
    }
}

/// A folder with a pool in it.
pub(crate) struct Sandbox {
    pub(crate) dir: TempDir,
}

impl Sandbox {
    /// Nothing but a folder.
    pub(crate) fn empty() -> Sandbox {
        Sandbox { dir: tempfile::Builder::new().prefix("kf").tempdir().unwrap() }
    }

    /// With an empty pool of 128 MiB.
    pub(crate) fn new() -> Sandbox {
        let sandbox = Sandbox::empty();
        let pool = sandbox.pool();
        sandbox.bare(&["pool", "create", text(&pool), "--size", "128M", "--preallocation", "off"]).good();
        sandbox
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn pool(&self) -> PathBuf {
        self.path("pool")
    }

    /// `keyframe` without any pool named.
    pub(crate) fn bare(&self, line: &[&str]) -> Ran {
        Ran::of(keyframe().current_dir(self.dir.path()).args(line))
    }

    /// `keyframe` on the pool file, which is named behind the noun.
    pub(crate) fn offline(&self, line: &[&str]) -> Ran {
        let mut command = keyframe();
        command.current_dir(self.dir.path()).args(&line[..1]).arg("--pool").arg(self.pool()).args(&line[1..]);
        Ran::of(&mut command)
    }

    /// The bytes of a file and where they lie, as a checksum. Holes are not read.
    pub(crate) fn hash(&self, name: &str) -> u32 {
        let file = std::fs::File::open(self.path(name)).unwrap();
        let len = file.metadata().unwrap().len();
        let mut hash = crc32c::crc32c(&len.to_le_bytes());
        let mut at = 0;
        while let Ok(start) = rustix::fs::seek(&file, SeekFrom::Data(at)) {
            at = rustix::fs::seek(&file, SeekFrom::Hole(start)).unwrap();
            let mut data = vec![0; (at - start) as usize];
            file.read_exact_at(&mut data, start).unwrap();
            hash = crc32c::crc32c_append(hash, &start.to_le_bytes());
            hash = crc32c::crc32c_append(hash, &data);
        }
        hash
    }

    pub(crate) fn serve(&self) -> Server<'_> {
        Server::start(self)
    }

    /// A QEMU tool that must succeed.
    #[track_caller]
    pub(crate) fn qemu(&self, tool: &str, line: &[&str]) -> String {
        let ran = Ran::of(patiently(tool).current_dir(self.dir.path()).args(line));
        assert_eq!(ran.code, Some(0), "{tool} {line:?}: {}{}", ran.out, ran.err);
        assert!(!ran.out.contains("failed"), "{tool} {line:?}: {}", ran.out);
        ran.out
    }
}

/// No command here takes long; one that hangs is killed, and fails.
fn patiently(program: &str) -> Command {
    let mut command = Command::new("timeout");
    command.args(["-k", "5", "120", program]);
    command
}

fn keyframe() -> Command {
    without_environment(patiently(env!("CARGO_BIN_EXE_keyframe")))
}

fn without_environment(mut command: Command) -> Command {
    command.env_remove("KEYFRAME_POOL").env_remove("KEYFRAME_CONTROL").stdin(Stdio::null());
    command
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[track_caller]
pub(crate) fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "{what} did not happen within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// `keyframe pool serve` on a sandbox's pool; killed when dropped.
pub(crate) struct Server<'a> {
    sandbox: &'a Sandbox,
    child: Child,
    pub(crate) ready: String,
}

impl<'a> Server<'a> {
    fn start(sandbox: &'a Sandbox) -> Server<'a> {
        let mut command = without_environment(Command::new(env!("CARGO_BIN_EXE_keyframe")));
        command.args(["pool", "serve", "--pool"]).arg(sandbox.pool()).arg("--control").arg(sandbox.path("control"));
        command.arg("--nbd").arg(format!("unix:{}", text(&sandbox.path("nbd"))));
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut ready = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        Server { sandbox, child, ready }
    }

    /// `keyframe` through the server.
    pub(crate) fn online(&self, line: &[&str]) -> Ran {
        let control = self.sandbox.path("control");
        Ran::of(keyframe().current_dir(self.sandbox.dir.path()).args(line).arg("--control").arg(control))
    }

    /// An export as QEMU names it.
    pub(crate) fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", text(&self.sandbox.path("nbd")))
    }

    /// Runs `qemu-io` commands on an export.
    #[track_caller]
    pub(crate) fn io(&self, export: &str, commands: &[&str]) {
        let uri = self.uri(export);
        // A snapshot cannot be opened for writing.
        let mut line = if export.contains('@') { vec!["-r", "-f", "raw"] } else { vec!["-f", "raw"] };
        line.extend(commands.iter().flat_map(|command| ["-c", command]));
        line.push(&uri);
        self.sandbox.qemu("qemu-io", &line);
    }

    /// A client that stays attached until it is dropped.
    pub(crate) fn attach(&self, export: &str, read_only: bool) -> Attached {
        let mut command = Command::new("qemu-io");
        command.args(["-f", "raw"]).args(read_only.then_some("-r")).arg(self.uri(export));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let stdin = child.stdin.take();
        let shown = || self.online(&["volume", "show", export, "--json"]).json()["attached"] == 1;
        wait_for("attaching", shown);
        Attached { child, stdin }
    }

    pub(crate) fn connect(&self) -> UnixStream {
        UnixStream::connect(self.sandbox.path("control")).unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Asks it to end, and expects it to end well.
    #[track_caller]
    pub(crate) fn stop(self) {
        self.end(Signal::TERM);
    }

    /// Asks it to end by this signal, and expects it to end well.
    #[track_caller]
    pub(crate) fn end(mut self, signal: Signal) {
        self.signal(signal);
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
    }

    /// As a power failure would.
    pub(crate) fn kill(mut self) {
        self.signal(Signal::KILL);
        self.child.wait().unwrap();
    }
}

impl Drop for Server<'_> {
    fn drop(&mut self) {
        if self.child.try_wait().unwrap().is_none() {
            self.child.kill().unwrap();
            self.child.wait().unwrap();
        }
    }
}

/// A client that holds an export.
pub(crate) struct Attached {
    child: Child,
    stdin: Option<ChildStdin>,
}

impl Drop for Attached {
    fn drop(&mut self) {
        if let Some(mut stdin) = self.stdin.take() {
            // It may have ended with its server.
            stdin.write_all(b"quit\n").unwrap_or(());
        }
        self.child.wait().unwrap();
    }
}

/// JSON with what differs from run to run set to 0 or "".
pub(crate) fn masked(mut value: Value) -> Value {
    mask(&mut value);
    value
}

fn mask(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(mask),
        Value::Object(fields) => fields.iter_mut().for_each(|(name, field)| match name.as_str() {
            "created" | "held_us" | "total_us" | "uptime_seconds" | "cached_pages" | "dirty_pages" | "used"
            | "free" | "checkpoints" | "journal_percent" | "metadata_pages" | "versions" | "pending" => {
                assert!(field.is_u64(), "{name}: {field}");
                *field = 0.into();
            }
            "uuid" | "path" => *field = "".into(),
            _ => mask(field),
        }),
        _ => {}
    }
}

#[track_caller]
pub(crate) fn check(ran: Ran, expected: &str) {
    let expected: Value = serde_json::from_str(expected).unwrap();
    assert_eq!(masked(ran.json()), expected);
}
