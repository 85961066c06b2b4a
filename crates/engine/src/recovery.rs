//! Creating a pool, and opening one: from the last checkpoint and the journal to the state that was durable.

use std::sync::Arc;

use crate::buf::IoBuf;
use crate::cache::PageCache;
use crate::core::{Core, PlantedBug};
use crate::device::Device;
use crate::disk::entry::{Entry, Identity};
use crate::disk::layout::{self, JOURNAL, SUPERBLOCKS, space_root};
use crate::disk::record::Record;
use crate::disk::superblock::{PoolState, SlotRef, Superblock, Unusable};
use crate::error::{Error, ErrorKind, Result};
use crate::journal::{self, Broken, Journal, Position, Replayable};
use crate::shared::Shared;
use crate::space::{Run, Space};
use crate::units::{BLOCK, Bytes, Epoch, Lba, PoolBlock};

/// Writes an empty pool onto a device of `blocks` blocks.
pub(crate) fn format(device: &dyn Device, blocks: u64, created: u64) -> Result<()> {
    let fail = |e| Error::io(format!("cannot write a new pool to {}", device.name()), e);
    let mut uuid = [0; 16];
    rustix::rand::getrandom(&mut uuid, rustix::rand::GetRandomFlags::empty()).map_err(|e| fail(e.into()))?;
    let journal_blocks = layout::journal_blocks_for(blocks);
    // Written out, not just reserved: a flush must not have to wait for the file system to allocate.
    let zeroes = IoBuf::zeroed(1 << 20);
    let (mut at, end) = (JOURNAL.offset(), JOURNAL.offset() + journal_blocks * BLOCK);
    while at < end {
        let part = zeroes.len().min((end - at) as usize);
        device.write_at(&zeroes[..part], at).map_err(fail)?;
        at += part as u64;
    }
    let root = IoBuf::zeroed((u64::from(layout::tables_in(blocks)) * 8).next_multiple_of(BLOCK) as usize);
    device.write_at(&root, space_root(0).offset()).map_err(fail)?;
    device.sync().map_err(fail)?;
    let superblock = Superblock {
        uuid,
        generation: 1,
        state: PoolState { epoch: Epoch(1), next_object: 1, blocks, ..PoolState::default() },
        journal_blocks,
        journal_align: device.alignment(),
        journal_tail: 0,
        journal_group: 1,
        journal_chain: 0,
        sequence: 0,
        table: Entry::EMPTY,
        names: Entry::EMPTY,
        space: SlotRef { slot: 0, crc: crc32c::crc32c(&root) },
        used_blocks: Space::fixed_blocks(blocks, journal_blocks),
        created,
    };
    let bytes = IoBuf::copy_of(&superblock.encode());
    for place in SUPERBLOCKS {
        device.write_at(&bytes, place.offset()).map_err(fail)?;
    }
    device.sync().map_err(fail)
}

/// What opening found.
pub(crate) struct Opened {
    pub(crate) shared: Arc<Shared>,
    pub(crate) superblock: Superblock,
    /// Journal groups replayed.
    pub(crate) replayed: u64,
    /// The first or second superblock copy was damaged; the next checkpoint writes it anew.
    pub(crate) damaged_copy: Option<u8>,
}

/// The newest usable superblock, and the number of a damaged copy.
pub(crate) fn read_superblock(device: &dyn Device) -> Result<(Superblock, Option<u8>)> {
    let name = device.name();
    let len = device.len().map_err(|e| Error::io(format!("cannot find the size of {name}"), e))?;
    let foreign = |why: &str| Error::new(ErrorKind::NotAPool, format!("{name} is not a keyframe pool: {why}"));
    if len < layout::MIN_POOL_BLOCKS * BLOCK {
        let why =
            if len == 0 { "it is empty".to_owned() } else { format!("{} is less than the smallest pool", Bytes(len)) };
        return Err(foreign(&why));
    }
    let mut copies = Vec::new();
    for place in SUPERBLOCKS {
        let mut block = IoBuf::zeroed(BLOCK as usize);
        device
            .read_at(&mut block, place.offset())
            .map_err(|e| Error::io(format!("cannot read the superblock of {name}"), e))?;
        copies.push(Superblock::decode(&block));
    }
    for copy in &copies {
        if let Err(Unusable::Newer(format)) = copy {
            return Err(Error::new(
                ErrorKind::NewerFormat,
                format!(
                    "pool {name} has format {format}, this program reads up to {}; use a newer keyframe",
                    crate::disk::superblock::FORMAT
                ),
            ));
        }
    }
    let damaged = copies.iter().position(|c| c.is_err()).map(|i| i as u8);
    match (&copies[0], &copies[1]) {
        (Ok(a), Ok(b)) => Ok((if b.generation > a.generation { b.clone() } else { a.clone() }, None)),
        (Ok(a), Err(_)) => Ok((a.clone(), damaged)),
        (Err(_), Ok(b)) => Ok((b.clone(), damaged)),
        (Err(Unusable::Foreign), Err(Unusable::Foreign)) => Err(foreign("no superblock was found")),
        _ => Err(Error::new(
            ErrorKind::Corrupt,
            format!("both superblocks of pool {name} are damaged; restore it from a copy"),
        )),
    }
}

