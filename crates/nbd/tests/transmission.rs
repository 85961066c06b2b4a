//! Requests as bytes, and what each is allowed to do. Numbers from "Request types", "Command flags" and "Error values".

use keyframe_nbd::ExportInfo;
use keyframe_nbd::transmission::{Command, Request, Session};

const SIZE: u64 = 1 << 30;

const WRITABLE: Session = Session { size: SIZE, read_only: false, structured: true, block_status: true };

fn check(session: Session, request: Request, expected: Result<Command, u32>) {
    let decided = session.admit(&request).map_err(|refusal| refusal.errno.code());
    assert_eq!(decided, expected, "{request:?} in {session:?}");
}

fn request(kind: u16, flags: u16, offset: u64, len: u32) -> Request {
    Request { flags, kind, cookie: 7, offset, len }
}

const EPERM: Result<Command, u32> = Err(1);
const EINVAL: Result<Command, u32> = Err(22);
const ENOSPC: Result<Command, u32> = Err(28);
const EOVERFLOW: Result<Command, u32> = Err(75);
const ENOTSUP: Result<Command, u32> = Err(95);

#[test]
fn a_request_on_the_wire() {
    let bytes = [
        0x25, 0x60, 0x95, 0x13, 0x00, 0x01, 0x00, 0x06, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0x12, 0x34, 0x56, 0, 0, 0,
        0x10, 0,
    ];
    let parsed = Request { flags: 1, kind: 6, cookie: 0x0102_0304_0506_0708, offset: 0x1234_5600, len: 4096 };
    assert_eq!(Request::parse(&bytes), Ok(Some(parsed)));
    for len in 0..bytes.len() {
        assert_eq!(Request::parse(&bytes[..len]), Ok(None), "{len} bytes");
    }
    assert!(Request::parse(&[0x25, 0x60, 0x95, 0x12]).is_err());
    assert!(Request::parse(b"GET / HTTP/1.1\r\n").is_err());
}

#[test]
fn plain_commands() {
    check(WRITABLE, request(0, 0, 0, 4096), Ok(Command::Read));
    check(WRITABLE, request(0, 4, 512, 512), Ok(Command::Read));
    check(WRITABLE, request(1, 0, 0, 4096), Ok(Command::Write { fua: false }));
    check(WRITABLE, request(1, 1, 0, 4096), Ok(Command::Write { fua: true }));
    check(WRITABLE, request(2, 0xffff, 3, 5), Ok(Command::Disconnect));
    check(WRITABLE, request(3, 1, 0, 0), Ok(Command::Flush));
    check(WRITABLE, request(4, 1, 0, 1 << 30), Ok(Command::Trim { fua: true }));
    check(WRITABLE, request(5, 0, 0, 4096), Ok(Command::Nothing));
    check(WRITABLE, request(6, 3, 0, 1 << 30), Ok(Command::WriteZeroes { no_hole: true, fua: true }));
    check(WRITABLE, request(6, 16, 0, 4096), Ok(Command::WriteZeroes { no_hole: false, fua: false }));
    check(WRITABLE, request(7, 0, 0, 1 << 30), Ok(Command::BlockStatus { one: false }));
    check(WRITABLE, request(7, 8, 0, 4096), Ok(Command::BlockStatus { one: true }));
}

#[test]
fn flags_that_do_not_apply() {
    check(WRITABLE, request(0, 2, 0, 512), EINVAL);
    check(WRITABLE, request(0, 1, 0, 512), Ok(Command::Read));
    check(Session { structured: false, ..WRITABLE }, request(0, 4, 0, 512), EINVAL);
    check(WRITABLE, request(1, 4, 0, 512), EINVAL);
    check(WRITABLE, request(1, 32, 0, 512), EINVAL);
    check(WRITABLE, request(3, 2, 0, 0), EINVAL);
    check(WRITABLE, request(4, 16, 0, 512), EINVAL);
    check(WRITABLE, request(5, 2, 0, 512), EINVAL);
    check(WRITABLE, request(6, 8, 0, 512), EINVAL);
    check(WRITABLE, request(7, 2, 0, 512), EINVAL);
    check(WRITABLE, request(8, 0, 0, 512), EINVAL);
    check(WRITABLE, request(0xffff, 0, 0, 512), EINVAL);
    check(WRITABLE, request(6, 16 | 2, 0, 4096), ENOTSUP);
    check(Session { block_status: false, ..WRITABLE }, request(7, 0, 0, 512), EINVAL);
}

