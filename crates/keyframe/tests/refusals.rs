//! Whatever is wrong: the command says what and the way out, ends with the right code, and the pool file keeps every byte.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::os::unix::fs::FileExt;

use common::{Ran, Sandbox};

/// The command is refused with this code and these words, and the file `pool` is as before.
#[track_caller]
fn refuses(sandbox: &Sandbox, code: i32, line: &[&str], words: &str) {
    let before = sandbox.hash("pool");
    let complaint = sandbox.offline(line).bad(code);
    assert!(complaint.contains(words), "{line:?}: {complaint}");
    assert_eq!(sandbox.hash("pool"), before, "{line:?} changed the pool");
}

/// A pool with a volume `web`, a snapshot `web@one` and a volume `db`.
fn furnished() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.offline(&["volume", "create", "web", "16M"]).good();
    sandbox.offline(&["volume", "create", "db", "16M"]).good();
    sandbox.offline(&["volume", "snapshot", "create", "web@one", "-q"]).good();
    sandbox
}

#[test]
fn names_are_refused() {
    let sandbox = furnished();
    let long = "x".repeat(10_000);
    let long_snapshot = format!("web@{long}");
    for (code, name, words) in [
        (2, "", "must not be empty"),
        (2, "a/b", "must not contain '/'"),
        (2, "a@b", "must not contain '@'"),
        (2, "a b", "must not contain ' '"),
        (2, "..", "must not be"),
        (2, &long, "10000 bytes long, the limit is"),
        (1, "web", "volume web exists already; choose another name or delete it first"),
    ] {
        refuses(&sandbox, code, &["volume", "create", name, "1M"], words);
        refuses(&sandbox, code, &["volume", "clone", "web@one", name], words);
        refuses(&sandbox, code, &["volume", "clone", "web", name], words);
        refuses(&sandbox, code, &["volume", "rename", "db", name], words);
    }
    for (code, name, words) in [
        (2, "web@", "must not be empty"),
        (2, "web@a/b", "must not contain '/'"),
        (2, &long_snapshot, "10000 bytes long"),
        (1, "web@one", "snapshot web@one exists already"),
        (1, "nobody@x", "no volume named nobody"),
    ] {
        refuses(&sandbox, code, &["volume", "snapshot", "create", name], words);
    }
    // All or none: the good one is not taken either.
    refuses(&sandbox, 1, &["volume", "snapshot", "create", "db@new", "web@one"], "web@one exists already");
    refuses(&sandbox, 2, &["volume", "snapshot", "create", "db@a", "db@b"], "volume db is named twice");
    refuses(&sandbox, 1, &["volume", "revert", "web@one", "--keep", "one"], "web@one exists already");
    refuses(&sandbox, 2, &["volume", "snapshot", "rename", "web@one", "a b"], "must not contain ' '");
}

#[test]
fn sizes_are_refused() {
    let sandbox = furnished();
    for (code, size, words) in [
        (2, "0", "must not be 0"),
        (2, "4097", "4097 bytes is not a multiple of 4096"),
        (2, "129T", "129 TiB is above the limit of 128 TiB"),
        (2, "15E", "above the limit"),
        (2, "99E", "is larger than any volume or pool can be"),
        (2, "10GB", "write a size as 10G, 512M, 1.5T or as plain bytes"),
        (2, "big", "write a size as"),
    ] {
        refuses(&sandbox, code, &["volume", "create", "new", size], words);
        refuses(&sandbox, code, &["volume", "resize", "web", size], words);
    }
    refuses(&sandbox, 2, &["volume", "create", "new", "--", "-1"], "write a size as");
    refuses(&sandbox, 2, &["pool", "grow", "--size", "64M"], "cannot shrink to 64 MiB");
    let create = |size: &str| sandbox.bare(&["pool", "create", "other", "--size", size, "--preallocation", "off"]);
    assert!(create("0").bad(2).contains("less than the smallest pool"));
    assert!(create("1M").bad(2).contains("less than the smallest pool"));
    assert!(create("15E").bad(2).contains("more than the largest pool"));
    assert!(!sandbox.path("other").exists());
}

