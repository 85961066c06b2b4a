//! The steps of each kind of request.

use std::io;

use super::{Queue, Request, Stage, Work};
use crate::buf::IoBuf;
use crate::core::PlantedBug;
use crate::core::admit::Access;
use crate::core::stop::{Step, Stop, Wait};
use crate::core::{Core, view::Piece};
use crate::device::{Io, IoKind};
use crate::disk::entry::{Identity, Kind};
use crate::disk::record::Record;
use crate::error::{Error, ErrorKind, Result};
use crate::request::Op;
use crate::shared::{damaged, no_space};
use crate::units::{BLOCK, Lba, PoolBlock};
use crate::volume::Volume;

/// Smallest unit of guest I/O.
const UNIT: u64 = 512;
/// Largest single request.
pub(crate) const MAX_REQUEST: u64 = 64 << 20;

/// Checks a request and says how to begin.
pub(super) fn begin(volume: &Volume, op: &Op) -> Result<Work> {
    let check = |offset: u64, len: u64, what: &str, writes: bool| -> Result<()> {
        let refuse = |kind, why: String| {
            Err(Error::new(kind, format!("cannot {what} {len} bytes at {offset} of {}: {why}", volume.name())))
        };
        if writes && volume.read_only() {
            return refuse(ErrorKind::ReadOnly, "it is read-only".into());
        }
        if !offset.is_multiple_of(UNIT) || !len.is_multiple_of(UNIT) || len == 0 {
            return refuse(ErrorKind::Invalid, format!("not a multiple of {UNIT} bytes"));
        }
        let size = volume.size().0;
        if offset.checked_add(len).is_none_or(|end| end > size) {
            return refuse(ErrorKind::OutOfBounds, format!("it has {size} bytes"));
        }
        Ok(())
    };
    let blocks_inside = |offset: u64, len: u64| (offset.div_ceil(BLOCK), (offset + len) / BLOCK);
    Ok(match *op {
        Op::Read { offset, ref buf } => {
            check(offset, buf.len() as u64, "read", false)?;
            check_length(volume, buf.len() as u64)?;
            Work::Read { offset }
        }
        Op::Write { offset, ref buf, fua } => {
            let len = buf.len() as u64;
            check(offset, len, "write", true)?;
            check_length(volume, len)?;
            if offset % BLOCK == 0 && len.is_multiple_of(BLOCK) {
                Work::Write { first: offset / BLOCK, fua }
            } else {
                Work::Fill { offset, fua }
            }
        }
        Op::Discard { offset, len, fua } => {
            check(offset, len, "discard", true)?;
            let (from, to) = blocks_inside(offset, len);
            Work::Punch { from, to, kind: Kind::Discard, fua }
        }
        Op::WriteZeroes { offset, len, no_hole, fua } => {
            check(offset, len, "zero", true)?;
            let (from, to) = blocks_inside(offset, len);
            let kind = if no_hole { Kind::Zero } else { Kind::Discard };
            let edges = ragged_edges(offset, len);
            let punch = Work::Punch { from, to, kind, fua };
            if edges.is_empty() { punch } else { Work::Edges { edges, then: Box::new(punch) } }
        }
        Op::Flush => Work::Flush,
        Op::Status { offset, len, max } => {
            check(offset, len, "describe", false)?;
            Work::Status { offset, len, max: max.max(1) }
        }
    })
}

fn check_length(volume: &Volume, len: u64) -> Result<()> {
    if len <= MAX_REQUEST {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Invalid,
        format!("a request of {len} bytes to {} is above the limit of {MAX_REQUEST}", volume.name()),
    ))
}

/// The parts of a range that cover blocks only partly.
fn ragged_edges(offset: u64, len: u64) -> Vec<(u64, u64)> {
    let end = offset + len;
    let head_end = offset.next_multiple_of(BLOCK).min(end);
    let tail = (end / BLOCK * BLOCK).max(head_end);
    [(offset, head_end), (tail, end)].into_iter().filter(|(from, to)| from < to).collect()
}

#[derive(PartialEq, Eq)]
enum Next {
    /// The request is answered with success.
    Done,
    /// Answered once this record is durable.
    Durable(u64),
    /// Data is to be read as planned.
    Read,
    /// Data is to be written to the runs taken.
    Write,
    /// Another step of the same request.
    Again,
}

