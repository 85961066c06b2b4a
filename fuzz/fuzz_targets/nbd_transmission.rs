//! Whatever bytes arrive as requests, what is admitted satisfies what a backend relies on.
#![no_main]

use keyframe_nbd::limits::MAX_PAYLOAD;
use keyframe_nbd::transmission::{Command, Request, Session};
use libfuzzer_sys::fuzz_target;

const SIZE: u64 = 1 << 40;

fn check(session: &Session, request: &Request) {
    let Ok(command) = session.admit(request) else { return };
    match command {
        Command::Nothing | Command::Disconnect | Command::Flush => return,
        Command::Read => assert!(request.len <= MAX_PAYLOAD),
        Command::Write { .. } => assert!(request.len <= MAX_PAYLOAD && !session.read_only),
        Command::Trim { .. } | Command::WriteZeroes { .. } => assert!(!session.read_only),
        Command::BlockStatus { .. } => assert!(session.block_status),
    }
    let len = u64::from(request.len);
    assert!(len > 0 && request.offset.is_multiple_of(512) && len.is_multiple_of(512));
    assert!(request.offset.checked_add(len).is_some_and(|end| end <= SIZE));
}

fuzz_target!(|input: &[u8]| {
    let Some((&negotiated, mut rest)) = input.split_first() else { return };
    let structured = negotiated & 1 != 0;
    let session = Session {
        size: SIZE,
        read_only: negotiated & 2 != 0,
        structured,
        block_status: structured && negotiated & 4 != 0,
    };
    while let Ok(Some(request)) = Request::parse(rest) {
        check(&session, &request);
        let next = Request::LEN + request.payload() as usize;
        rest = rest.get(next..).unwrap_or_default();
    }
});