#[test]
fn what_is_not_there_is_refused() {
    let sandbox = furnished();
    for line in [
        &["volume", "show", "nobody"][..],
        &["volume", "resize", "nobody", "1M"],
        &["volume", "rename", "nobody", "new"],
        &["volume", "delete", "nobody"],
        &["volume", "list", "--after", "nobody"],
        &["volume", "snapshot", "list", "nobody"],
        &["volume", "clone", "nobody", "new"],
        &["volume", "clone", "nobody@one", "new"],
        &["volume", "tree", "nobody"],
        &["volume", "space", "web", "nobody"],
        &["volume", "diff", "web", "nobody"],
        &["volume", "diff", "nobody", "web"],
        &["volume", "export", "nobody", "image"],
    ] {
        refuses(&sandbox, 1, line, "no volume named nobody");
    }
    for line in [
        &["volume", "snapshot", "show", "web@two"][..],
        &["volume", "snapshot", "rename", "web@two", "new"],
        &["volume", "snapshot", "delete", "web@two"],
        &["volume", "snapshot", "delete", "web@two", "--subtree"],
        &["volume", "snapshot", "delete", "web@two", "--dry-run"],
        &["volume", "revert", "web@two"],
        &["volume", "clone", "web@two", "new"],
        &["volume", "export", "web@two", "image"],
    ] {
        refuses(&sandbox, 1, line, "no snapshot named web@two");
    }
    refuses(&sandbox, 1, &["volume", "delete", "web"], "volume web has 1 snapshot; delete them first");
    refuses(&sandbox, 2, &["volume", "diff", "db", "web"], "have no common ancestor");
    refuses(&sandbox, 2, &["volume", "snapshot", "create", "web"], "a snapshot is written VOLUME@NAME");
    refuses(&sandbox, 2, &["volume", "revert", "web"], "a snapshot is written VOLUME@NAME");
    assert!(!sandbox.path("image").exists());
}

#[test]
fn images_are_refused() {
    let sandbox = furnished();
    std::fs::write(sandbox.path("empty"), "").unwrap();
    std::fs::write(sandbox.path("small"), [1; 4096]).unwrap();
    std::fs::write(sandbox.path("broken.qcow2"), [b"QFI\xfb".as_slice(), &[0xff; 4096]].concat()).unwrap();
    std::fs::write(sandbox.path("later.qcow2"), [b"QFI\xfb\0\0\0\x04".as_slice(), &[0; 4096]].concat()).unwrap();
    std::fs::write(sandbox.path("short.qcow2"), [b"QFI\xfb\0\0\0\x03".as_slice(), &[0; 72]].concat()).unwrap();
    let mut large = [b"QFI\xfb\0\0\0\x02".as_slice(), &[0; 64]].concat();
    large[24..32].copy_from_slice(&(129u64 << 40).to_be_bytes());
    std::fs::write(sandbox.path("large.qcow2"), large).unwrap();
    refuses(&sandbox, 2, &["volume", "import", "large.qcow2", "new"], "129 TiB is above the limit of 128 TiB");
    refuses(&sandbox, 1, &["volume", "import", "later.qcow2", "new"], "version 4 of the qcow2 format is not known");
    refuses(&sandbox, 1, &["volume", "import", "short.qcow2", "new"], "its header is cut off");
    refuses(&sandbox, 1, &["volume", "import", "nothing", "new"], "cannot open it: No such file or directory");
    refuses(&sandbox, 1, &["volume", "import", "empty", "new"], "the image is empty");
    refuses(&sandbox, 1, &["volume", "import", ".", "new"], "it is not a file or a block device");
    refuses(&sandbox, 1, &["volume", "import", "small", "web"], "volume web exists already");
    refuses(&sandbox, 2, &["volume", "import", "small", "a/b"], "must not contain '/'");
    refuses(
        &sandbox,
        1,
        &["volume", "import", "broken.qcow2", "new"],
        "it is no valid qcow2 image, though it begins like one",
    );
    refuses(&sandbox, 1, &["volume", "import", "small", "new", "--format", "qcow2"], "not in qcow2 format");
    refuses(
        &sandbox,
        1,
        &["volume", "export", "web", "small"],
        "exists already; choose another name or remove it first",
    );
    refuses(&sandbox, 1, &["volume", "export", "web", "nowhere/image"], "cannot make a file in");
    refuses(&sandbox, 2, &["volume", "export", "web", "image", "--from", "web@one"], "--backing");
    let raw = ["volume", "export", "web", "image", "--from", "web@one", "--backing", "base", "--format", "raw"];
    refuses(&sandbox, 2, &raw, "a raw image cannot hold a difference; use the format qcow2");
    let foreign = ["volume", "export", "web", "image", "--from", "db", "--backing", "base"];
    refuses(&sandbox, 2, &foreign, "have no common ancestor");
    let left: Vec<_> = std::fs::read_dir(sandbox.dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 7, "{left:?}");
}

/// An import that does not fit leaves no volume behind.
#[test]
fn an_import_that_does_not_fit_is_undone() {
    let sandbox = Sandbox::new();
    sandbox.qemu("qemu-img", &["create", "-q", "-f", "raw", "large", "256M"]);
    sandbox.qemu("qemu-io", &["-f", "raw", "-c", "write -P 7 0 200M", "large"]);
    let complaint = sandbox.offline(&["volume", "import", "large", "web"]).bad(1);
    assert!(complaint.contains("cannot import") && complaint.contains("full"), "{complaint}");
    assert_eq!(sandbox.offline(&["volume", "list", "--json"]).good(), "[]\n");
    assert!(sandbox.bare(&["pool", "check", "pool"]).good().starts_with("no errors"));
}

