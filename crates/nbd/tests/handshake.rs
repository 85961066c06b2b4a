//! The handshake as bytes: what each client message is answered with, and where a session ends.
//! Hex is written from the protocol document ("Newstyle negotiation", "Option types", "Option reply types").

#![expect(clippy::unwrap_used, reason = "a test helper that fails, fails its test")]

use keyframe_nbd::handshake::{Handshake, Step};
use keyframe_nbd::memory::{Memory, MemoryExport};

const FLAGS: &str = "00000003";
const OPT: &str = "49484156454f5054";
const REP: &str = "0003e889045565a9";

fn bytes(hex: &str) -> Vec<u8> {
    let hex: String = hex.split_whitespace().collect();
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn exports() -> Memory {
    let read_only = MemoryExport { read_only: true, ..MemoryExport::new("ro", 1 << 20) };
    let exclusive = MemoryExport { exclusive: true, ..MemoryExport::new("x", 512) };
    Memory::new([MemoryExport::new("vm", 1 << 30), read_only, exclusive])
}

/// Feeds a whole conversation in pieces of `piece` bytes; the replies, and how it ended with what was left of the input.
fn converse(backend: &Memory, input: &[u8], piece: usize) -> (Vec<u8>, String) {
    let mut handshake = Handshake::new();
    let (mut out, mut held, mut rest) = (Vec::new(), Vec::new(), input);
    loop {
        let (used, step) = handshake.receive(&held, &mut out, backend);
        held.drain(..used);
        let left = held.len() + rest.len();
        match step {
            Step::Again => {}
            Step::End => return (out, format!("end, {left} left")),
            Step::Ready { session, .. } => {
                let flags = [(session.structured, "structured"), (session.block_status, "status")];
                let on: Vec<&str> = flags.iter().filter(|flag| flag.0).map(|flag| flag.1).collect();
                return (out, format!("ready {} {on:?}, {left} left", session.size));
            }
            Step::More if rest.is_empty() => return (out, format!("more, {left} left")),
            Step::More => {
                let (next, later) = rest.split_at(piece.min(rest.len()));
                held.extend_from_slice(next);
                rest = later;
            }
        }
    }
}

fn check(input: &[&str], replies: &[&str], ending: &str) {
    let input = bytes(&input.concat());
    let expected: String = replies.concat().split_whitespace().collect();
    for piece in [1, 7, usize::MAX] {
        let (out, end) = converse(&exports(), &input, piece);
        assert_eq!(hex(&out), expected, "replies to {} in pieces of {piece}", hex(&input));
        assert_eq!(end, ending, "ending of {} in pieces of {piece}", hex(&input));
    }
}

fn option(number: u32, data: &str) -> String {
    let len = bytes(data).len();
    format!("{OPT} {number:08x} {len:08x} {data}")
}

fn reply(number: u32, kind: u32, data: &str) -> String {
    let len = bytes(data).len();
    format!("{REP} {number:08x} {kind:08x} {len:08x} {data}")
}

fn error(number: u32, kind: u32, text: &str) -> String {
    reply(number, 0x8000_0000 + kind, &hex(text.as_bytes()))
}

#[test]
fn the_greeting() {
    assert_eq!(hex(&Handshake::GREETING), "4e42444d41474943 49484156454f5054 0003".replace(' ', ""));
}

#[test]
fn client_flags() {
    check(&[""], &[], "more, 0 left");
    check(&["000000"], &[], "more, 3 left");
    check(&[FLAGS], &[], "more, 0 left");
    check(&["00000000"], &[], "more, 0 left");
    check(&["00000007"], &[], "end, 0 left");
    check(&["ffffffff"], &[], "end, 0 left");
}

#[test]
fn export_name_replies_with_size_and_flags() {
    // "vm", writable, shared, no structured replies: flags 0d6d.
    check(&[FLAGS, &option(1, "766d")], &["0000000040000000 0d6d"], "ready 1073741824 [], 0 left");
    let padding = "00".repeat(124);
    check(&["00000001", &option(1, "766d")], &["0000000040000000 0d6d", &padding], "ready 1073741824 [], 0 left");
    check(&[FLAGS, &option(1, "726f")], &["0000000000100000 050f"], "ready 1048576 [], 0 left");
    check(&[FLAGS, &option(1, "6e6f")], &[], "end, 0 left");
    check(&[FLAGS, &option(1, "c328")], &[], "end, 0 left");
    // What follows is the first request and stays.
    check(&[FLAGS, &option(1, "766d"), "25609513"], &["0000000040000000 0d6d"], "ready 1073741824 [], 4 left");
}

#[test]
fn go_describes_the_export() {
    let export = |flags: &str| reply(7, 3, &format!("0000 0000000040000000 {flags}"));
    let sizes = reply(7, 3, "0003 00000200 00001000 02000000");
    let ack = reply(7, 1, "");
    let ready = "ready 1073741824 [], 0 left";
    check(&[FLAGS, &option(7, "00000002 766d 0000")], &[&export("0d6d"), &sizes, &ack], ready);
    let name = reply(7, 3, "0001 766d");
    let description = reply(7, 3, &format!("0002 {}", hex(b"1073741824 bytes of memory")));
    check(
        &[FLAGS, &option(7, "00000002 766d 0003 0001 0002 0003")],
        &[&export("0d6d"), &name, &description, &sizes, &ack],
        ready,
    );
    check(
        &[FLAGS, &option(8, ""), &option(7, "00000002 766d 0000")],
        &[&reply(8, 1, ""), &export("0ded"), &sizes, &ack],
        "ready 1073741824 [\"structured\"], 0 left",
    );
}

#[test]
fn info_leaves_the_client_in_the_handshake() {
    let info = |data| reply(6, 3, data);
    check(
        &[FLAGS, &option(6, "00000002 726f 0000"), &option(2, "")],
        &[
            &info("0000 0000000000100000 050f"),
            &info("0003 00000200 00001000 02000000"),
            &reply(6, 1, ""),
            &reply(2, 1, ""),
        ],
        "end, 0 left",
    );
}

#[test]
fn what_cannot_be_opened() {
    check(&[FLAGS, &option(7, "00000002 6e6f 0000")], &[&error(7, 6, "no such export")], "more, 0 left");
    check(&[FLAGS, &option(6, "00000000 0000")], &[&error(6, 6, "no such export")], "more, 0 left");
    let backend = exports();
    let first = bytes(&[FLAGS, &option(7, "00000001 78 0000")].concat());
    let mut handshake = Handshake::new();
    let mut out = Vec::new();
    let (used, _) = handshake.receive(&first, &mut out, &backend);
    let (_, step) = handshake.receive(&first[used..], &mut out, &backend);
    let Step::Ready { device, .. } = step else { panic!("the first client gets the device") };
    let (out, end) = converse(&backend, &first, usize::MAX);
    assert_eq!((hex(&out), end), (error(7, 2, "the export is in use").replace(' ', ""), "more, 0 left".to_owned()));
    assert_eq!(backend.attached("x"), 1);
    drop(device);
    assert_eq!(backend.attached("x"), 0);
}

#[test]
fn list_and_abort() {
    let server =
        |name: &str, text: &[u8]| reply(3, 2, &format!("{:08x} {} {}", name.len(), hex(name.as_bytes()), hex(text)));
    check(
        &[FLAGS, &option(3, ""), &option(2, ""), "00"],
        &[
            &server("ro", b"1048576 bytes of memory"),
            &server("vm", b"1073741824 bytes of memory"),
            &server("x", b"512 bytes of memory"),
            &reply(3, 1, ""),
            &reply(2, 1, ""),
        ],
        "end, 1 left",
    );
    check(&[FLAGS, &option(3, "00")], &[&error(3, 3, "option takes no data")], "more, 0 left");
    check(&[FLAGS, &option(8, "00")], &[&error(8, 3, "option takes no data")], "more, 0 left");
}

#[test]
fn unknown_options_are_skipped() {
    let unsupported = |number| reply(number, 0x8000_0001, "");
    // PEEK_EXPORT, STARTTLS, EXTENDED_HEADERS, and one nobody knows.
    for number in [4, 5, 11, 0xdead_beef] {
        check(
            &[FLAGS, &option(number, "0102"), &option(2, "")],
            &[&unsupported(number), &reply(2, 1, "")],
            "end, 0 left",
        );
    }
}

#[test]
fn meta_contexts() {
    let structured = [option(8, ""), reply(8, 1, "")];
    let name = "00000002 766d";
    let allocation = format!("0000000f {}", hex(b"base:allocation"));
    let context = |number, id: &str| reply(number, 4, &format!("{id} {}", hex(b"base:allocation")));
    let check_after = |option: &str, replies: &[&str]| {
        let replies = [&[structured[1].as_str()], replies].concat();
        check(&[FLAGS, &structured[0], option], &replies, "more, 0 left");
    };
    check_after(&option(9, &format!("{name} 00000000")), &[&context(9, "00000000"), &reply(9, 1, "")]);
    let wildcard = format!("{name} 00000001 00000005 {}", hex(b"base:"));
    check_after(&option(9, &wildcard), &[&context(9, "00000000"), &reply(9, 1, "")]);
    check_after(&option(10, &wildcard), &[&reply(10, 1, "")]);
    check_after(&option(10, &format!("{name} 00000000")), &[&reply(10, 1, "")]);
    let selected = format!("{name} 00000001 {allocation}");
    check_after(&option(10, &selected), &[&context(10, "00000001"), &reply(10, 1, "")]);
    check_after(&option(10, &format!("{name} 00000002 {allocation}")), &[&error(10, 3, "malformed option")]);
    check(&[FLAGS, &option(10, &selected)], &[&error(10, 3, "malformed option")], "more, 0 left");
}

#[test]
fn a_selection_holds_for_its_export_only() {
    let allocation = format!("0000000f {}", hex(b"base:allocation"));
    let set = |name: &str| option(10, &format!("00000002 {name} 00000001 {allocation}"));
    let failing = option(10, "00");
    let ending = |options: &[&str]| {
        let input = bytes(&[&[FLAGS, &option(8, "")], options, &[&option(7, "00000002 766d 0000")]].concat().concat());
        converse(&exports(), &input, usize::MAX).1
    };
    let with = "ready 1073741824 [\"structured\", \"status\"], 0 left";
    let without = "ready 1073741824 [\"structured\"], 0 left";
    assert_eq!(ending(&[&set("766d")]), with);
    assert_eq!(ending(&[&set("726f")]), without);
    assert_eq!(ending(&[&set("766d"), &failing]), without);
    assert_eq!(ending(&[&set("726f"), &set("766d")]), with);
}

#[test]
fn limits() {
    let long = 16 * 1024 + 1;
    let data = "61".repeat(long);
    check(
        &[FLAGS, &option(7, &data), &option(2, "")],
        &[&error(7, 9, "option data too long"), &reply(2, 1, "")],
        "end, 0 left",
    );
    // EXPORT_NAME has no error reply.
    check(&[FLAGS, &format!("{OPT} 00000001 {long:08x}")], &[], "end, 0 left");
    check(&[FLAGS, &format!("{OPT} 00000007 ffffffff 00")], &[], "more, 0 left");
    let name = "61".repeat(4097);
    check(&[FLAGS, &option(1, &name)], &[], "end, 0 left");
    check(
        &[FLAGS, &option(7, &format!("00001001 {name} 0000"))],
        &[&error(7, 9, "string longer than 4096 bytes")],
        "more, 0 left",
    );
    let many = vec![option(5, ""); 257].concat();
    check(&[FLAGS, &many], &[&reply(5, 0x8000_0001, "").repeat(256)], "end, 0 left");
}

#[test]
fn violations_end_the_session() {
    check(&[FLAGS, "25609513 0000 0000 0000000000000000"], &[], "end, 0 left");
    check(&[FLAGS, &option(7, "")], &[&error(7, 3, "malformed option")], "more, 0 left");
    check(&[FLAGS, &option(7, "00000002 766d 0001")], &[&error(7, 3, "malformed option")], "more, 0 left");
}
