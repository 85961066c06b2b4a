//! The server: the control socket, clients that are in the way, a second process, and sudden death.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;

use common::{Sandbox, Server, text, wait_for};
use rustix::process::Signal;

fn furnished(sandbox: &Sandbox) -> Server<'_> {
    let server = sandbox.serve();
    server.online(&["volume", "create", "web", "16M"]).good();
    server.io("web", &["write -P 1 0 1M"]);
    server.online(&["volume", "snapshot", "create", "web@one", "-q"]).good();
    server
}

#[test]
fn it_says_when_it_is_ready() {
    let sandbox = Sandbox::new();
    let server = sandbox.serve();
    let [pool, control, nbd] = ["pool", "control", "nbd"].map(|name| text(&sandbox.path(name)).to_owned());
    assert_eq!(server.ready, format!("ready: pool {pool}, control {control}, nbd unix:{nbd}\n"));
    let mode = std::fs::metadata(&control).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    server.stop();
    assert!(!sandbox.path("control").exists() && !sandbox.path("nbd").exists());
}

#[test]
fn it_ends_in_order_on_every_polite_signal() {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let sandbox = Sandbox::new();
        let server = furnished(&sandbox);
        server.io("web", &["write -P 2 4M 1M"]);
        server.end(signal);
        let info = sandbox.offline(&["volume", "show", "web", "--json"]).json();
        assert_eq!(info["referenced"], 2 << 20, "{signal:?}");
    }
}

#[test]
fn exports_are_volumes_and_read_only_snapshots() {
    let sandbox = Sandbox::new();
    let server = furnished(&sandbox);
    server.io("web", &["write -P 2 0 64k", "discard 512k 64k", "read -P 2 0 64k", "read -P 0 512k 64k", "flush"]);
    server.io("web@one", &["read -P 1 0 1M", "read -P 0 1M 1M"]);
    let write = ["-f", "raw", "-c", "write -P 3 0 4k", &server.uri("web@one")].map(str::to_owned);
    let refused = std::process::Command::new("qemu-io").args(&write).output().unwrap();
    assert!(!refused.status.success());
    server.io("web@one", &["read -P 1 0 1M"]);
    let missing = std::process::Command::new("qemu-img").args(["info", &server.uri("nobody")]).output().unwrap();
    assert!(!missing.status.success());
    let listed =
        std::process::Command::new("qemu-nbd").args(["--list", "-k", text(&sandbox.path("nbd"))]).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert!(listed.contains("export: 'web'\n") && listed.contains("export: 'web@one'\n"), "{listed}");
}

#[test]
fn what_a_client_uses_is_not_pulled_away() {
    let sandbox = Sandbox::new();
    let server = furnished(&sandbox);
    let refuses = |line: &[&str], words: &str| {
        let complaint = server.online(line).bad(1);
        assert!(complaint.contains(words), "{line:?}: {complaint}");
    };
    let client = server.attach("web", false);
    refuses(
        &["volume", "delete", "web", "--snapshots"],
        "cannot delete web: it is in use by 1 client; disconnect first",
    );
    refuses(&["volume", "revert", "web@one"], "cannot revert web: it is in use by 1 client");
    refuses(&["volume", "resize", "web", "8M"], "cannot shrink web: it is in use");
    refuses(&["volume", "export", "web", "image"], "it is in use; take a snapshot and export that");
    // What does not disturb the client goes on.
    server.online(&["volume", "snapshot", "create", "web@two", "-q"]).good();
    server.online(&["volume", "clone", "web", "lab"]).good();
    server.online(&["volume", "resize", "web", "32M"]).good();
    server.online(&["volume", "rename", "web", "www"]).good();
    drop(client);
    let free = || server.online(&["volume", "show", "www", "--json"]).json()["attached"] == 0;
    wait_for("detaching", free);
    let reader = server.attach("www@one", true);
    refuses(&["volume", "snapshot", "delete", "www@one"], "cannot delete www@one: it is in use by 1 client");
    refuses(&["volume", "snapshot", "delete", "www@one", "--subtree"], "cannot delete www@one: it is in use");
    refuses(&["volume", "delete", "www", "--snapshots"], "www@one: it is in use");
    drop(reader);
    let free = || server.online(&["volume", "snapshot", "show", "www@one", "--json"]).json()["attached"] == 0;
    wait_for("detaching", free);
    server.online(&["volume", "revert", "www@one"]).good();
    server.io("www", &["read -P 1 0 1M"]);
    server.online(&["volume", "delete", "www", "--snapshots"]).good();
    server.stop();
    assert!(sandbox.bare(&["pool", "check", "pool"]).good().starts_with("no errors"));
}