/// Whether opening may write.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// The pool will be used.
    Use,
    /// The pool is only looked at; not a byte changes.
    Look,
}

/// Opens a pool: nothing is written before everything was found sound.
pub(crate) fn open(device: Arc<dyn Device>, cache: usize, planted: PlantedBug, mode: Mode) -> Result<Opened> {
    let name = device.name();
    let (superblock, damaged_copy) = read_superblock(&*device)?;
    let len = device.len().map_err(|e| Error::io(format!("cannot find the size of {name}"), e))?;
    let size = superblock.state.blocks * BLOCK;
    if len < size {
        let (len, size) = (Bytes(len), Bytes(size));
        return Err(Error::new(
            ErrorKind::Corrupt,
            format!("pool {name} is truncated: the file has {len}, the pool {size}; restore the missing part"),
        ));
    }
    if superblock.journal_align < device.alignment() {
        let (made, needs) = (superblock.journal_align, device.alignment());
        let why = format!(
            "pool {name} was made for sectors of {made} bytes, its device now has {needs}; copy its volumes to a new pool"
        );
        return Err(Error::new(ErrorKind::Invalid, why));
    }
    let root = read_space_root(&*device, &superblock)?;
    let mut groups = read_journal(&*device, &superblock)?;
    let mut shared = rebuild(&device, &superblock, root.clone(), &groups, cache, planted)?;
    let mut dropped = None;
    // The last group may not have been durable: then some of its data may be missing, and it never happened.
    if let Some((last, after)) = groups.last()
        && planted != PlantedBug::IgnoreChecksum
        && !data_is_whole(&shared, last, superblock.sequence)?
    {
        let start = after.at - last.header.stored_len(u64::from(superblock.journal_align));
        dropped = Some(start % (superblock.journal_blocks * BLOCK));
        groups.pop();
        shared = rebuild(&device, &superblock, root, &groups, cache, planted)?;
    }
    if mode == Mode::Use && (!groups.is_empty() || dropped.is_some()) {
        settle(&shared, dropped, superblock.journal_align)?;
        let mut core = shared.lock();
        let last = core.journal.last_record();
        core.space.release_blocks(last);
    }
    Ok(Opened { shared: Arc::new(shared), superblock, replayed: groups.len() as u64, damaged_copy })
}

/// The state of the checkpoint with the groups replayed.
fn rebuild(
    device: &Arc<dyn Device>,
    superblock: &Superblock,
    root: Vec<SlotRef>,
    groups: &[(Replayable, Position)],
    cache: usize,
    planted: PlantedBug,
) -> Result<Shared> {
    let head = groups.last().map_or(start_of(superblock), |(_, after)| *after);
    let last_record = groups.last().map_or(superblock.sequence, |(g, _)| {
        (g.header.first_record + u64::from(g.header.records) - 1).max(superblock.sequence)
    });
    let (ring, align) = (superblock.journal_blocks * BLOCK, u64::from(superblock.journal_align));
    let journal = Journal::new(superblock.uuid, ring, align, head, superblock.journal_tail, last_record);
    let space = Space::new(superblock.state.blocks, superblock.journal_blocks, superblock.used_blocks, root);
    let mut core =
        Core::new(superblock.state.clone(), superblock.table, superblock.names, PageCache::new(cache), space, journal);
    core.planted = planted;
    let shared = Shared::new(core, Arc::clone(device));
    replay(&shared, groups, superblock.sequence)?;
    Ok(shared)
}

/// Where the first group to replay lies.
fn start_of(superblock: &Superblock) -> Position {
    Position { at: superblock.journal_tail, group: superblock.journal_group, chain: superblock.journal_chain }
}

/// What was read back may sit in a cache only: from here on it counts as durable. A group that never happened must not be
/// taken for its successor of the same number later, so it goes first.
fn settle(shared: &Shared, dropped: Option<u64>, align: u32) -> Result<()> {
    let device = &shared.device;
    let zeroes = IoBuf::zeroed(align as usize);
    let erased = dropped.map_or(Ok(()), |offset| device.write_at(&zeroes, JOURNAL.offset() + offset));
    erased
        .and_then(|()| device.sync())
        .map_err(|e| Error::io(format!("cannot settle the journal of pool {}", device.name()), e))
}

