//! Guest I/O: many requests in flight on one thread, each a small state machine between the core and the ring.
//!
//! A read looks up its blocks under the lock, reads them without it, and checks their checksums. A write takes blocks under the
//! lock, writes them without it, and only when the data is on the device points the map at them and adds the journal record; it
//! is answered then. A flush waits for a commit that covers every write answered before. A request that misses a metadata page
//! reads it and starts its step again; a request that has to wait is parked and tried again when the core has moved on.

mod flow;

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use crate::buf::IoBuf;
use crate::core::PlantedBug;
use crate::core::admit::{Wake, WriteTicket};
use crate::core::stop::Miss;
use crate::core::view::Piece;
use crate::device::{Io, IoKind, Ring};
use crate::disk::entry::Kind;
use crate::error::{Error, ErrorKind, Result};
use crate::journal::Sealed;
use crate::request::{Done, Extent, Op};
use crate::shared::Shared;
use crate::space::{ReadTicket, Run};
use crate::units::{BLOCK, VersionId};
use crate::volume::{Attachment, Volume};

/// Tokens of ring requests that belong to the queue itself.
const JOURNAL_WRITE: u64 = u64::MAX;
const JOURNAL_SYNC: u64 = u64::MAX - 1;

/// Where a request stands.
enum Stage {
    /// Ready for its next step under the lock.
    Ready,
    /// Metadata is being read for it.
    Missing(Miss, IoBuf),
    /// Data is being moved for it.
    Moving,
    /// Waits until the records up to this one are durable.
    Durable(u64),
    /// Waits for the core to move on.
    Parked,
}

/// What a request is about to do.
enum Work {
    /// Nothing more: answer it.
    Nothing,
    Read {
        offset: u64,
    },
    /// Reads the blocks that a write covers only partly.
    Fill {
        offset: u64,
        fua: bool,
    },
    /// Stores whole blocks from block `first` on.
    Write {
        first: u64,
        fua: bool,
    },
    /// Points the map at the stored blocks; `done` of them are.
    Apply {
        first: u64,
        done: u64,
        fua: bool,
    },
    Punch {
        from: u64,
        to: u64,
        kind: Kind,
        fua: bool,
    },
    /// The ragged edges of a write of zeroes, then the rest.
    Edges {
        edges: Vec<(u64, u64)>,
        then: Box<Work>,
    },
    Flush,
    Status {
        offset: u64,
        len: u64,
        max: usize,
    },
}

/// A request in flight.
struct Request {
    token: u64,
    volume: Arc<Attachment>,
    work: Work,
    stage: Stage,
    /// The caller's buffer.
    buf: Option<IoBuf>,
    /// Whole blocks, when the caller's buffer is not made of them.
    bounce: Option<IoBuf>,
    /// What a plan found, and of that what is being read.
    pieces: Vec<Piece>,
    planned: Vec<Piece>,
    runs: Vec<Run>,
    crcs: Vec<u32>,
    first_block: u64,
    family: u32,
    /// What comes after this work.
    after: Option<Box<Work>>,
    reader: Option<ReadTicket>,
    writer: Option<WriteTicket>,
    /// Device requests under way.
    moving: u32,
    failure: Option<Error>,
    retried: bool,
    missed: Option<Miss>,
    rounds: Option<u64>,
    extents: Vec<Extent>,
}

/// One thread's way to the pool's volumes.
pub struct Queue {
    shared: Arc<Shared>,
    ring: Box<dyn Ring>,
    wake: Arc<dyn Wake>,
    planted: PlantedBug,
    requests: Vec<Option<Request>>,
    free: Vec<u32>,
    ready: VecDeque<u32>,
    parked: Vec<u32>,
    /// Something was handed to the ring since it was last reaped.
    pushed: bool,
    durable: Vec<u32>,
    commit: Option<Sealed>,
    done: Vec<Done>,
    completions: Vec<(u64, io::Result<()>)>,
}

impl Queue {
    pub(crate) fn new(shared: Arc<Shared>) -> Result<Queue> {
        let ring = shared
            .device
            .clone()
            .ring()
            .map_err(|e| Error::io(format!("cannot set up I/O to pool {}", shared.device.name()), e))?;
        let wake: Arc<dyn Wake> = ring.waker();
        let planted = shared.lock().planted;
        Ok(Queue {
            shared,
            ring,
            wake,
            planted,
            requests: Vec::new(),
            free: Vec::new(),
            ready: VecDeque::new(),
            parked: Vec::new(),
            pushed: false,
            durable: Vec::new(),
            commit: None,
            done: Vec::new(),
            completions: Vec::new(),
        })
    }