#[test]
fn a_pool_has_one_process() {
    let sandbox = Sandbox::new();
    let server = furnished(&sandbox);
    for line in [&["volume", "list"][..], &["volume", "create", "x", "1M"], &["pool", "serve", "--control", "other"]] {
        let complaint = sandbox.offline(line).bad(1);
        assert!(complaint.contains("is in use by another process") && complaint.contains("--control "), "{complaint}");
    }
    let complaint = sandbox.bare(&["pool", "check", "pool"]).bad(1);
    assert!(complaint.contains("use --control "), "{complaint}");
    server.online(&["volume", "list"]).good();
}

/// Without --control the socket is where the lock error says it is; a port of 0 is replaced by the one that was given.
#[test]
fn what_was_left_open_is_in_the_ready_line() {
    let sandbox = Sandbox::new();
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_keyframe"))
        .args(["pool", "serve", "--json", "--nbd", "tcp:127.0.0.1:0", "--pool"])
        .arg(sandbox.pool())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut ready).unwrap();
    let ready: serde_json::Value = serde_json::from_str(&ready).unwrap();
    let [pool, usual] = ["pool", "pool.control"].map(|name| text(&sandbox.path(name)).to_owned());
    let address = ready["nbd"][0].as_str().unwrap().to_owned();
    assert_eq!(ready, serde_json::json!({"pool": pool, "control": usual, "nbd": [address]}));
    let complaint = sandbox.offline(&["volume", "list"]).bad(1);
    assert!(complaint.contains(&format!("use --control {usual}")), "{complaint}");
    sandbox.bare(&["volume", "create", "web", "1M", "--control", &usual]).good();
    let port = address.strip_prefix("tcp:127.0.0.1:").unwrap();
    sandbox.qemu("qemu-io", &["-f", "raw", "-c", "write -P 1 0 4k", &format!("nbd://127.0.0.1:{port}/web")]);
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_killed_server_comes_back_with_everything() {
    let sandbox = Sandbox::new();
    let server = furnished(&sandbox);
    server.online(&["volume", "clone", "web@one", "lab"]).good();
    server.io("web", &["write -P 2 0 2M", "flush"]);
    server.io("lab", &["write -P 3 1M 1M", "flush"]);
    server.kill();
    assert!(sandbox.path("control").exists(), "the dead server's socket is left");
    let server = sandbox.serve();
    server.io("web", &["read -P 2 0 2M"]);
    server.io("lab", &["read -P 1 0 1M", "read -P 3 1M 1M"]);
    server.io("web@one", &["read -P 1 0 1M", "read -P 0 1M 1M"]);
    server.stop();
    assert!(sandbox.bare(&["pool", "check", "pool"]).good().starts_with("no errors"));
}

#[test]
fn a_live_socket_and_other_files_are_not_replaced() {
    let sandbox = Sandbox::new();
    let server = sandbox.serve();
    sandbox.bare(&["pool", "create", "second", "--size", "128M", "--preallocation", "off"]).good();
    let complaint = sandbox.bare(&["pool", "serve", "--pool", "second", "--control", "control"]).bad(1);
    assert!(complaint.contains("cannot listen on control"), "{complaint}");
    server.online(&["volume", "list"]).good();
    std::fs::write(sandbox.path("note"), "keep me").unwrap();
    sandbox.bare(&["pool", "serve", "--pool", "second", "--control", "note"]).bad(1);
    let nbd = ["pool", "serve", "--pool", "second", "--control", "third", "--nbd", "unix:note"];
    assert!(sandbox.bare(&nbd).bad(1).contains("cannot listen on note: it exists and is not a socket"));
    assert_eq!(std::fs::read(sandbox.path("note")).unwrap(), b"keep me");
}

/// Says one line and reads one.
fn say(server: &Server<'_>, line: &[u8]) -> String {
    let mut stream = server.connect();
    stream.write_all(line).unwrap();
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).unwrap();
    answer
}

#[test]
fn bad_requests_get_errors() {
    let sandbox = Sandbox::new();
    let server = sandbox.serve();
    for line in [&b"\n"[..], b"{}\n", b"hello\n", b"[1,2]\n", b"\xff\xfe\n", b"{\"op\":\"reboot\"}\n"] {
        let answer: serde_json::Value = serde_json::from_str(&say(&server, line)).unwrap();
        assert_eq!(answer["error"]["kind"], "bad-request", "{answer}");
    }
    let deep = [vec![b'['; 100_000], b"\n".to_vec()].concat();
    assert!(say(&server, &deep).contains("bad-request"));
    assert_eq!(
        say(&server, b"{\"op\":\"show\",\"target\":\"web\"}\n"),
        "{\"error\":{\"kind\":\"not-found\",\"message\":\"no volume named web\"}}\n"
    );
    let relative = b"{\"op\":\"import\",\"file\":\"x\",\"volume\":\"web\"}\n";
    assert_eq!(
        say(&server, relative),
        "{\"error\":{\"kind\":\"invalid\",\"message\":\"x: paths in requests must be absolute\"}}\n"
    );
}

