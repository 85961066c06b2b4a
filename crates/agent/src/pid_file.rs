//! Process id files: one holder for each, known by a lock that the kernel ends with the process. The number alone says
//! nothing, for a dead process leaves it behind.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use keyframe_agent_api::{Fault, FaultKind};
use rustix::fs::{FlockOperation, flock};
use rustix::process::Pid;

use crate::Result;
use crate::fault::of_io;

/// Who looks at a file holds it for a moment too; so often is it tried again before it counts as held.
const TRIES: u32 = 10;
/// Between two of them.
const LOOK: Duration = Duration::from_millis(20);

/// Holds a process id file as long as the result lives; `what` is what this process is.
///
/// # Errors
///
/// `Conflict` if another process holds it.
pub fn hold(path: &Path, what: &str) -> Result<File> {
    let failed = |error: std::io::Error| of_io(format_args!("write {}", path.display()), &error);
    let options = OpenOptions::new().create(true).truncate(false).read(true).write(true).mode(0o600).open(path);
    let mut file = options.map_err(failed)?;
    let mut tries = 0;
    while let Err(error) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
        tries += 1;
        if tries == TRIES {
            let why = format!(
                "another {what} uses this data directory ({} is locked: {error}); stop it first",
                path.display()
            );
            return Err(Fault::new(FaultKind::Conflict, why));
        }
        std::thread::sleep(LOOK);
    }
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .map_err(failed)?;
    Ok(file)
}

/// The process that holds a process id file.
pub fn holder(path: &Path) -> Option<Pid> {
    let mut file = File::open(path).ok()?;
    if flock(&file, FlockOperation::NonBlockingLockShared).is_ok() {
        return None;
    }
    let mut text = String::new();
    file.read_to_string(&mut text).ok()?;
    Pid::from_raw(text.trim().parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holds_it_and_looking_at_it_is_in_nobodys_way() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        assert_eq!(holder(&path), None);
        std::fs::write(&path, "1\n").unwrap();
        assert_eq!(holder(&path), None, "a number that nobody holds");
        let looking = File::open(&path).unwrap();
        flock(&looking, FlockOperation::NonBlockingLockShared).unwrap();
        let looked = std::thread::spawn(move || {
            std::thread::sleep(LOOK * 2);
            drop(looking);
        });
        let held = hold(&path, "test").unwrap();
        looked.join().unwrap();
        assert_eq!(holder(&path).unwrap().as_raw_nonzero().get() as u32, std::process::id());
        let error = hold(&path, "test").unwrap_err();
        assert_eq!(error.kind, FaultKind::Conflict);
        drop(held);
        hold(&path, "test").unwrap();
    }
}
