//! One backend made of many arrays: `array/rest` is `rest` on that array. A worker has one lane to each array.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use keyframe_engine::{Done, Op};
use keyframe_nbd::{Backend, Device, Export, ExportInfo, OpenError, Peer, Queue};
use rustix::event::epoll::{self, EventData, EventFlags};

use super::blocks::{Block, BlockLane, Blocks};
use super::fence::{Entered, Fence};
use crate::array::Arrays;

/// Most exports in a listing.
const LISTED: usize = 1000;

pub(super) struct Router {
    arrays: Vec<(String, Arc<dyn Blocks>)>,
    fence: Arc<Fence>,
}

impl Router {
    pub(super) fn new(arrays: &Arrays, fence: &Arc<Fence>) -> Router {
        let arrays = arrays.iter().map(|(name, array)| (name.to_owned(), array.blocks())).collect();
        Router { arrays, fence: Arc::clone(fence) }
    }

    fn find<'a>(&self, export: &'a str) -> Result<(usize, &'a str), OpenError> {
        let (array, name) = export.split_once('/').ok_or(OpenError::Unknown)?;
        let index = self.arrays.iter().position(|(known, _)| known == array).ok_or(OpenError::Unknown)?;
        Ok((index, name))
    }
}

impl Backend for Router {
    type Device = Routed;
    type Queue = Lanes;

    fn list(&self) -> Vec<Export> {
        let of = |(array, blocks): &(String, Arc<dyn Blocks>)| {
            let array = array.clone();
            blocks.list().into_iter().map(move |export| Export { name: format!("{array}/{}", export.name), ..export })
        };
        self.arrays.iter().flat_map(of).take(LISTED).collect()
    }

    fn open(&self, export: &str, peer: Peer) -> Result<Routed, OpenError> {
        let (lane, name) = self.find(export)?;
        let block = self.arrays[lane].1.open(name)?;
        let entered = if block.read_only() { None } else { Some(self.fence.enter(export, peer)?) };
        Ok(Routed { lane, block, _entered: entered })
    }

    fn inspect(&self, export: &str) -> Result<ExportInfo, OpenError> {
        let (lane, name) = self.find(export)?;
        self.arrays[lane].1.inspect(name)
    }

    fn queue(&self) -> io::Result<Lanes> {
        let lanes = self.arrays.iter().map(|(_, blocks)| blocks.lane()).collect::<io::Result<Vec<_>>>()?;
        let ready = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        for lane in &lanes {
            epoll::add(&ready, lane.event_fd(), EventData::new_u64(0), EventFlags::IN)?;
        }
        Ok(Lanes { lanes, ready })
    }
}

/// A block device and which lane leads to it.
pub(super) struct Routed {
    lane: usize,
    block: Box<dyn Block>,
    /// Until the connection's last request has finished.
    _entered: Option<Entered>,
}

impl Device for Routed {
    fn size(&self) -> u64 {
        self.block.size()
    }
    fn read_only(&self) -> bool {
        self.block.read_only()
    }
    fn description(&self) -> &str {
        self.block.description()
    }
    fn multi_conn(&self) -> bool {
        self.block.multi_conn()
    }
}

/// Answered only when it is durable. Machines outlive the agent: one that died with a volatile cache would take back what a
/// guest was told of, and the guest's next flush, sent again to the next agent, would succeed all the same.
fn lasting(op: Op) -> Op {
    match op {
        Op::Write { offset, buf, .. } => Op::Write { offset, buf, fua: true },
        Op::Discard { offset, len, .. } => Op::Discard { offset, len, fua: true },
        Op::WriteZeroes { offset, len, no_hole, .. } => Op::WriteZeroes { offset, len, no_hole, fua: true },
        op => op,
    }
}

/// The lanes of one worker. The epoll descriptor is readable while one of theirs is.
pub(super) struct Lanes {
    lanes: Vec<Box<dyn BlockLane>>,
    ready: OwnedFd,
}

impl Queue for Lanes {
    type Device = Routed;

    fn submit(&mut self, device: &Routed, token: u64, op: Op) {
        self.lanes[device.lane].submit(&*device.block, token, lasting(op));
    }

    fn poll(&mut self, out: &mut Vec<Done>) {
        for lane in &mut self.lanes {
            lane.poll(out);
        }
    }

    fn event_fd(&self) -> BorrowedFd<'_> {
        self.ready.as_fd()
    }
}
