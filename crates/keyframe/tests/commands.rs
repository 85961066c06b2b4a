//! Every data command, once on the pool file and once through a server: the answers are the same to the letter.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use common::{Ran, Sandbox, check, masked};

/// Runs the scenario with commands that reach the pool one way or the other.
fn scenario(sandbox: &Sandbox, run: &dyn Fn(&[&str]) -> Ran) {
    volumes(run);
    snapshots(run);
    families(run);
    images(sandbox, run);
    deletions(run);
}

fn volumes(run: &dyn Fn(&[&str]) -> Ran) {
    assert_eq!(run(&["volume", "create", "web", "16M"]).good(), "");
    check(
        run(&["volume", "create", "db", "1.5M", "--json"]),
        r#"{"name":"db","kind":"volume","size":1572864,"referenced":0,"written":0,"created":0,"parent":null,"attached":0,
            "snapshots":0,"children":0}"#,
    );
    check(
        run(&["volume", "resize", "db", "8M", "--json"]),
        r#"{"name":"db","kind":"volume","size":8388608,"referenced":0,"written":0,"created":0,"parent":null,"attached":0,
            "snapshots":0,"children":0}"#,
    );
    assert_eq!(run(&["volume", "rename", "db", "data"]).good(), "");
    let names = |line: &[&str]| -> Vec<String> {
        let list = run(line).json();
        list.as_array().unwrap().iter().map(|item| item["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&["volume", "list", "--json"]), ["web", "data"]);
    assert_eq!(names(&["volume", "list", "--json"]), ["web", "data"]);
    assert_eq!(names(&["volume", "list", "--limit", "1", "--json"]), ["web"]);
    assert_eq!(names(&["volume", "list", "--after", "web", "--json"]), ["data"]);
    let shown = run(&["volume", "show", "web"]).good();
    assert!(shown.starts_with("volume:        web\nsize:          16 MiB\n"), "{shown}");
    let table = run(&["volume", "list"]).good();
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines[0], "VOLUME    SIZE  REFERENCED  SNAPSHOTS  CLIENTS        CREATED (UTC)");
    assert!(lines[1].starts_with("web     16 MiB         0 B          0        0  20"), "{table}");
}

fn snapshots(run: &dyn Fn(&[&str]) -> Ran) {
    check(
        run(&["volume", "snapshot", "create", "web@one", "data@one", "--json"]),
        r#"{"snapshots":["web@one","data@one"],"held_us":0,"total_us":0}"#,
    );
    let remark = run(&["volume", "snapshot", "create", "web@two"]).good();
    assert!(remark.starts_with("web@two: writes held "), "{remark}");
    assert_eq!(run(&["volume", "snapshot", "create", "web@three", "--quiet"]).good(), "");
    check(
        run(&["volume", "snapshot", "list", "web", "--after", "one", "--limit", "1", "--json"]),
        r#"[{"name":"web@two","kind":"snapshot","size":16777216,"referenced":0,"written":0,"created":0,"parent":"web@one",
            "attached":0,"snapshots":0,"children":1}]"#,
    );
    assert_eq!(run(&["volume", "snapshot", "list", "web"]).good().lines().count(), 4);
    assert_eq!(run(&["volume", "snapshot", "rename", "web@three", "last"]).good(), "");
    check(
        run(&["volume", "snapshot", "show", "web@last", "--json"]),
        r#"{"name":"web@last","kind":"snapshot","size":16777216,"referenced":0,"written":0,"created":0,
            "parent":"web@two","attached":0,"snapshots":0,"children":1}"#,
    );
}

fn families(run: &dyn Fn(&[&str]) -> Ran) {
    assert_eq!(run(&["volume", "clone", "web@one", "lab"]).good(), "");
    check(
        run(&["volume", "clone", "web", "live", "--json"]),
        r#"{"name":"live","kind":"volume","size":16777216,"referenced":0,"written":0,"created":0,
            "parent":"web@clone-live","attached":0,"snapshots":0,"children":0}"#,
    );
    assert_eq!(run(&["volume", "clone", "web", "other", "--via", "base"]).good(), "");
    assert_eq!(run(&["volume", "revert", "web@two", "--keep", "before"]).good(), "");
    let drawn = run(&["volume", "tree", "web"]).good();
    let names: Vec<&str> = drawn.lines().map(|line| line.split("  ").next().unwrap()).collect();
    let expected = [
        "VERSION",
        "○ web@one",
        "├─● lab",
        "○ web@two",
        "├─○ web@last",
        "│ ○ web@clone-live",
        "│ ├─● live",
        "│ ○ web@base",
        "│ ├─● other",
        "│ ○ web@before",
        "● web",
    ];
    assert_eq!(names, expected);
    let tree = masked(run(&["volume", "tree", "data", "--space", "--json"]).json());
    let expected = serde_json::json!([
        {"depth":0,"unique":0,"name":"data@one","kind":"snapshot","size":8388608,"referenced":0,"written":0,"created":0,
         "parent":null,"attached":0,"snapshots":0,"children":1},
        {"depth":1,"unique":0,"name":"data","kind":"volume","size":8388608,"referenced":0,"written":0,"created":0,
         "parent":"data@one","attached":0,"snapshots":1,"children":0}
    ]);
    assert_eq!(tree, expected);
}