impl Queue {
    /// Runs a request's next step.
    pub(super) fn advance(&mut self, i: u32) {
        let Some(mut request) = self.requests[i as usize].take() else { return };
        let next = {
            let mut core = self.shared.lock();
            let next = request.step(&mut core);
            if let Err(Stop::Wait(wait)) = &next {
                if *wait == Wait::Space {
                    core.admission.space_wanted = true;
                }
                core.admission.wait(&self.wake);
            }
            next
        };
        if next.is_ok() {
            request.rounds = None;
        }
        match next {
            Ok(Next::Done) => self.finish(i, request, Ok(())),
            Ok(Next::Durable(record)) => {
                request.stage = Stage::Durable(record);
                self.requests[i as usize] = Some(request);
                self.durable.push(i);
            }
            Ok(Next::Again) => {
                self.requests[i as usize] = Some(request);
                self.ready.push_back(i);
            }
            Ok(Next::Read) => self.start_reads(i, request),
            Ok(Next::Write) => self.start_writes(i, request),
            Err(Stop::Fail(e)) => self.finish(i, request, Err(e)),
            Err(Stop::Miss(miss)) => {
                let mut page = IoBuf::zeroed(BLOCK as usize);
                let (ptr, len, offset) = (page.as_mut_ptr(), page.len() as u32, miss.block().offset());
                request.stage = Stage::Missing(miss, page);
                self.requests[i as usize] = Some(request);
                self.push(Io { token: u64::from(i), kind: IoKind::Read, offset, ptr, len });
            }
            Err(Stop::Wait(wait)) => {
                if wait == Wait::Space && request.out_of_space(&self.shared.lock()) {
                    let e = no_space(&self.shared.device.name());
                    return self.finish(i, request, Err(e));
                }
                request.stage = Stage::Parked;
                self.requests[i as usize] = Some(request);
                self.parked.push(i);
                self.shared.moved.notify_all();
            }
        }
    }

    fn finish(&mut self, i: u32, request: Request, result: Result<()>) {
        self.requests[i as usize] = Some(request);
        self.answer(i, result);
    }

    fn start_reads(&mut self, i: u32, mut request: Request) {
        let first = request.first_block;
        let mut ios = Vec::with_capacity(request.pieces.len());
        for piece in std::mem::take(&mut request.pieces) {
            let from = ((piece.lba - first) * BLOCK) as usize;
            let bytes = (piece.count * BLOCK) as usize;
            let memory = &mut request.blocks()[from..from + bytes];
            match piece.at {
                None => memory.fill(0),
                Some(at) => {
                    let (ptr, len) = (memory.as_mut_ptr(), memory.len() as u32);
                    ios.push(Io { token: u64::from(i), kind: IoKind::Read, offset: at.offset(), ptr, len });
                    request.planned.push(piece);
                }
            }
        }
        self.start(i, request, ios);
    }

    fn start_writes(&mut self, i: u32, mut request: Request) {
        let (family, first) = (request.family, request.first_block);
        request.crcs.clear();
        let mut crcs = std::mem::take(&mut request.crcs);
        crcs.extend(
            (first..)
                .zip(request.blocks().chunks_exact(BLOCK as usize))
                .map(|(lba, block)| Identity::data(family, Lba(lba)).checksum(block)),
        );
        request.crcs = crcs;
        let mut ios = Vec::with_capacity(request.runs.len());
        let mut from = 0;
        for run in request.runs.clone() {
            let bytes = (run.len * BLOCK) as usize;
            let memory = &mut request.blocks()[from..from + bytes];
            let (ptr, len) = (memory.as_mut_ptr(), memory.len() as u32);
            ios.push(Io { token: u64::from(i), kind: IoKind::Write, offset: run.start.offset(), ptr, len });
            from += bytes;
        }
        self.start(i, request, ios);
    }

    fn start(&mut self, i: u32, mut request: Request, ios: Vec<Io>) {
        request.moving = ios.len() as u32;
        request.stage = Stage::Moving;
        let nothing = ios.is_empty();
        self.requests[i as usize] = Some(request);
        for io in ios {
            self.push(io);
        }
        if nothing {
            self.all_moved(i);
        }
    }

