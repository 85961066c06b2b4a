//! Images in and out, judged by QEMU: `qemu-img compare` says whether two disks are the same, `qemu-img check` whether an
//! image is sound.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use common::{Ran, Sandbox};

/// A sparse raw image of 32 MiB with data, stored zeroes and holes, among them pieces smaller than a block.
fn raw_image(sandbox: &Sandbox, name: &str) {
    sandbox.qemu("qemu-img", &["create", "-q", "-f", "raw", name, "32M"]);
    let commands =
        ["write -P 1 0 64k", "write -P 2 1M 3M", "write -z 6M 1M", "write -P 3 10000k 512", "write -P 4 33550336 4k"];
    let mut line = vec!["-f", "raw"];
    line.extend(commands.iter().flat_map(|command| ["-c", command]));
    line.push(name);
    sandbox.qemu("qemu-io", &line);
}

fn same(sandbox: &Sandbox, one: (&str, &str), other: (&str, &str)) {
    sandbox.qemu("qemu-img", &["compare", "-f", one.0, "-F", other.0, one.1, other.1]);
}

fn round_trip(sandbox: &Sandbox, run: &dyn Fn(&[&str]) -> Ran) {
    raw_image(sandbox, "disk.raw");
    sandbox.qemu("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", "-c", "disk.raw", "disk.qcow2"]);
    run(&["volume", "import", "disk.raw", "a", "-q"]).good();
    run(&["volume", "import", "disk.qcow2", "b", "-q"]).good();
    for volume in ["a", "b"] {
        let referenced = run(&["volume", "show", volume, "--json"]).json()["referenced"].as_u64().unwrap();
        assert_eq!(referenced, (64 << 10) + (3 << 20) + 4096 + 4096, "{volume}: zeroes are not stored");
        let [raw, qcow2] = ["raw", "qcow2"].map(|format| format!("out-{volume}.{format}"));
        run(&["volume", "export", volume, &raw, "-q"]).good();
        run(&["volume", "export", volume, &qcow2, "-q"]).good();
        same(sandbox, ("raw", "disk.raw"), ("raw", &raw));
        same(sandbox, ("raw", "disk.raw"), ("qcow2", &qcow2));
        sandbox.qemu("qemu-img", &["check", "-q", "-f", "qcow2", &qcow2]);
        let stored = std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(sandbox.path(&raw)).unwrap()) * 512;
        assert!(stored < 4 << 20, "{raw} takes {stored} bytes: it should be sparse");
    }
}

#[test]
fn images_go_in_and_out_offline() {
    let sandbox = Sandbox::new();
    round_trip(&sandbox, &|line| sandbox.offline(line));
}

#[test]
fn images_go_in_and_out_through_the_server() {
    let sandbox = Sandbox::new();
    let server = sandbox.serve();
    round_trip(&sandbox, &|line| server.online(line));
}

/// The format of a file without a telling name is found, and can be given.
#[test]
fn formats_are_found_and_given() {
    let sandbox = Sandbox::new();
    raw_image(&sandbox, "disk");
    sandbox.qemu("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", "disk", "image"]);
    sandbox.offline(&["volume", "import", "image", "found", "-q"]).good();
    sandbox.offline(&["volume", "import", "image", "bytes", "--format", "raw", "-q"]).good();
    sandbox.offline(&["volume", "export", "found", "found", "-q"]).good();
    sandbox.offline(&["volume", "export", "bytes", "bytes", "-q"]).good();
    sandbox.offline(&["volume", "export", "found", "again", "--format", "qcow2", "-q"]).good();
    same(&sandbox, ("raw", "disk"), ("raw", "found"));
    same(&sandbox, ("raw", "disk"), ("qcow2", "again"));
    same(&sandbox, ("qcow2", "image"), ("qcow2", "bytes"));
}

/// A disk whose size is no multiple of a block is rounded up, with zeroes at its end.
#[test]
fn odd_sizes_are_rounded_up() {
    let sandbox = Sandbox::new();
    let bytes = [7; 70_000];
    std::fs::write(sandbox.path("odd"), bytes).unwrap();
    sandbox.offline(&["volume", "import", "odd", "odd", "-q"]).good();
    sandbox.offline(&["volume", "export", "odd", "out", "-q"]).good();
    let out = std::fs::read(sandbox.path("out")).unwrap();
    assert_eq!(out.len(), 73_728);
    assert!(out[..70_000] == bytes && out[70_000..].iter().all(|byte| *byte == 0));
    sandbox.offline(&["volume", "export", "odd", "out.qcow2", "-q"]).good();
    same(&sandbox, ("raw", "out"), ("qcow2", "out.qcow2"));
}