/// 64 KiB of sevens at 1 MiB.
fn write_image(sandbox: &Sandbox) {
    sandbox.qemu("qemu-img", &["create", "-q", "-f", "raw", "image", "4M"]);
    sandbox.qemu("qemu-io", &["-f", "raw", "-c", "write -P 7 1M 64k", "image"]);
}

fn images(sandbox: &Sandbox, run: &dyn Fn(&[&str]) -> Ran) {
    write_image(sandbox);
    check(run(&["volume", "import", "image", "disk", "--json"]), r#"{"name":"disk","size":4194304,"copied":65536}"#);
    assert_eq!(run(&["volume", "snapshot", "create", "disk@a", "-q"]).good(), "");
    check(
        run(&["volume", "diff", "-", "disk", "--json"]),
        r#"{"ranges":[{"offset":1048576,"length":65536,"kind":"data"}],"data":65536,"zero":0,"hole":0}"#,
    );
    check(run(&["volume", "diff", "disk@a", "disk", "--json"]), r#"{"ranges":[],"data":0,"zero":0,"hole":0}"#);
    assert_eq!(run(&["volume", "diff", "disk@a", "disk"]).good(), "no difference\n");
    let table = "            OFFSET             LENGTH  KIND\n           1048576              65536  data\n\
        1 ranges: 64 KiB data, 0 B zero, 0 B hole\n";
    assert_eq!(run(&["volume", "diff", "-", "disk"]).good(), table);
    check(
        run(&["volume", "space", "disk", "disk@a", "--json"]),
        r#"{"targets":[{"name":"disk","referenced":65536,"unique":0,"shared":65536,"would_free":0},
            {"name":"disk@a","referenced":65536,"unique":0,"shared":65536,"would_free":0}],"would_free":65536}"#,
    );
    let table = "\
TARGET        REFERENCED  UNIQUE  SHARED  WOULD FREE
disk              64 KiB     0 B  64 KiB         0 B
disk@a            64 KiB     0 B  64 KiB         0 B
all together                                  64 KiB
";
    assert_eq!(run(&["volume", "space", "disk", "disk@a"]).good(), table);
    let exported = masked(run(&["volume", "export", "disk@a", "copy", "--json"]).json());
    assert_eq!((&exported["size"], &exported["copied"]), (&4_194_304.into(), &65536.into()));
    sandbox.qemu("qemu-img", &["compare", "-f", "raw", "-F", "raw", "image", "copy"]);
    std::fs::remove_file(sandbox.path("copy")).unwrap();
}

fn deletions(run: &dyn Fn(&[&str]) -> Ran) {
    assert_eq!(
        run(&["volume", "snapshot", "delete", "disk@a", "--dry-run"]).good(),
        "would delete disk@a\nwould free 0 B\n"
    );
    check(
        run(&["volume", "snapshot", "delete", "disk@a", "--json"]),
        r#"{"deleted":["disk@a"],"would_free":null,"dry_run":false}"#,
    );
    check(
        run(&["volume", "snapshot", "delete", "web@two", "--subtree", "--dry-run", "--json"]),
        r#"{"deleted":["web@before","web@base","web@clone-live","web@last","web@two"],"would_free":0,"dry_run":true}"#,
    );
    assert_eq!(run(&["volume", "snapshot", "delete", "web@two", "--subtree"]).good().lines().count(), 5);
    assert_eq!(run(&["volume", "snapshot", "delete", "data@one"]).good(), "");
    assert_eq!(run(&["volume", "delete", "data"]).good(), "");
    check(
        run(&["volume", "delete", "web", "--snapshots", "--json"]),
        r#"{"deleted":["web"],"would_free":null,"dry_run":false}"#,
    );
    for name in ["lab", "live", "other", "disk"] {
        assert_eq!(run(&["volume", "delete", name]).good(), "");
    }
    assert_eq!(run(&["volume", "list", "--json"]).good(), "[]\n");
}