    /// A device request of request `i` ended.
    pub(super) fn moved(&mut self, i: u32, result: io::Result<()>) {
        let Some(request) = &mut self.requests[i as usize] else { return };
        if let Stage::Missing(miss, page) = &request.stage {
            let miss = *miss;
            let outcome = match result {
                Err(e) => Err(Error::io(format!("cannot read metadata of pool {}", self.shared.device.name()), e)),
                Ok(()) if self.shared.lock().fulfil(miss, page) => Ok(()),
                // Freed and reused meanwhile, unless the same page is asked for again.
                Ok(()) if request.missed != Some(miss) => {
                    request.missed = Some(miss);
                    Ok(())
                }
                Ok(()) => Err(damaged(&self.shared.device.name(), miss)),
            };
            request.stage = Stage::Ready;
            return match outcome {
                Ok(()) => self.advance(i),
                Err(e) => self.answer(i, Err(e)),
            };
        }
        request.moving -= 1;
        if let Err(e) = result {
            let act = if matches!(request.work, Work::Write { .. }) { "write" } else { "read" };
            let what = format!("cannot {act} data of {} in pool {}", request.volume.name(), self.shared.device.name());
            request.failure.get_or_insert(Error::io(what, e));
        }
        if request.moving == 0 {
            self.all_moved(i);
        }
    }

    fn all_moved(&mut self, i: u32) {
        let Some(mut request) = self.requests[i as usize].take() else { return };
        let writing = matches!(request.work, Work::Write { .. });
        if let Some(e) = request.failure.take() {
            // A full file system under a sparse pool fails this write alone; any other failed write stops the pool.
            if writing && e.kind() != ErrorKind::NoSpace {
                self.shared.poison(&e.to_string());
            } else if writing {
                let mut core = self.shared.lock();
                for run in request.runs.drain(..) {
                    core.space.return_run(run);
                }
            }
            return self.finish(i, request, Err(e));
        }
        if writing {
            if let Work::Write { first, fua } = request.work {
                request.work = Work::Apply { first, done: 0, fua };
            }
        } else if let Err(lba) = request.verify(self.planted) {
            if request.retried {
                let e = request.bad_data(lba, &self.shared.device.name());
                return self.finish(i, request, Err(e));
            }
            // Once more, in case the device gave something else than it has.
            request.retried = true;
            request.planned.clear();
        } else {
            // What was read is in memory: its blocks may be reused, even if this request has to wait for space now.
            if let Some(ticket) = request.reader.take() {
                self.shared.lock().space.end_read(ticket);
            }
            request.data_arrived();
        }
        request.stage = Stage::Ready;
        let done = matches!(request.work, Work::Nothing);
        if done {
            return self.finish(i, request, Ok(()));
        }
        self.requests[i as usize] = Some(request);
        self.advance(i);
    }
}

impl Request {
    fn step(&mut self, core: &mut Core) -> Step<Next> {
        match &mut self.work {
            Work::Nothing => Ok(Next::Done),
            Work::Read { offset } => {
                let offset = *offset;
                let len = self.buf.as_ref().map_or(0, |b| b.len() as u64);
                let (first, end) = (offset / BLOCK, (offset + len).div_ceil(BLOCK));
                self.plan(core, first, &[(first, end)])
            }
            Work::Fill { offset, .. } => {
                let offset = *offset;
                let len = self.buf.as_ref().map_or(0, |b| b.len() as u64);
                let (first, end) = (offset / BLOCK, (offset + len).div_ceil(BLOCK));
                if self.writer.is_none() {
                    self.writer = Some(core.admit_write(self.version(), Lba(first), end - first, Access::Exclusive)?);
                }
                let partial = [(first, first + 1), (end - 1, end)];
                self.plan(core, first, if end - first == 1 { &partial[..1] } else { &partial })
            }
            Work::Write { first, .. } => {
                let first = *first;
                let count = self.blocks().len() as u64 / BLOCK;
                if self.writer.is_none() {
                    self.writer = Some(core.admit_write(self.version(), Lba(first), count, Access::Whole)?);
                }
                let version = self.version();
                core.allocate(version, count, &mut self.runs)?;
                self.first_block = first;
                self.family = core.view(version)?.family;
                Ok(Next::Write)
            }
            Work::Apply { .. } => self.apply(core),
            Work::Edges { edges, then } => {
                // Each edge is a small write of zeroes of its own.
                match edges.pop() {
                    Some((from, to)) => {
                        self.buf = Some(IoBuf::zeroed((to - from) as usize));
                        self.bounce = None;
                        let rest = Work::Edges {
                            edges: std::mem::take(edges),
                            then: std::mem::replace(then, Box::new(Work::Nothing)),
                        };
                        self.after = Some(Box::new(rest));
                        self.work = Work::Fill { offset: from, fua: false };
                    }
                    None => {
                        self.buf = None;
                        self.work = std::mem::replace(&mut **then, Work::Nothing);
                    }
                }
                Ok(Next::Again)
            }
            Work::Punch { .. } => self.punch(core),
            Work::Flush => {
                core.refuse_if_poisoned()?;
                Ok(self.durable_or_done(core, core.journal.last_record()))
            }
            Work::Status { offset, len, max } => {
                let (offset, len, max) = (*offset, *len, *max);
                let view = core.view(self.version())?;
                self.extents.clear();
                core.describe(view, offset / BLOCK, (offset + len).div_ceil(BLOCK), max, &mut self.extents)?;
                clip(&mut self.extents, offset, offset + len);
                Ok(Next::Done)
            }
        }
    }