/// The connection survives a bad line, and not an endless one.
#[test]
fn an_endless_line_ends_the_connection() {
    let sandbox = Sandbox::new();
    let server = sandbox.serve();
    let mut stream = server.connect();
    stream.write_all(b"nonsense\n{\"op\":\"pool-info\"}\n").unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut lines = [String::new(), String::new()];
    for line in &mut lines {
        reader.read_line(line).unwrap();
    }
    assert!(lines[0].contains("bad-request") && lines[1].starts_with("{\"result\":{\"type\":\"pool\""), "{lines:?}");
    // It may be cut while we still write.
    let piece = vec![b'x'; 1 << 20];
    (0..4).try_for_each(|_| stream.write_all(&piece)).unwrap_or(());
    let mut rest = String::new();
    match reader.read_to_string(&mut rest) {
        Ok(_) => assert!(rest.is_empty() || rest.contains("at most 1048576 bytes"), "{rest}"),
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
    }
    server.online(&["volume", "list"]).good();
}

#[test]
fn idle_and_half_spoken_clients_do_not_hold_the_end_up() {
    let sandbox = Sandbox::new();
    let server = furnished(&sandbox);
    let idle = server.connect();
    let mut half = server.connect();
    half.write_all(b"{\"op\":").unwrap();
    let nbd = server.attach("web", false);
    server.stop();
    drop((idle, half, nbd));
}

/// A client that goes away cancels its import, and the volume goes with it.
#[test]
fn an_abandoned_import_is_undone() {
    let sandbox = Sandbox::new();
    sandbox.bare(&["pool", "create", "large", "--size", "2G", "--preallocation", "off"]).good();
    std::fs::rename(sandbox.path("large"), sandbox.pool()).unwrap();
    sandbox.qemu("qemu-img", &["create", "-q", "-f", "raw", "image", "1G"]);
    sandbox.qemu("qemu-io", &["-f", "raw", "-c", "write -P 7 0 1G", "image"]);
    let server = sandbox.serve();
    let mut stream = server.connect();
    let image = sandbox.path("image");
    writeln!(stream, r#"{{"op":"import","file":"{}","volume":"web","format":"raw"}}"#, text(&image)).unwrap();
    let mut line = String::new();
    BufReader::new(stream.try_clone().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with("{\"progress\":{\"done\":"), "{line}");
    stream.shutdown(std::net::Shutdown::Both).unwrap();
    wait_for("undoing", || server.online(&["volume", "list", "--json"]).good() == "[]\n");
    server.stop();
    assert!(sandbox.bare(&["pool", "check", "pool"]).good().starts_with("no errors"));
}

/// Killed in the middle: what is left cannot be taken for the disk, and does not keep it from being imported again.
#[test]
fn a_killed_import_is_not_taken_for_whole() {
    let sandbox = Sandbox::new();
    sandbox.qemu("qemu-img", &["create", "-q", "-f", "raw", "image", "96M"]);
    sandbox.qemu("qemu-io", &["-f", "raw", "-c", "write -P 7 0 96M", "image"]);
    let server = sandbox.serve();
    let mut stream = server.connect();
    let image = sandbox.path("image");
    writeln!(stream, r#"{{"op":"import","file":"{}","volume":"web","format":"raw"}}"#, text(&image)).unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    server.kill();
    assert!(line.starts_with("{\"progress\":"), "{line}");
    let list = sandbox.offline(&["volume", "list", "--json"]).json();
    let names: Vec<&str> = list.as_array().unwrap().iter().map(|volume| volume["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["web.part"]);
    let complaint = sandbox.offline(&["volume", "import", "image", "web"]).bad(1);
    assert!(
        complaint.contains("volume web.part exists already; choose another name or delete it first"),
        "{complaint}"
    );
    sandbox.offline(&["volume", "delete", "web.part"]).good();
    sandbox.offline(&["volume", "import", "image", "web", "-q"]).good();
    assert_eq!(sandbox.offline(&["volume", "show", "web", "--json"]).json()["referenced"], 96 << 20);
}