    /// Takes a request. Its answer comes from a later [`Queue::poll`] under the same token.
    pub fn submit(&mut self, volume: &Volume, token: u64, op: Op) {
        match self.check_pool(volume).and_then(|()| flow::begin(volume, &op)) {
            Ok(work) => {
                let buf = match op {
                    Op::Read { buf, .. } | Op::Write { buf, .. } => Some(buf),
                    _ => None,
                };
                let request = Request::new(token, volume.attachment(), work, buf);
                let i = match self.free.pop() {
                    Some(i) => {
                        self.requests[i as usize] = Some(request);
                        i
                    }
                    None => {
                        self.requests.push(Some(request));
                        (self.requests.len() - 1) as u32
                    }
                };
                self.ready.push_back(i);
            }
            Err(e) => {
                let buf = match op {
                    Op::Read { buf, .. } | Op::Write { buf, .. } => Some(buf),
                    _ => None,
                };
                self.done.push(Done { token, result: Err(e), buf, extents: Vec::new() });
            }
        }
    }

    fn check_pool(&self, volume: &Volume) -> Result<()> {
        if volume.is_of(&self.shared) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Invalid, format!("volume {} belongs to another pool than this queue", volume.name())))
    }

    /// Starts what can be started and adds the answers that are ready; never blocks.
    pub fn poll(&mut self, out: &mut Vec<Done>) {
        let mut completions = std::mem::take(&mut self.completions);
        loop {
            while let Some(i) = self.ready.pop_front() {
                self.advance(i);
            }
            self.pushed = false;
            if let Err(e) = self.ring.reap(&mut completions) {
                // Requests in flight cannot be answered any more; the pool stops rather than guess.
                self.shared.poison(&format!("the I/O ring failed: {e}"));
            }
            let reaped = !completions.is_empty();
            for (token, result) in completions.drain(..) {
                self.complete(token, result);
            }
            // Reaping took the signals so far. Whoever is told to wait from here on is woken by one that is still there.
            self.retry_parked();
            self.check_durable();
            self.lead_commit();
            if !self.ready.is_empty() {
                continue;
            }
            if !self.done.is_empty() {
                // Let the caller refill; what the completions led to goes to the device meanwhile.
                if let Err(e) = self.ring.start() {
                    self.shared.poison(&format!("the I/O ring failed: {e}"));
                }
                break;
            }
            if !reaped && !self.pushed {
                break;
            }
        }
        self.completions = completions;
        out.append(&mut self.done);
    }

    /// Blocks until there is at least one answer, or nothing in flight.
    pub fn wait(&mut self, out: &mut Vec<Done>) {
        let before = out.len();
        loop {
            self.poll(out);
            if out.len() > before || self.free.len() == self.requests.len() {
                return;
            }
            if self.ring.wait().is_err() {
                return;
            }
        }
    }

    /// Readable when [`Queue::poll`] may have something to do.
    pub fn event_fd(&self) -> BorrowedFd<'_> {
        self.ring.event_fd()
    }

    /// Requests submitted and not yet answered.
    pub fn in_flight(&self) -> usize {
        self.requests.len() - self.free.len()
    }

    /// This queue is making a journal group durable, and everybody who needs one waits for it. A thread must poll until this is
    /// false before it makes a call on the pool that changes something, or it waits for itself.
    pub fn is_committing(&self) -> bool {
        self.commit.is_some()
    }

    fn complete(&mut self, token: u64, result: io::Result<()>) {
        match token {
            JOURNAL_WRITE => match result {
                Ok(()) => self.push(Io {
                    token: JOURNAL_SYNC,
                    kind: IoKind::Sync,
                    offset: 0,
                    ptr: std::ptr::null_mut(),
                    len: 0,
                }),
                Err(e) => self.end_commit(Err(e)),
            },
            JOURNAL_SYNC => self.end_commit(result),
            token => self.moved(token as u32, result),
        }
    }

    /// Hands a request to the ring. The memory behind it belongs to a request or commit that stays until the completion.
    fn push(&mut self, io: Io) {
        // SAFETY: buffers live in `self.requests` or `self.commit`, which keep them until the completion was reaped, and the
        // ring waits for everything in flight before it goes.
        unsafe { self.ring.push(io) };
        self.pushed = true;
    }

    // ---- commits ----

    /// If somebody waits for durability and nobody commits, this queue does.
    fn lead_commit(&mut self) {
        if self.durable.is_empty() || self.commit.is_some() {
            return;
        }
        let sealed = {
            let mut core = self.shared.lock();
            let sealed = core.journal.seal();
            if sealed.is_none() {
                core.admission.wait(&self.wake);
            }
            sealed
        };
        self.check_durable();
        if let Some(mut sealed) = sealed {
            let offset = crate::disk::layout::JOURNAL.offset() + sealed.offset;
            let (ptr, len) = (sealed.bytes.as_mut_ptr(), sealed.bytes.len() as u32);
            self.commit = Some(sealed);
            self.push(Io { token: JOURNAL_WRITE, kind: IoKind::Write, offset, ptr, len });
        }
    }

    fn end_commit(&mut self, result: io::Result<()>) {
        self.commit = None;
        let name = self.shared.device.name();
        let result = result.map_err(|e| Error::io(format!("cannot write the journal of pool {name}"), e));
        if let Err(e) = self.shared.end_commit(result) {
            debug_assert!(self.shared.lock().poisoned.is_some(), "a failed commit stops the pool: {e}");
        }
        self.check_durable();
    }

    /// Answers those whose records are durable, or will never be.
    fn check_durable(&mut self) {
        if self.durable.is_empty() {
            return;
        }
        let (durable, poisoned) = {
            let core = self.shared.lock();
            (core.journal.durable(), core.refuse_if_poisoned())
        };
        let mut i = 0;
        while i < self.durable.len() {
            let index = self.durable[i];
            let target = match self.requests[index as usize].as_ref().map(|r| &r.stage) {
                Some(Stage::Durable(target)) => *target,
                _ => 0,
            };
            if target <= durable || poisoned.is_err() {
                self.durable.swap_remove(i);
                let result = if target <= durable { Ok(()) } else { poisoned_again(&poisoned) };
                self.answer(index, result);
            } else {
                i += 1;
            }
        }
    }

    /// Parked requests get another try.
    fn retry_parked(&mut self) {
        for i in std::mem::take(&mut self.parked) {
            if let Some(request) = &mut self.requests[i as usize] {
                request.stage = Stage::Ready;
            }
            self.advance(i);
        }
    }

    fn answer(&mut self, index: u32, result: Result<()>) {
        let Some(mut request) = self.requests[index as usize].take() else { return };
        self.free.push(index);
        if request.reader.is_some() || request.writer.is_some() {
            let mut core = self.shared.lock();
            if let Some(ticket) = request.reader.take() {
                core.space.end_read(ticket);
            }
            if let Some(ticket) = request.writer.take() {
                core.end_write(ticket);
            }
        }
        self.done.push(Done { token: request.token, result, buf: request.buf.take(), extents: request.extents });
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // Requests in flight own the memory that the device writes to, and a commit under way is everybody's: see them through.
        let mut out = Vec::new();
        while self.in_flight() > 0 || self.commit.is_some() || self.ring.in_flight() > 0 {
            self.poll(&mut out);
            out.clear();
            let over = self.ring.in_flight() == 0 && self.commit.is_none();
            if over && (self.in_flight() == 0 || self.shared.lock().poisoned.is_some()) {
                break;
            }
            if self.ring.wait().is_err() {
                break;
            }
        }
    }
}

fn poisoned_again(result: &Result<()>) -> Result<()> {
    match result {
        Ok(()) => Ok(()),
        Err(e) => Err(Error::new(ErrorKind::Poisoned, e.to_string())),
    }
}

impl Request {
    fn new(token: u64, volume: Arc<Attachment>, work: Work, buf: Option<IoBuf>) -> Request {
        Request {
            token,
            volume,
            work,
            stage: Stage::Ready,
            buf,
            bounce: None,
            pieces: Vec::new(),
            planned: Vec::new(),
            runs: Vec::new(),
            crcs: Vec::new(),
            first_block: 0,
            family: 0,
            after: None,
            reader: None,
            writer: None,
            moving: 0,
            failure: None,
            retried: false,
            missed: None,
            rounds: None,
            extents: Vec::new(),
        }
    }

    fn version(&self) -> VersionId {
        self.volume.version()
    }

    /// The memory that holds whole blocks.
    fn blocks(&mut self) -> &mut IoBuf {
        if self.bounce.is_none()
            && let Some(buf) = &mut self.buf
        {
            return buf;
        }
        self.bounce.get_or_insert_with(|| IoBuf::zeroed(BLOCK as usize))
    }
}