    fn durable_or_done(&self, core: &Core, record: u64) -> Next {
        if core.journal.durable() >= record { Next::Done } else { Next::Durable(record) }
    }

    /// Plans the read of some block ranges into memory that begins at block `first`.
    fn plan(&mut self, core: &mut Core, first: u64, ranges: &[(u64, u64)]) -> Step<Next> {
        let view = core.view(self.version())?;
        self.pieces.clear();
        self.planned.clear();
        self.crcs.clear();
        for &(from, to) in ranges {
            core.plan_read(view, from, to - from, &mut self.pieces, &mut self.crcs)?;
        }
        self.family = view.family;
        self.first_block = first;
        if self.reader.is_none() {
            self.reader = Some(core.space.begin_read());
        }
        let last = ranges.last().map_or(first, |r| r.1);
        let len = self.buf.as_ref().map_or(0, |b| b.len() as u64);
        let aligned =
            len == (last - first) * BLOCK && matches!(self.work, Work::Read { offset } if offset % BLOCK == 0);
        if !aligned && self.bounce.is_none() {
            self.bounce = Some(IoBuf::zeroed(((last - first) * BLOCK) as usize));
        }
        Ok(Next::Read)
    }

    /// Checks what was read; the first bad block otherwise.
    fn verify(&mut self, planted: PlantedBug) -> std::result::Result<(), u64> {
        if planted == PlantedBug::IgnoreChecksum {
            return Ok(());
        }
        let (first, family) = (self.first_block, self.family);
        let planned: Vec<Piece> = std::mem::take(&mut self.planned);
        let crcs = std::mem::take(&mut self.crcs);
        let memory = self.blocks();
        let mut bad = None;
        for piece in &planned {
            for n in 0..piece.count {
                let from = ((piece.lba + n - first) * BLOCK) as usize;
                let crc = Identity::data(family, Lba(piece.lba + n)).checksum(&memory[from..from + BLOCK as usize]);
                if crc != crcs[piece.crcs + n as usize] {
                    bad.get_or_insert((piece.lba + n, piece.at.map_or(PoolBlock(0), |at| PoolBlock(at.0 + n))));
                }
            }
        }
        (self.planned, self.crcs) = (planned, crcs);
        match bad {
            None => Ok(()),
            Some((lba, _)) => Err(lba),
        }
    }

    fn bad_data(&self, lba: u64, pool: &str) -> Error {
        let place = self
            .planned
            .iter()
            .find(|p| p.lba <= lba && lba < p.lba + p.count)
            .and_then(|p| p.at.map(|at| at.0 + lba - p.lba));
        let at = place.map_or(0, |block| PoolBlock(block).offset());
        Error::new(
            ErrorKind::Corrupt,
            format!(
                "block {lba} of {} does not match its checksum (offset {at} of pool {pool}); run a scrub to see what else is affected",
                self.volume.name()
            ),
        )
    }