#[test]
fn the_pool_must_be_named_and_there() {
    let sandbox = Sandbox::empty();
    assert!(sandbox.bare(&["volume", "list"]).bad(2).contains("give --pool FILE or --control SOCKET"));
    assert!(sandbox.bare(&["pool", "serve"]).bad(2).contains("no pool is named"));
    assert!(sandbox.offline(&["volume", "list"]).bad(1).contains("no pool at "));
    assert!(sandbox.bare(&["pool", "check", "pool"]).bad(1).contains("no pool at pool"));
    assert!(sandbox.bare(&["volume", "list", "--control", "control"]).bad(1).contains("no server answers at control"));
    assert!(sandbox.bare(&["volume", "list", "--control", "a", "--pool", "b"]).bad(2).contains("name one of them"));
    assert_eq!(sandbox.bare(&["frobnicate"]).code, Some(2));
    assert_eq!(sandbox.bare(&[]).code, Some(2));
}

#[test]
fn a_pool_is_not_made_over_anything() {
    let sandbox = Sandbox::new();
    refuses_create(&sandbox, "pool", "exists already; choose another path or remove it");
    std::fs::write(sandbox.path("note"), "keep me").unwrap();
    refuses_create(&sandbox, "note", "exists already");
    assert!(sandbox.bare(&["pool", "create", "no/where", "--size", "64M"]).bad(1).contains("there is no folder no"));
}

fn refuses_create(sandbox: &Sandbox, file: &str, words: &str) {
    let before = sandbox.hash(file);
    assert!(sandbox.bare(&["pool", "create", file, "--size", "64M"]).bad(1).contains(words));
    assert_eq!(sandbox.hash(file), before);
}

/// Spoils the pool file, then tries everything that opens it.
#[track_caller]
fn spoilt(spoil: impl Fn(&Sandbox), words: &str) {
    let sandbox = furnished();
    spoil(&sandbox);
    for line in [
        &["volume", "list"][..],
        &["pool", "info"],
        &["volume", "create", "new", "1M"],
        &["volume", "snapshot", "create", "web@new"],
        &["volume", "delete", "db"],
        &["pool", "grow", "--size", "1G"],
    ] {
        refuses(&sandbox, 1, line, words);
    }
    refuses(&sandbox, 1, &["pool", "serve", "--control", "control"], words);
    assert!(!sandbox.path("control").exists());
    let before = sandbox.hash("pool");
    assert!(sandbox.bare(&["pool", "check", "pool"]).bad(1).contains(words));
    assert_eq!(sandbox.hash("pool"), before);
}

const SUPERBLOCKS: [u64; 2] = [4 * 4096, 5 * 4096];

fn open(sandbox: &Sandbox) -> std::fs::File {
    std::fs::OpenOptions::new().read(true).write(true).open(sandbox.pool()).unwrap()
}

fn flip(file: &std::fs::File, offset: u64) {
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], offset).unwrap();
}

#[test]
fn an_empty_file_is_no_pool() {
    spoilt(|sandbox| open(sandbox).set_len(0).unwrap(), "is not a keyframe pool: it is empty");
}

#[test]
fn a_truncated_pool_is_refused() {
    spoilt(|sandbox| open(sandbox).set_len(100 << 20).unwrap(), "truncated");
}

#[test]
fn a_foreign_file_is_no_pool() {
    let replace = |sandbox: &Sandbox| {
        std::fs::remove_file(sandbox.pool()).unwrap();
        sandbox.qemu("qemu-img", &["create", "-q", "-f", "qcow2", "-o", "preallocation=falloc", "pool", "160M"]);
    };
    spoilt(replace, "is not a keyframe pool: no superblock was found");
}

#[test]
fn a_newer_format_is_refused() {
    let renumber = |sandbox: &Sandbox| {
        let file = open(sandbox);
        for offset in SUPERBLOCKS {
            let mut block = [0; 4096];
            file.read_exact_at(&mut block, offset).unwrap();
            block[8..12].copy_from_slice(&99u32.to_le_bytes());
            let crc = crc32c::crc32c(&block[..4092]);
            block[4092..].copy_from_slice(&crc.to_le_bytes());
            file.write_all_at(&block, offset).unwrap();
        }
    };
    spoilt(renumber, "has format 99, this program reads up to 1; use a newer keyframe");
}

#[test]
fn two_damaged_superblocks_are_refused() {
    let flip_both = |sandbox: &Sandbox| SUPERBLOCKS.iter().for_each(|offset| flip(&open(sandbox), offset + 100));
    spoilt(flip_both, "both superblocks of pool");
}

#[test]
fn one_damaged_superblock_is_survived_and_reported() {
    for offset in SUPERBLOCKS {
        let sandbox = furnished();
        flip(&open(&sandbox), offset + 100);
        let damaged = |ran: Ran| ran.json()["damaged_superblock"].clone();
        assert_ne!(damaged(sandbox.offline(&["pool", "info", "--json"])), serde_json::Value::Null);
        assert!(sandbox.offline(&["volume", "list"]).good().contains("web"));
        sandbox.offline(&["volume", "create", "new", "1M"]).good();
        assert_eq!(damaged(sandbox.offline(&["pool", "info", "--json"])), serde_json::Value::Null);
    }
}
