//! The fake's volumes as block devices. Requests are executed when they are submitted.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use keyframe_agent_api::SnapshotId;
use keyframe_engine::{Done, ErrorKind, Extent, ExtentKind, Op};
use keyframe_nbd::{Backend, Device, Export, ExportInfo, OpenError, Peer, Queue};
use rustix::event::{EventfdFlags, eventfd};

use super::faults::Faults;
use super::sparse;
use super::store::Store;

pub(super) struct FakeBlocks {
    store: Arc<Store>,
    faults: Faults,
}

impl FakeBlocks {
    pub(super) fn new(store: Arc<Store>, faults: Faults) -> FakeBlocks {
        FakeBlocks { store, faults }
    }
}

fn parse(name: &str) -> Result<(&str, Option<SnapshotId>), OpenError> {
    let (volume, snapshot) = match name.split_once('@') {
        Some((volume, snapshot)) => (volume, Some(snapshot.parse().map_err(|_| OpenError::Unknown)?)),
        None => (name, None),
    };
    super::super::check_name("volume", volume).map_err(|_| OpenError::Unknown)?;
    Ok((volume, snapshot))
}

impl Backend for FakeBlocks {
    type Device = FakeDevice;
    type Queue = FakeQueue;

    fn list(&self) -> Vec<Export> {
        let names = self.store.volumes().unwrap_or_default();
        names.into_iter().map(|name| Export { name, description: "fake".into() }).collect()
    }

    fn open(&self, name: &str, _: Peer) -> Result<FakeDevice, OpenError> {
        let (volume, snapshot) = parse(name)?;
        let path = self.store.version(volume, snapshot).map_err(|_| OpenError::Unknown)?;
        let read_only = snapshot.is_some();
        let file = OpenOptions::new().read(true).write(!read_only).open(path).map_err(|_| OpenError::Failed)?;
        let size = file.metadata().map_err(|_| OpenError::Failed)?.len();
        self.store.attach(name, 1);
        let (store, faults) = (Arc::clone(&self.store), self.faults.clone());
        Ok(FakeDevice { name: name.to_owned(), file, size, read_only, store, faults })
    }

    fn inspect(&self, name: &str) -> Result<ExportInfo, OpenError> {
        self.open(name, Peer::default()).map(|device| ExportInfo::of(&device))
    }

    fn queue(&self) -> io::Result<FakeQueue> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(FakeQueue { done: Vec::new(), event })
    }
}

pub(super) struct FakeDevice {
    name: String,
    file: File,
    size: u64,
    read_only: bool,
    store: Arc<Store>,
    faults: Faults,
}

impl Drop for FakeDevice {
    fn drop(&mut self) {
        self.store.attach(&self.name, -1);
    }
}

impl Device for FakeDevice {
    fn size(&self) -> u64 {
        self.size
    }
    fn read_only(&self) -> bool {
        self.read_only
    }
    fn description(&self) -> &str {
        "fake"
    }
    fn multi_conn(&self) -> bool {
        true
    }
}

impl FakeDevice {
    fn execute(&self, op: Op, done: &mut Done) -> Result<(), ErrorKind> {
        let io = |result: io::Result<()>| result.map_err(|_| ErrorKind::Io);
        match op {
            Op::Read { offset, mut buf } => {
                let read = self.file.read_exact_at(&mut buf, offset);
                done.buf = Some(buf);
                io(read)
            }
            Op::Write { offset, buf, .. } => {
                let written = self.change(|| self.file.write_all_at(&buf, offset));
                done.buf = Some(buf);
                written
            }
            Op::Discard { offset, len, .. } | Op::WriteZeroes { offset, len, .. } => {
                self.change(|| sparse::clear(&self.file, offset, len))
            }
            Op::Flush => Ok(()),
            Op::Status { offset, len, .. } => {
                done.extents.push(Extent { offset, len, kind: ExtentKind::Data });
                Ok(())
            }
        }
    }

    fn change(&self, act: impl FnOnce() -> io::Result<()>) -> Result<(), ErrorKind> {
        let _not_during_a_snapshot = self.store.instant.read();
        if !self.faults.alive() {
            return Err(ErrorKind::Io);
        }
        if self.faults.is_full() {
            return Err(ErrorKind::NoSpace);
        }
        act().map_err(|_| ErrorKind::Io)
    }
}

pub(super) struct FakeQueue {
    done: Vec<Done>,
    event: OwnedFd,
}

impl Queue for FakeQueue {
    type Device = FakeDevice;

    fn submit(&mut self, device: &FakeDevice, token: u64, op: Op) {
        let mut done = Done { token, result: Ok(()), buf: None, extents: Vec::new() };
        if let Err(kind) = device.execute(op, &mut done) {
            done.result = Err(keyframe_engine::Error::new(kind, "a fake array refuses"));
        }
        self.done.push(done);
    }

    fn poll(&mut self, out: &mut Vec<Done>) {
        out.append(&mut self.done);
    }

    fn event_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}