    /// Whole blocks are in memory and good: hand them over, or go on to write them.
    fn data_arrived(&mut self) {
        self.planned.clear();
        match std::mem::replace(&mut self.work, Work::Nothing) {
            Work::Read { offset } => {
                if let (Some(bounce), Some(buf)) = (&self.bounce, &mut self.buf) {
                    let from = (offset - self.first_block * BLOCK) as usize;
                    let len = buf.len();
                    buf.copy_from_slice(&bounce[from..from + len]);
                }
            }
            Work::Fill { offset, fua } => {
                if let (Some(bounce), Some(buf)) = (&mut self.bounce, &self.buf) {
                    let from = (offset - self.first_block * BLOCK) as usize;
                    bounce[from..from + buf.len()].copy_from_slice(buf);
                }
                self.work = Work::Write { first: self.first_block, fua };
            }
            other => self.work = other,
        }
    }

    /// The data is on the device: point the map at it.
    fn apply(&mut self, core: &mut Core) -> Step<Next> {
        let Work::Apply { first, mut done, fua } = self.work else { return Ok(Next::Done) };
        let head = self.version();
        while let Some(run) = self.runs.first().copied() {
            let crcs = if self.runs.len() == 1 && done == 0 {
                std::mem::take(&mut self.crcs)
            } else {
                self.crcs[done as usize..(done + run.len) as usize].to_vec()
            };
            let record = Record::Write { head, family: self.family, lba: Lba(first + done), at: run.start, crcs };
            let len = 29 + 4 * run.len as usize;
            let applied = core.execute(&record, len);
            if let Record::Write { crcs, .. } = record
                && self.crcs.is_empty()
            {
                self.crcs = crcs;
            }
            applied?;
            self.runs.remove(0);
            done += run.len;
            self.work = Work::Apply { first, done, fua };
        }
        if let Some(ticket) = self.writer.take() {
            core.end_write(ticket);
        }
        if let Some(next) = self.after.take() {
            self.work = *next;
            return Ok(Next::Again);
        }
        Ok(if fua { self.durable_or_done(core, core.journal.last_record()) } else { Next::Done })
    }

    fn punch(&mut self, core: &mut Core) -> Step<Next> {
        let Work::Punch { from, to, kind, fua } = self.work else { return Ok(Next::Done) };
        let head = self.version();
        if from < to {
            if self.writer.is_none() {
                self.writer = Some(core.admit_write(head, Lba(from), to - from, Access::Punch)?);
            }
            let end = core.survey_punch(head, Lba(from), Lba(to))?;
            core.execute_record(&Record::Punch { head, from: Lba(from), to: end, kind })?;
            self.work = Work::Punch { from: end.0, to, kind, fua };
            if end.0 < to {
                return Ok(Next::Again);
            }
        }
        core.refuse_if_poisoned()?;
        if let Some(ticket) = self.writer.take() {
            core.end_write(ticket);
        }
        Ok(if fua { self.durable_or_done(core, core.journal.last_record()) } else { Next::Done })
    }

    /// Two rounds of making space have not helped, and nothing more is being reclaimed.
    fn out_of_space(&mut self, core: &Core) -> bool {
        let first = *self.rounds.get_or_insert(core.admission.space_rounds);
        core.admission.space_rounds >= first + 2 && !core.admission.reclaiming
    }
}

/// Cuts the first and last extent to the bytes asked for.
fn clip(extents: &mut Vec<crate::request::Extent>, from: u64, to: u64) {
    for extent in extents.iter_mut() {
        let end = (extent.offset + extent.len).min(to);
        extent.offset = extent.offset.max(from);
        extent.len = end.saturating_sub(extent.offset);
    }
    extents.retain(|e| e.len > 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edges_are_what_no_whole_block_covers() {
        let check = |offset, len, want: &[(u64, u64)]| assert_eq!(ragged_edges(offset, len), want, "{offset}+{len}");
        check(0, 8192, &[]);
        check(512, 512, &[(512, 1024)]);
        check(512, 4096, &[(512, 4096), (4096, 4608)]);
        check(4096, 4608, &[(8192, 8704)]);
        check(3584, 512 + 4096, &[(3584, 4096)]);
    }

    #[test]
    fn a_poisoned_pool_stays_poisoned() {
        let e = Err(Error::new(ErrorKind::Io, "x"));
        assert_eq!(crate::queue::poisoned_again(&e).map_err(|e| e.kind()), Err(ErrorKind::Poisoned));
    }
}