/// An image from anywhere must not say which files of this host are read. Its owner can make a whole one of it.
#[test]
fn what_an_image_names_is_not_followed_and_a_whole_one_made_of_it_is_imported() {
    let sandbox = Sandbox::new();
    raw_image(&sandbox, "base");
    sandbox.qemu("qemu-img", &["create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", "top.qcow2"]);
    sandbox.qemu("qemu-io", &["-f", "qcow2", "-c", "write -P 9 2M 100k", "-c", "write -z 0 64k", "top.qcow2"]);
    let nested = r#"json:{"driver":"raw","file":{"driver":"file","filename":"base"}}"#;
    sandbox.qemu("qemu-img", &["create", "-q", "-f", "qcow2", "-b", nested, "-F", "raw", "nested.qcow2"]);
    sandbox.qemu(
        "qemu-img",
        &["create", "-q", "-f", "qcow2", "-o", "data_file=base2,data_file_raw=on", "data.qcow2", "1M"],
    );
    let secret = ["--object", "secret,id=s,data=abc", "-o", "encrypt.format=luks,encrypt.key-secret=s"];
    sandbox.qemu("qemu-img", &[&["create", "-q", "-f", "qcow2"], &secret[..], &["locked.qcow2", "1M"]].concat());
    let refused = |image: &str, why: &str| {
        let error = sandbox.offline(&["volume", "import", image, "web", "-q"]).bad(1);
        assert!(error.contains(why) && error.contains("qemu-img convert"), "{image}: {error}");
    };
    refused("top.qcow2", "the difference to \"base\"");
    refused("nested.qcow2", "the difference to \"json:");
    refused("data.qcow2", "its data is in another file");
    refused("locked.qcow2", "it is encrypted");
    assert!(!sandbox.offline(&["volume", "list"]).good().contains("web"), "something of it is left");
    sandbox.qemu("qemu-img", &["convert", "-f", "qcow2", "-O", "qcow2", "top.qcow2", "whole.qcow2"]);
    sandbox.offline(&["volume", "import", "whole.qcow2", "web", "-q"]).good();
    sandbox.offline(&["volume", "export", "web", "out", "-q"]).good();
    same(&sandbox, ("qcow2", "top.qcow2"), ("raw", "out"));
}

#[test]
fn an_image_of_another_format_is_no_raw_one() {
    let sandbox = Sandbox::new();
    for (format, name) in [("vmdk", "VMDK"), ("vdi", "VDI"), ("vhdx", "VHDX"), ("vpc", "VHD"), ("qed", "QED")] {
        sandbox.qemu("qemu-img", &["create", "-q", "-f", format, format, "8M"]);
        let error = sandbox.offline(&["volume", "import", format, "web", "-q"]).bad(1);
        assert!(error.contains(&format!("it is a {name} image")) && error.contains("qemu-img convert"), "{error}");
    }
    assert!(!sandbox.offline(&["volume", "list"]).good().contains("web"), "something of it is left");
    // Who says what it is, is believed.
    sandbox.offline(&["volume", "import", "vmdk", "web", "--format", "raw", "-q"]).good();
}

/// Base exported once, then only differences: every overlay over its base is the snapshot.
#[test]
fn differences_are_exported_as_overlays() {
    let sandbox = Sandbox::new();
    let server = sandbox.serve();
    raw_image(&sandbox, "disk.raw");
    server.online(&["volume", "import", "disk.raw", "web", "-q"]).good();
    server.online(&["volume", "snapshot", "create", "web@one", "-q"]).good();
    server.io("web", &["write -P 5 1M 100k", "discard 2M 1M", "write -z 3M 64k", "write -P 6 20M 4k"]);
    server.online(&["volume", "snapshot", "create", "web@two", "-q"]).good();
    // Grown, so that the overlay is larger than what it lies on.
    server.online(&["volume", "resize", "web", "40M"]).good();
    server.io("web", &["write -P 8 39M 1M", "write -P 0 0 64k"]);
    server.online(&["volume", "snapshot", "create", "web@three", "-q"]).good();

    server.online(&["volume", "export", "web@one", "one.raw", "-q"]).good();
    let two = ["volume", "export", "web@two", "two.qcow2", "--from", "web@one", "--backing", "one.raw", "-q"];
    server.online(&two).good();
    let three = ["volume", "export", "web@three", "three.qcow2", "--from", "web@two", "--backing", "two.qcow2", "-q"];
    server.online(&three).good();
    server.online(&["volume", "clone", "web@one", "lab"]).good();
    server.io("lab", &["write -P 7 5M 64k"]);
    let lab = ["volume", "export", "lab", "lab", "--from", "web@three", "--backing", "three.qcow2", "-q"];
    server.online(&lab).good();
    for (target, overlay) in [("web@two", "two.qcow2"), ("web@three", "three.qcow2"), ("lab", "lab")] {
        let full = format!("{target}.full");
        server.online(&["volume", "export", target, &full, "-q"]).good();
        same(&sandbox, ("raw", &full), ("qcow2", overlay));
        sandbox.qemu("qemu-img", &["check", "-q", "-f", "qcow2", overlay]);
    }
    let info = sandbox.qemu("qemu-img", &["info", "two.qcow2"]);
    assert!(info.contains("backing file: one.raw\n") && info.contains("backing file format: raw\n"), "{info}");
    let size = std::fs::metadata(sandbox.path("two.qcow2")).unwrap().len();
    assert!(size < 1 << 20, "only what changed is in the overlay, not {size} bytes");
}
