//! Other people's clients on the engine: what they write comes back, through snapshots, kills and a plain file beside it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::process::Command;

use common::{Sandbox, Server};

/// Runs a client that must succeed; its output.
#[track_caller]
fn client(program: &str, line: &[&str]) -> String {
    let output = Command::new("timeout").args(["-k", "5", "120", program]).args(line).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} {line:?}: {out}{err}");
    out.into_owned()
}

fn fio(server: &Server<'_>, volume: &str, extra: &[&str]) -> String {
    let uri = format!("--uri={}", server.uri(volume));
    let mut line = vec![
        "--name=t",
        "--ioengine=nbd",
        uri.as_str(),
        "--size=48M",
        "--output-format=terse",
        "--verify_state_save=0",
    ];
    line.extend(extra);
    client("fio", &line)
}

#[test]
fn fio_reads_back_what_it_wrote() {
    let sandbox = Sandbox::new();
    let server = sandbox.serve();
    server.online(&["volume", "create", "v", "48M"]).good();
    let verify = ["--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--iodepth=32"];
    for shape in [["--rw=randwrite", "--bs=4k"], ["--rw=randwrite", "--bsrange=512-64k"], ["--rw=write", "--bs=1m"]] {
        fio(&server, "v", &[&verify[..], &shape[..]].concat());
    }
    // Snapshots under load neither disturb it nor change once taken.
    std::thread::scope(|scope| {
        let load = scope.spawn(|| fio(&server, "v", &[&verify[..], &["--rw=randrw", "--bs=4k", "--loops=3"]].concat()));
        for n in 0..20 {
            server.online(&["volume", "snapshot", "create", &format!("v@s{n}")]).good();
        }
        load.join().unwrap();
    });
    for n in (0..20).step_by(3) {
        server.online(&["volume", "snapshot", "delete", &format!("v@s{n}")]).good();
    }
    fio(&server, "v", &[&verify[..], &["--rw=randwrite", "--bs=4k", "--fsync=16"]].concat());
    drop(server);
    sandbox.bare(&["pool", "check", sandbox.pool().to_str().unwrap()]).good();
}

/// The same seeded writes through the door and to a plain file: both must end equal, and so must snapshots and copies.
#[test]
fn a_plain_file_beside_it_ends_equal() {
    let sandbox = Sandbox::new();
    let server = sandbox.serve();
    server.online(&["volume", "create", "v", "32M"]).good();
    let raw = sandbox.path("raw");
    std::fs::File::create(&raw).unwrap().set_len(32 << 20).unwrap();
    for round in 0..4 {
        let seed = format!("--randseed={round}");
        let shape = ["--size=32M", "--io_size=16M", "--rw=randwrite", "--bsrange=512-32k", "--refill_buffers=1", &seed];
        fio(&server, "v", &[&shape[..], &["--iodepth=1"]].concat());
        let file = format!("--filename={}", raw.display());
        client(
            "fio",
            &[&["--name=t", "--ioengine=psync", file.as_str(), "--output-format=terse"], &shape[..]].concat(),
        );
        if round == 1 {
            server.online(&["volume", "snapshot", "create", "v@half"]).good();
            std::fs::copy(&raw, sandbox.path("raw-half")).unwrap();
        }
    }
    sandbox.qemu("qemu-img", &["compare", "-f", "raw", "-F", "raw", "raw", &server.uri("v")]);
    sandbox.qemu("qemu-img", &["compare", "-f", "raw", "-F", "raw", "raw-half", &server.uri("v@half")]);
    // Multi-connection copies in and out.
    let copy = sandbox.path("copy");
    client("nbdcopy", &["--connections=4", &server.uri("v@half"), copy.to_str().unwrap()]);
    sandbox.qemu("qemu-img", &["compare", "-f", "raw", "-F", "raw", "copy", "raw-half"]);
    server.online(&["volume", "create", "w", "32M"]).good();
    client("nbdcopy", &["--connections=4", "--flush", raw.to_str().unwrap(), &server.uri("w")]);
    sandbox.qemu("qemu-img", &["compare", "-f", "raw", "-F", "raw", "raw", &server.uri("w")]);
}

#[test]
fn clients_learn_what_an_export_can_do() {
    let sandbox = Sandbox::new();
    let server = sandbox.serve();
    server.online(&["volume", "create", "v", "8M"]).good();
    server.io("v", &["write -P 7 64k 64k", "write -z 1M 64k", "discard 64k 4k"]);
    server.online(&["volume", "snapshot", "create", "v@s"]).good();
    let info = client("nbdinfo", &[&server.uri("v")]);
    for line in [
        "can_fua: true",
        "can_flush: true",
        "can_trim: true",
        "can_zero: true",
        "can_multi_conn: true",
        "block_size_preferred: 4096",
    ] {
        assert!(info.contains(line), "{line}: {info}");
    }
    assert!(client("nbdinfo", &[&server.uri("v@s")]).contains("is_read_only: true"));
    let map = client("nbdinfo", &["--map", "--json", &server.uri("v")]);
    let map: serde_json::Value = serde_json::from_str(&map).unwrap();
    let data: Vec<(u64, u64)> = map
        .as_array()
        .unwrap()
        .iter()
        .filter(|e| e["type"] == 0)
        .map(|e| (e["offset"].as_u64().unwrap(), e["length"].as_u64().unwrap()))
        .collect();
    assert_eq!(data, [(68 << 10, 60 << 10)]);
    let list = client("nbdinfo", &["--list", "--json", &server.uri("")]);
    assert!(list.contains("\"v\"") && list.contains("\"v@s\""), "{list}");
    let script = format!(
        "h.connect_uri('{}'); h.pwrite(b'\\x05'*4096, 0, nbd.CMD_FLAG_FUA); h.zero(4096, 65536, nbd.CMD_FLAG_FAST_ZERO); \
         assert h.pread(4096, 0) == b'\\x05'*4096; assert h.pread(4096, 65536) == bytes(4096); h.flush()",
        server.uri("v")
    );
    client("/usr/bin/python3", &["-c", &format!("import nbd; h = nbd.NBD(); {script}")]);
}

/// The path of a head stays the same through a revert.
#[test]
fn a_reverted_volume_is_found_where_it_was() {
    let sandbox = Sandbox::new();
    let server = sandbox.serve();
    server.online(&["volume", "create", "v", "8M"]).good();
    let uri = server.uri("v");
    server.io("v", &["write -P 1 0 1M"]);
    server.online(&["volume", "snapshot", "create", "v@one"]).good();
    server.io("v", &["write -P 2 0 1M"]);
    server.online(&["volume", "revert", "v@one", "--keep", "two"]).good();
    server.io("v", &["read -P 1 0 1M"]);
    server.io("v@two", &["read -P 2 0 1M"]);
    // A larger size is seen by whoever opens it next.
    server.online(&["volume", "resize", "v", "16M"]).good();
    assert!(client("nbdinfo", &["--size", &uri]).trim() == (16 << 20).to_string());
}