fn whole_pools(run: &dyn Fn(&[&str]) -> Ran) {
    check(
        run(&["pool", "info", "--json"]),
        r#"{"path":"","uuid":"","created":0,"size":134217728,"used":0,"free":0,"reserve":4194304,"pending":0,
            "volumes":0,"snapshots":0,"ghosts":0,"stopped":null,"damaged_superblock":null}"#,
    );
    check(
        run(&["pool", "scrub", "--json"]),
        r#"{"clean":true,"data_blocks":0,"metadata_pages":0,"versions":0,"errors":[],"more_errors":0}"#,
    );
    assert!(run(&["pool", "scrub"]).good().starts_with("no errors; checked 0 data blocks"));
    check(run(&["pool", "grow", "--size", "192M", "--json"]), r#"{"size":201326592}"#);
    assert_eq!(run(&["pool", "grow", "--size", "192M"]).good(), "the pool has 192 MiB\n");
}

#[test]
fn every_command_works_on_the_file() {
    let sandbox = Sandbox::new();
    scenario(&sandbox, &|line| sandbox.offline(line));
    whole_pools(&|line| sandbox.offline(line));
    check(
        sandbox.offline(&["pool", "stats", "--json"]),
        r#"{"used":0,"free":0,"pending":0,"ghosts":0,"checkpoints":0,"journal_percent":0,"cached_pages":0,
            "dirty_pages":0,"server":null}"#,
    );
    check(
        sandbox.bare(&["pool", "check", "pool", "--json"]),
        r#"{"clean":true,"data_blocks":0,"metadata_pages":0,"versions":0,"errors":[],"more_errors":0}"#,
    );
}

#[test]
fn every_command_works_through_the_server() {
    let sandbox = Sandbox::new();
    let server = sandbox.serve();
    scenario(&sandbox, &|line| server.online(line));
    common::wait_for("reclaiming", || server.online(&["pool", "info", "--json"]).json()["ghosts"] == 0);
    whole_pools(&|line| server.online(line));
    let mut stats = masked(server.online(&["pool", "stats", "--json"]).json());
    let nbd = stats["server"]["nbd"].take();
    assert_eq!(nbd, serde_json::json!([format!("unix:{}", common::text(&sandbox.path("nbd")))]));
    let expected = serde_json::json!({
        "used":0,"free":0,"pending":0,"ghosts":0,"checkpoints":0,"journal_percent":0,"cached_pages":0,"dirty_pages":0,
        "server":{"version":env!("CARGO_PKG_VERSION"),"uptime_seconds":0,"nbd":null,"nbd_connections":0}
    });
    assert_eq!(stats, expected);
    server.stop();
    assert!(sandbox.bare(&["pool", "check", "pool"]).good().starts_with("no errors"));
}

#[test]
fn the_environment_names_the_pool() {
    let sandbox = Sandbox::new();
    sandbox.offline(&["volume", "create", "web", "1M"]).good();
    let list = std::process::Command::new(env!("CARGO_BIN_EXE_keyframe"))
        .args(["volume", "list"])
        .env("KEYFRAME_POOL", sandbox.pool())
        .env_remove("KEYFRAME_CONTROL")
        .output()
        .unwrap();
    assert!(String::from_utf8(list.stdout).unwrap().contains("web"));
}

/// More volumes than one page of the control protocol holds.
#[test]
fn long_lists_come_whole() {
    let sandbox = Sandbox::new();
    let server = sandbox.serve();
    server.online(&["volume", "create", "web", "1M"]).good();
    let mut control = server.connect();
    let mut answers = std::io::BufReader::new(control.try_clone().unwrap());
    for number in 0..1205 {
        use std::io::{BufRead, Write};
        writeln!(control, r#"{{"op":"snapshot-create","targets":[["web","s{number}"]]}}"#).unwrap();
        let mut line = String::new();
        answers.read_line(&mut line).unwrap();
        assert!(line.starts_with(r#"{"result""#), "{line}");
    }
    let all = server.online(&["volume", "snapshot", "list", "web", "--json"]).json();
    assert_eq!(all.as_array().unwrap().len(), 1205);
    let some =
        server.online(&["volume", "snapshot", "list", "web", "--after", "s3", "--limit", "1100", "--json"]).json();
    assert_eq!(some.as_array().unwrap().len(), 1100);
    assert_eq!(some[1099]["name"], "web@s1103");
    assert_eq!(server.online(&["volume", "tree", "web"]).good().lines().count(), 1207);
}
