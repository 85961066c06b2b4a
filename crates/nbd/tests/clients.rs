//! The clients that people use, each over a Unix socket and over TCP. They must be installed.

#![expect(clippy::unwrap_used, reason = "a test helper that fails, fails its test")]

mod common;

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use common::{Fixture, READ, SIZE, request};
use rustix::process::{Pid, Signal, kill_process_group};

/// More than any client here takes on a slow machine; one that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(120);

/// Runs a program to success and returns what it printed.
fn run(fixture: &Fixture, program: &str, arguments: &[&str]) -> String {
    run_within(PATIENCE, fixture, program, arguments).unwrap_or_else(|failure| panic!("{failure}"))
}

/// What a program printed, or how it failed. After `patience` it is killed, with what it started, and the failure says
/// what the server was doing.
fn run_within(patience: Duration, fixture: &Fixture, program: &str, arguments: &[&str]) -> Result<String, String> {
    let mut command = Command::new(program);
    command.args(arguments).process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| {
        format!("{program} does not run ({error}): install libnbd-bin, python3-libnbd, fio and qemu-utils")
    })?;
    let stdout = collect(child.stdout.take().unwrap());
    let stderr = collect(child.stderr.take().unwrap());
    let deadline = Instant::now() + patience;
    let (status, diagnosis) = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break (status, None);
        }
        if Instant::now() > deadline {
            let connections = fixture.server.describe(Duration::from_secs(5)).join("\n");
            kill_process_group(Pid::from_child(&child), Signal::KILL).unwrap();
            break (
                child.wait().unwrap(),
                Some(format!("did not end within {patience:?}; the server:\n{connections}")),
            );
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let (stdout, stderr) = (stdout.join().unwrap(), stderr.join().unwrap());
    match diagnosis {
        None if status.success() => Ok(stdout),
        None => Err(format!("{program} {arguments:?}: {status}\n{stdout}\n{stderr}")),
        Some(diagnosis) => Err(format!("{program} {arguments:?}: {diagnosis}\n{stdout}\n{stderr}")),
    }
}

/// Reads a pipe to its end, beside the others, so that no pipe fills up.
fn collect(mut pipe: impl Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// An image with data, zeroes that are stored, and holes.
fn image(directory: &Path) -> String {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut bytes = vec![0u8; SIZE as usize];
    for (index, chunk) in bytes.chunks_mut(1 << 20).enumerate() {
        if index % 3 == 0 {
            for word in chunk.chunks_mut(8) {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                word.copy_from_slice(&state.to_le_bytes());
            }
        }
    }
    let path = directory.join("image.raw");
    std::fs::write(&path, bytes).unwrap();
    path.to_str().unwrap().to_owned()
}

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn a_client_that_hangs_is_killed_and_diagnosed() {
    let fixture = Fixture::start();
    let mut other = fixture.connect().export("vm");
    other.send(&request(READ, 1, 0, 512)[..20]);
    let begun = Instant::now();
    let failure =
        run_within(Duration::from_millis(500), &fixture, "sh", &["-c", "echo began; sleep 60; :"]).unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(30), "the child of the shell lives on");
    for part in
        ["did not end within 500ms", "began", "transmission", "0 in flight", "20 bytes received and not processed"]
    {
        assert!(failure.contains(part), "{part:?} is missing in: {failure}");
    }
}

#[test]
fn nbdinfo_sees_what_is_served() {
    let fixture = Fixture::start();
    for uri in fixture.uris("vm") {
        let info = &json(&run(&fixture, "nbdinfo", &["--json", &uri]))["exports"][0];
        assert_eq!(info["export-size"], SIZE);
        assert_eq!(info["description"], format!("{SIZE} bytes of memory"));
        assert_eq!(info["block_size_minimum"], 512);
        assert_eq!(info["block_size_preferred"], 4096);
        assert_eq!(info["block_size_maximum"], 32 << 20);
        assert_eq!(info["contexts"], serde_json::json!(["base:allocation"]));
        for flag in ["cache", "df", "fast_zero", "flush", "fua", "multi_conn", "trim", "zero"] {
            assert_eq!(info[format!("can_{flag}")], true, "{flag}");
        }
        assert_eq!(info["is_read_only"], false);
        assert_eq!(
            json(&run(&fixture, "nbdinfo", &["--json", "--list", &uri]))["exports"].as_array().unwrap().len(),
            2
        );
    }
    for uri in fixture.uris("ro") {
        let info = &json(&run(&fixture, "nbdinfo", &["--json", &uri]))["exports"][0];
        assert_eq!(info["is_read_only"], true);
        assert_eq!(info["can_zero"], false);
    }
    let missing = &fixture.uris("missing")[0];
    let failure = run_within(PATIENCE, &fixture, "nbdinfo", &[missing]).unwrap_err();
    assert!(failure.contains("exit status: 1"), "{failure}");
    fixture.idle();
}