fn read_space_root(device: &dyn Device, superblock: &Superblock) -> Result<Vec<SlotRef>> {
    let name = device.name();
    let tables = layout::tables_in(superblock.state.blocks);
    let mut bytes = IoBuf::zeroed((u64::from(tables) * 8).next_multiple_of(BLOCK) as usize);
    let at = space_root(superblock.space.slot.min(1)).offset();
    device
        .read_at(&mut bytes, at)
        .map_err(|e| Error::io(format!("cannot read the allocation root of pool {name}"), e))?;
    let good = crc32c::crc32c(&bytes) == superblock.space.crc;
    crate::space::decode_root(&bytes, tables).filter(|_| good).ok_or_else(|| {
        Error::new(
            ErrorKind::Corrupt,
            format!("the allocation root of pool {name} at offset {at} does not match its checksum"),
        )
    })
}

fn read_journal(device: &dyn Device, superblock: &Superblock) -> Result<Vec<(Replayable, Position)>> {
    let name = device.name();
    let mut ring = IoBuf::zeroed((superblock.journal_blocks * BLOCK) as usize);
    device
        .read_at(&mut ring, JOURNAL.offset())
        .map_err(|e| Error::io(format!("cannot read the journal of pool {name}"), e))?;
    let align = u64::from(superblock.journal_align);
    journal::scan(&superblock.uuid, &ring, align, start_of(superblock)).map_err(|broken| {
        let what = match broken {
            Broken::Group(n) => format!("group {n} is damaged although later ones are whole"),
            Broken::Record(n) => format!("group {n} holds a record that cannot be read"),
        };
        Error::new(
            ErrorKind::Corrupt,
            format!("the journal of pool {name} is corrupt: {what}; restore the pool from a copy"),
        )
    })
}

/// Whether all data that the last group's records point to is there, once they were replayed. Blocks that a later record of
/// the same group freed do not count: they are only ever reused when the group was durable.
fn data_is_whole(shared: &Shared, group: &Replayable, checkpointed: u64) -> Result<bool> {
    let device = &shared.device;
    for (number, record) in (group.header.first_record..).zip(&group.records) {
        let Record::Write { family, lba, at, crcs, .. } = record else { continue };
        if number <= checkpointed {
            continue;
        }
        let mut data = IoBuf::zeroed(crcs.len() * BLOCK as usize);
        device
            .read_at(&mut data, at.offset())
            .map_err(|e| Error::io(format!("cannot read data at {} of pool {}", at.offset(), device.name()), e))?;
        let blocks = data.chunks_exact(BLOCK as usize).zip(crcs).zip(at.0..).zip(lba.0..);
        for (((block, crc), place), lba) in blocks {
            let whole = Identity::data(*family, Lba(lba)).checksum(block) == *crc;
            if !whole && !shared.run(|core| core.space.is_unused(PoolBlock(place)))? {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// Applies the journal to the state of the checkpoint.
fn replay(shared: &Shared, groups: &[(Replayable, Position)], checkpointed: u64) -> Result<()> {
    let todo = |group: &Replayable| {
        let first = group.header.first_record;
        (first..).zip(group.records.clone()).filter(move |(number, _)| *number > checkpointed)
    };
    for (group, _) in groups {
        for (number, record) in todo(group) {
            match record {
                Record::Write { at, crcs, .. } => {
                    let run = Run { start: at, len: crcs.len() as u64 };
                    shared.run(|core| core.space.reserve_for_replay(run))?;
                }
                // Later records may lie beyond the old end. Applying it again in its turn changes nothing.
                Record::Grow { .. } => shared.run(|core| core.apply(&record, number))?,
                _ => {}
            }
        }
    }
    for (group, _) in groups {
        // Blocks freed by earlier groups were durably free, and this group may use them.
        let durable = group.header.first_record.saturating_sub(1);
        shared.lock().space.release_blocks(durable);
        for (number, record) in todo(group) {
            shared.run(|core| core.apply(&record, number)).map_err(|e| {
                Error::new(
                    e.kind(),
                    format!("pool {}: journal record {number} cannot be replayed: {e}", shared.device.name()),
                )
            })?;
        }
    }
    let mut core = shared.lock();
    core.space.end_replay();
    let (blocks, name) = (core.state.blocks, shared.device.name());
    drop(core);
    let len = shared.device.len().map_err(|e| Error::io(format!("cannot find the size of {name}"), e))?;
    if len < blocks * BLOCK {
        let (len, size) = (Bytes(len), Bytes(blocks * BLOCK));
        let why = format!("pool {name} is truncated: the file has {len}, the pool {size}; restore the missing part");
        return Err(Error::new(ErrorKind::Corrupt, why));
    }
    Ok(())
}
