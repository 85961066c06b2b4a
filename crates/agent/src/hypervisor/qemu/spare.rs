//! A second monitor of a machine whose memory is still coming, for when the first one is out of reach.
//!
//! QEMU lets another page server in by a command that it takes out of band, so also while its main loop itself waits for a page
//! that nobody sends. But whoever connects anew is let in by the main loop. So a connection is made and set up before anything
//! can be missing, and QEMU is given this end of it to keep: it lives as long as the process does, and an agent that comes
//! after this one takes it out again.

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::place::remove_file;
use super::process::Process;
use super::{Live, Shared, Slot, load};
use crate::Result;

/// What QEMU knows our end by.
const NAME: &str = "spare";
/// The monitor has a thread of its own, so this is long.
const PATIENCE: Duration = Duration::from_secs(10);

/// Leaves a connection with a machine that nothing is asked of yet.
pub(super) fn leave(slot: &Slot, live: &Live) -> Result<()> {
    let act = "set its second monitor up";
    let connect = || {
        let stream = UnixStream::connect(slot.place.spare())?;
        limit(&stream)?;
        ask(&stream, "execute", "qmp_capabilities", json!({ "enable": ["oob"] }))?;
        let found = fs::metadata(format!("/proc/self/fd/{}", stream.as_raw_fd()))?;
        fs::write(slot.place.kept(), found.ino().to_string())?;
        Ok(stream)
    };
    let stream = connect().map_err(slot.file(act))?;
    live.qmp.execute_with("getfd", json!({ "fdname": NAME }), stream.as_fd()).map(drop).map_err(slot.monitor(act))
}

/// Ends it when all memory is in.
pub(super) fn end(slot: &Slot, live: &Live) {
    if slot.place.kept().exists() {
        remove_file(&slot.place.kept());
        if let Err(e) = live.qmp.execute("closefd", json!({ "fdname": NAME })) {
            tracing::debug!(vm = %slot.vm, "{e}");
        }
    }
}

/// Lets another page server in, if none is there.
pub(super) fn recover(shared: &Shared, slot: &Slot, process: &Process, image: &Path) {
    let recovered = take(slot, process).and_then(|stream| {
        remove_file(&slot.place.memory());
        ask(&stream, "exec-oob", "migrate-recover", load::uri(&slot.place))
    });
    match recovered {
        Ok(answer) if answer["error"].is_null() => {
            tracing::warn!(vm = %slot.vm, "it hangs on its memory, and its page server has gone; starting another");
            if let Err(e) = load::serve_on(shared, &slot.place, image) {
                tracing::error!(vm = %slot.vm, "start a page server: {e}");
            }
        }
        Ok(answer) => tracing::debug!(vm = %slot.vm, "it needs no page server: {answer}"),
        Err(e) => tracing::warn!(vm = %slot.vm, "its second monitor: {e}"),
    }
}

/// Our end, out of the process that keeps it.
fn take(slot: &Slot, process: &Process) -> io::Result<UnixStream> {
    let kept = format!("socket:[{}]", fs::read_to_string(slot.place.kept())?);
    for entry in fs::read_dir(format!("/proc/{}/fd", process.pid()))? {
        let entry = entry?;
        // Others are closed while one looks at them.
        if fs::read_link(entry.path()).is_ok_and(|link| link.as_os_str() == kept.as_str())
            && let Some(number) = entry.file_name().to_str().and_then(|name| name.parse().ok())
        {
            let stream = UnixStream::from(process.take_file(number)?);
            limit(&stream)?;
            return Ok(stream);
        }
    }
    Err(io::Error::new(io::ErrorKind::NotFound, "QEMU does not keep it"))
}

fn limit(stream: &UnixStream) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))
}

/// Asks, and skips what was said before, of which the beginning may have been read by somebody else.
fn ask(mut stream: &UnixStream, how: &str, command: &str, arguments: Value) -> io::Result<Value> {
    let id = format!("{command} {}", std::process::id());
    writeln!(stream, "{}", json!({ how: command, "arguments": arguments, "id": id }))?;
    for line in BufReader::new(stream).split(b'\n') {
        match serde_json::from_slice::<Value>(&line?) {
            Ok(answer) if answer["id"] == id.as_str() => return Ok(answer),
            Ok(_) | Err(_) => {}
        }
    }
    Err(io::ErrorKind::UnexpectedEof.into())
}