#[test]
fn ranges() {
    let max = 32 << 20;
    check(WRITABLE, request(0, 0, SIZE - 512, 512), Ok(Command::Read));
    check(WRITABLE, request(0, 0, SIZE - 512, 1024), EINVAL);
    check(WRITABLE, request(0, 0, u64::MAX - 511, 512), EINVAL);
    check(WRITABLE, request(0, 0, u64::MAX, u32::MAX), EINVAL);
    check(WRITABLE, request(1, 0, SIZE, 512), ENOSPC);
    check(WRITABLE, request(1, 0, u64::MAX - 511, 4096), ENOSPC);
    check(WRITABLE, request(4, 0, SIZE, 512), EINVAL);
    check(WRITABLE, request(5, 0, SIZE, 512), EINVAL);
    check(WRITABLE, request(6, 0, SIZE, 512), ENOSPC);
    check(WRITABLE, request(7, 0, SIZE, 512), EINVAL);
    check(WRITABLE, request(0, 0, 0, max), Ok(Command::Read));
    check(WRITABLE, request(0, 0, 0, max + 512), EINVAL);
    check(WRITABLE, request(0, 4, 0, max + 512), EOVERFLOW);
    check(WRITABLE, request(1, 0, 0, max + 512), EINVAL);
    for kind in [0, 1, 4, 5, 6, 7] {
        check(WRITABLE, request(kind, 0, 1, 512), EINVAL);
        check(WRITABLE, request(kind, 0, 512, 511), EINVAL);
    }
    check(WRITABLE, request(3, 0, 512, 0), EINVAL);
    for kind in [0, 1, 4, 5, 6] {
        check(WRITABLE, request(kind, 0, SIZE, 0), Ok(Command::Nothing));
    }
    check(WRITABLE, request(7, 0, 0, 0), EINVAL);
}

#[test]
fn read_only_exports_refuse_writes_only() {
    let session = Session { read_only: true, ..WRITABLE };
    check(session, request(0, 0, 0, 512), Ok(Command::Read));
    check(session, request(1, 0, 0, 512), EPERM);
    check(session, request(1, 0, SIZE, 512), EPERM);
    check(session, request(4, 0, 0, 512), EPERM);
    check(session, request(6, 0, 0, 512), EPERM);
    check(session, request(3, 0, 0, 0), Ok(Command::Flush));
    check(session, request(7, 0, 0, 512), Ok(Command::BlockStatus { one: false }));
}

#[test]
fn only_writes_carry_a_payload() {
    for kind in 0..=8 {
        let expected = if kind == 1 { 4096 } else { 0 };
        assert_eq!(request(kind, 0, 0, 4096).payload(), expected, "type {kind}");
    }
}

#[test]
fn transmission_flags() {
    let check = |read_only, multi_conn, structured, expected: u16| {
        let info = ExportInfo { size: SIZE, read_only, multi_conn, description: String::new() };
        assert_eq!(Session::flags(&info, structured), expected, "{info:?}");
    };
    // HAS_FLAGS, SEND_FLUSH, SEND_FUA, SEND_TRIM, SEND_WRITE_ZEROES, SEND_CACHE, SEND_FAST_ZERO
    check(false, false, false, 0b1100_0110_1101);
    check(false, true, true, 0b1101_1110_1101);
    check(true, true, false, 0b0101_0000_1111);
}
