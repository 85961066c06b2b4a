//! Volumes and snapshots as NBD exports: `VOLUME` can be written, `VOLUME@SNAPSHOT` can be read.

use std::io::{self, Write, stderr};
use std::os::fd::BorrowedFd;

use keyframe_engine::{Access, Done, ErrorKind, Op, Pool, Volume};
use keyframe_nbd::{Backend, Device, Export, ExportInfo, OpenError, Peer, Queue};

/// Most exports in a listing; what is not listed can be opened all the same.
const LISTED: usize = 1000;

/// The exports of a pool.
pub struct Exports {
    pool: Pool,
    only: Option<String>,
    report: fn(&str),
}

/// Where that cannot be written, on a full disk, the client is served all the same.
fn to_stderr(text: &str) {
    writeln!(stderr(), "keyframe: {text}").unwrap_or(());
}

impl Exports {
    /// Every volume and snapshot, by its name.
    pub fn all(pool: Pool) -> Exports {
        Exports { pool, only: None, report: to_stderr }
    }

    /// One volume, by the empty name.
    pub fn only(pool: Pool, volume: &str) -> Exports {
        Exports { pool, only: Some(volume.to_owned()), report: to_stderr }
    }

    /// Where failures are told that no client may see; standard error otherwise.
    pub fn reporting(self, report: fn(&str)) -> Exports {
        Exports { report, ..self }
    }

    fn target<'a>(&'a self, name: &'a str) -> Result<&'a str, OpenError> {
        match &self.only {
            None => Ok(name),
            Some(volume) if name.is_empty() => Ok(volume),
            Some(_) => Err(OpenError::Unknown),
        }
    }

    /// Tells the client what it may know, and the operator the rest.
    fn refuse(&self, name: &str, error: &keyframe_engine::Error) -> OpenError {
        match error.kind() {
            ErrorKind::NotFound | ErrorKind::Invalid => OpenError::Unknown,
            ErrorKind::InUse => OpenError::Busy,
            _ => {
                (self.report)(&format!("cannot export {name}: {error}"));
                OpenError::Failed
            }
        }
    }

    fn listed(&self) -> keyframe_engine::Result<Vec<Export>> {
        let mut exports = Vec::new();
        for volume in self.pool.volumes(None, LISTED)? {
            let room = LISTED.saturating_sub(exports.len());
            let snapshots = if room > 1 { self.pool.snapshots(&volume.name, None, room - 1)? } else { Vec::new() };
            exports.push(Export { description: volume.size.to_string(), name: volume.name });
            exports.extend(
                snapshots.into_iter().map(|snapshot| Export {
                    description: format!("{}, read-only", snapshot.size),
                    name: snapshot.name,
                }),
            );
        }
        exports.truncate(LISTED);
        Ok(exports)
    }
}

fn is_snapshot(target: &str) -> bool {
    target.contains('@')
}

impl Backend for Exports {
    type Device = Attached;
    type Queue = Lane;

    fn list(&self) -> Vec<Export> {
        if self.only.is_some() {
            return Vec::new();
        }
        self.listed().unwrap_or_else(|error| {
            (self.report)(&format!("cannot list exports: {error}"));
            Vec::new()
        })
    }

    fn open(&self, name: &str, _: Peer) -> Result<Attached, OpenError> {
        let target = self.target(name)?;
        let access = if is_snapshot(target) { Access::ReadOnly } else { Access::ReadWrite };
        let volume = self.pool.open_volume(target, access).map_err(|error| self.refuse(target, &error))?;
        Ok(Attached { description: volume.size().to_string(), volume })
    }

    fn inspect(&self, name: &str) -> Result<ExportInfo, OpenError> {
        let target = self.target(name)?;
        let info = self.pool.show(target).map_err(|error| self.refuse(target, &error))?;
        Ok(ExportInfo {
            size: info.size.0,
            read_only: is_snapshot(target),
            multi_conn: true,
            description: info.size.to_string(),
        })
    }

    fn queue(&self) -> io::Result<Lane> {
        self.pool.queue().map(Lane).map_err(io::Error::other)
    }
}

/// A volume that a client uses.
pub struct Attached {
    volume: Volume,
    description: String,
}

impl Device for Attached {
    fn size(&self) -> u64 {
        self.volume.size().0
    }
    fn read_only(&self) -> bool {
        self.volume.read_only()
    }
    fn description(&self) -> &str {
        &self.description
    }
    /// A flush of the engine is one of the whole pool.
    fn multi_conn(&self) -> bool {
        true
    }
}

/// The engine's queue under the name that the NBD server knows.
pub struct Lane(keyframe_engine::Queue);

impl Queue for Lane {
    type Device = Attached;

    fn submit(&mut self, device: &Attached, token: u64, op: Op) {
        self.0.submit(&device.volume, token, op);
    }
    fn poll(&mut self, out: &mut Vec<Done>) {
        self.0.poll(out);
    }
    fn event_fd(&self) -> BorrowedFd<'_> {
        self.0.event_fd()
    }
}