#[test]
fn nbdcopy_there_and_back() {
    let fixture = Fixture::start();
    let source = image(fixture.directory.path());
    let back = fixture.directory.path().join("back.raw");
    for uri in fixture.uris("vm") {
        run(&fixture, "nbdcopy", &["--connections=4", "--requests=64", &source, &uri]);
        run(&fixture, "nbdcopy", &["--connections=4", "--request-size=1048576", &uri, back.to_str().unwrap()]);
        assert!(std::fs::read(&source).unwrap() == std::fs::read(&back).unwrap(), "the copy over {uri} differs");
        std::fs::remove_file(&back).unwrap();
        let map = json(&run(&fixture, "nbdinfo", &["--map", "--json", &uri]));
        let extents = map.as_array().unwrap();
        let total: u64 = extents.iter().map(|extent| extent["length"].as_u64().unwrap()).sum();
        assert_eq!(total, SIZE);
        assert!(extents.iter().any(|extent| extent["type"] == 0), "some data: {map}");
        assert!(extents.iter().any(|extent| extent["type"] != 0), "some zeroes: {map}");
    }
    fixture.idle();
}

#[test]
fn qemu_img_converts_compares_and_maps() {
    let fixture = Fixture::start();
    let source = image(fixture.directory.path());
    for uri in fixture.uris("vm") {
        run(&fixture, "qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", "-W", "-m", "8", &source, &uri]);
        run(&fixture, "qemu-img", &["compare", "-f", "raw", "-F", "raw", &source, &uri]);
        let map = json(&run(&fixture, "qemu-img", &["map", "--output=json", "-f", "raw", &uri]));
        let extents = map.as_array().unwrap();
        let first = |key: &str| extents[0][key].clone();
        assert_eq!((first("start"), first("length"), first("data")), (0.into(), (1 << 20).into(), true.into()));
        assert_eq!(extents[1]["zero"], true);
        assert_eq!(extents.iter().map(|extent| extent["length"].as_u64().unwrap()).sum::<u64>(), SIZE);
        let qcow = fixture.directory.path().join("back.qcow2");
        run(&fixture, "qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &uri, qcow.to_str().unwrap()]);
        run(&fixture, "qemu-img", &["compare", "-f", "raw", "-F", "qcow2", &source, qcow.to_str().unwrap()]);
    }
    fixture.idle();
}

#[test]
fn qemu_io_writes_zeroes_discards_and_flushes() {
    let fixture = Fixture::start();
    for uri in fixture.uris("vm") {
        let commands = [
            "write -P 0x11 0 1M",
            "write -f -P 0x22 512 512",
            "write -z 64k 64k",
            "write -z -u 128k 64k",
            "discard 192k 64k",
            "aio_write -P 0x33 2M 8M",
            "aio_write -P 0x44 10M 8M",
            "aio_flush",
            "flush",
            "read -P 0x11 0 512",
            "read -P 0x22 512 512",
            "read -P 0x11 1k 63k",
            "read -P 0 64k 192k",
            "read -P 0x11 256k 768k",
            "read -P 0x33 2M 8M",
            "read -P 0x44 10M 8M",
        ];
        let mut arguments = vec!["-f", "raw", &uri];
        arguments.extend(commands.iter().flat_map(|command| ["-c", *command]));
        let output = run(&fixture, "qemu-io", &arguments);
        assert!(!output.contains("verification failed"), "{output}");
    }
    fixture.idle();
}

/// libnbd with its own checks switched off, so that the server's are reached.
const SHELL: &str = r#"
import errno, nbd, sys
uri, read_only = sys.argv[1], sys.argv[2]
size = 64 << 20

def handle(uri, structured=True):
    h = nbd.NBD()
    h.set_request_structured_replies(structured)
    h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    h.connect_uri(uri)
    h.set_strict_mode(0)
    return h

def refused(number, call, *args):
    try:
        call(*args)
    except nbd.Error as error:
        assert error.errnum == number, (call, args, error)
    else:
        raise AssertionError("not refused: %r %r" % (call, args))

for structured in (True, False):
    h = handle(uri, structured)
    assert h.get_structured_replies_negotiated() == structured
    h.pwrite(b"a" * 4096, 4096, nbd.CMD_FLAG_FUA)
    assert h.pread(8192, 0) == bytes(4096) + b"a" * 4096
    h.flush()
    h.cache(4096, 0)
    h.zero(1024, 4096 + 512, nbd.CMD_FLAG_NO_HOLE)
    h.zero(512, 4096 + 2048, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_FUA)
    expected = b"a" * 512 + bytes(1024) + b"a" * 512 + bytes(512) + b"a" * 1536
    assert h.pread(4096, 4096) == expected
    h.trim(4096, 4096)
    assert h.pread(4096, 4096) == bytes(4096)
    refused(errno.ENOTSUP, h.zero, 512, 0, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE)
    refused(errno.EINVAL, h.pread, 512, size)
    refused(errno.EINVAL, h.pread, 512, 1)
    refused(errno.EINVAL, h.pread, 100, 0)
    refused(errno.EINVAL, h.trim, 4096, size)
    refused(errno.ENOSPC, h.pwrite, bytes(512), size)
    refused(errno.ENOSPC, h.zero, 512, size)
    assert h.pread(512, size - 512) == bytes(512)
    cookies = [h.aio_pread(nbd.Buffer(65536), n * 65536) for n in range(200)]
    for cookie in cookies:
        while not h.aio_command_completed(cookie):
            h.poll(-1)
    h.shutdown()

h = handle(uri)
assert h.pread(65536, 0, nbd.CMD_FLAG_DF) == bytes(65536)
refused(errno.EOVERFLOW, h.pread, 33 << 20, 0, nbd.CMD_FLAG_DF)
chunks = []
h.pread_structured(8192, 512, lambda data, offset, status, error: chunks.append((len(data), offset, status)))
assert chunks == [(8192, 512, nbd.READ_DATA)], chunks
h.pwrite(b"b" * 8192, 8192)
h.zero(4096, 20480)
extents = []
def collect(context, offset, entries, error):
    extents.append((context, offset, entries))
h.block_status(65536, 0, collect)
h.block_status(65536, 8192, collect, nbd.CMD_FLAG_REQ_ONE)
hole = nbd.STATE_HOLE | nbd.STATE_ZERO
context = nbd.CONTEXT_BASE_ALLOCATION
assert extents[0] == (context, 0, [4096, hole, 4096, hole, 8192, 0, 4096, hole, 4096, nbd.STATE_ZERO, 40960, hole]) \
    or extents[0] == (context, 0, [8192, hole, 8192, 0, 4096, hole, 4096, nbd.STATE_ZERO, 40960, hole]), extents
assert extents[1] == (context, 8192, [8192, 0]), extents
refused(errno.EINVAL, h.block_status, 512, size, collect)
refused(errno.EINVAL, h.block_status, 512, 100, collect)
h.trim(size, 0)
h.shutdown()

h = handle(read_only)
assert h.is_read_only()
assert h.pread(512, 0) == bytes(512)
refused(errno.EPERM, h.pwrite, bytes(512), 0)
refused(errno.EPERM, h.trim, 512, 0)
refused(errno.EPERM, h.zero, 512, 0)
h.flush()
h.shutdown()

h = nbd.NBD()
h.set_export_name("missing")
h.set_opt_mode(True)
h.connect_uri(uri)
exports = []
h.opt_list(lambda name, description: exports.append(name))
assert exports == ["ro", "vm"], exports
h.set_export_name("missing")
refused(errno.ENOENT, h.opt_go)
h.set_export_name("vm")
h.opt_info()
assert h.get_size() == size
h.opt_abort()
print("passed")
"#;

#[test]
fn libnbd_semantics() {
    let fixture = Fixture::start();
    let script = fixture.directory.path().join("script.py");
    std::fs::write(&script, SHELL).unwrap();
    for (uri, read_only) in fixture.uris("vm").iter().zip(fixture.uris("ro")) {
        // The distribution's interpreter: the binding belongs to it, not to another that comes first in the path.
        let output = run(&fixture, "/usr/bin/python3", &[script.to_str().unwrap(), uri, &read_only]);
        assert_eq!(output, "passed\n");
    }
    fixture.idle();
}

#[test]
fn fio_verifies_what_it_wrote() {
    let fixture = Fixture::start();
    for uri in fixture.uris("vm") {
        let uri = format!("--uri={uri}");
        let common = ["--name=verify", "--ioengine=nbd", &uri, "--size=64m", "--iodepth=32", "--verify=crc32c"];
        let directory = format!("--aux-path={}", fixture.directory.path().display());
        let shared = ["--verify_fatal=1", "--do_verify=1", "--verify_backlog=512", "--randrepeat=1", &directory];
        let run_with = |own: &[&str]| run(&fixture, "fio", &[&common, &shared[..], own].concat());
        run_with(&["--rw=randwrite", "--bs=4k"]);
        run_with(&["--rw=randrw", "--bsrange=512-256k", "--bs_unaligned=0", "--norandommap=0"]);
        run_with(&["--rw=write", "--bs=1m", "--fsync=16"]);
    }
    fixture.idle();
}
