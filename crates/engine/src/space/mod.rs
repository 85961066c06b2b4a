//! Which sectors of the pool are allocated, and who may have the free ones.
//!
//! Three things are kept apart. A *bit* says that the state (with everything applied so far) uses a sector. A *hold* keeps a
//! block with no bits from being allocated: it is promised to a write in flight, or it was freed and the record that freed it
//! is not durable yet, or a reader may still be reading it. A *parked* free is a bit whose bitmap page is not in memory.
//! Holds live in memory only; after a crash they are gone, as they must be.

mod group;
mod release;
mod table;

pub(crate) use group::Group;
pub(crate) use release::ReadTicket;

use std::collections::VecDeque;
use std::sync::Arc;

use crate::cache::{AddressMap, Generation};
use crate::core::stop::{Miss, Stop};
use crate::disk::layout::{self, GROUP_BLOCKS, GroupNo, TableNo};
use crate::disk::superblock::SlotRef;
use crate::error::{Error, ErrorKind};
use crate::units::{PoolBlock, SECTORS_PER_BLOCK, Sector};
use release::{Freed, Releases};
use table::{GroupRef, Table};

/// Blocks that a metadata run asks for: sequential metadata writes of 256 KiB.
const METADATA_RUN: u64 = 64;
/// Groups looked into for a run of the wanted size before any run is taken.
const PATIENCE: u32 = 8;
/// Clean bitmap pages kept in memory.
const RESIDENT_GROUPS: usize = 2048;

/// Consecutive blocks, held for one purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Run {
    pub(crate) start: PoolBlock,
    pub(crate) len: u64,
}

/// How much of the free space has come into use since the last durable checkpoint.
///
/// Replaying may put metadata only where no record since that checkpoint has put data, whatever became of the data since: it
/// is not to be overwritten before its record was looked at. In a pool whose free space has been through a whole turn there
/// would be no such place. As long as `fresh` is at most `room`, there is: what records put data in and what their metadata
/// took are together no more than what was free, and replaying takes no more metadata than running did.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Turn {
    /// Blocks that were free then.
    room: u64,
    /// Blocks that came into use since, one that did so twice counted twice.
    fresh: u64,
    /// Both as of the freeze, while a checkpoint is under way.
    next: Option<(u64, u64)>,
}

impl Turn {
    /// Whether a record that brings up to `blocks` into use can be replayed. The first after a checkpoint always can.
    pub(crate) fn allows(self, blocks: u64) -> bool {
        self.fresh == 0 || self.fresh + blocks <= self.room
    }

    /// Blocks that came into use since an earlier look.
    pub(crate) fn since(self, earlier: Turn) -> u64 {
        self.fresh - earlier.fresh
    }

    /// So much that a checkpoint now saves others a wait.
    pub(crate) fn is_half_over(self) -> bool {
        self.next.is_none() && self.fresh > (self.room / 2).max(METADATA_RUN)
    }
}

/// The allocator.
pub(crate) struct Space {
    blocks: u64,
    journal_blocks: u64,
    groups: AddressMap<u32, Group>,
    tables: Vec<Option<Table>>,
    /// Where each table page is; index is the table number.
    root: Vec<SlotRef>,
    parked: VecDeque<(Freed, u64)>,
    releases: Releases,
    metadata: VecDeque<(Sector, Sector)>,
    metadata_slots: u64,
    next_group: u32,
    used: u64,
    held: u64,
    turn: Turn,
    /// During replay, blocks that later records will claim must not be given to metadata.
    replaying: bool,
    /// Walks under way outside the lock: nothing they may have seen is reused before they end.
    pins: u32,
    /// How far releases have been asked for while pinned.
    durable: u64,
    checkpointed: Generation,
}

/// One bitmap page as of a freeze.
pub(crate) struct FrozenGroup {
    pub(crate) number: GroupNo,
    pub(crate) bits: Arc<[u8; 4096]>,
}

impl Space {
    pub(crate) fn new(blocks: u64, journal_blocks: u64, used: u64, root: Vec<SlotRef>) -> Space {
        let mut tables = Vec::new();
        tables.resize_with(layout::tables_in(blocks) as usize, || None);
        Space {
            blocks,
            journal_blocks,
            groups: AddressMap::default(),
            tables,
            root,
            parked: VecDeque::new(),
            releases: Releases::default(),
            metadata: VecDeque::new(),
            metadata_slots: 0,
            next_group: 0,
            used,
            held: 0,
            turn: Turn { room: blocks - used, fresh: 0, next: None },
            replaying: false,
            pins: 0,
            durable: 0,
            checkpointed: Generation::default(),
        }
    }

    /// Blocks of a fresh pool that are never free: its fixed structures.
    pub(crate) fn fixed_blocks(blocks: u64, journal_blocks: u64) -> u64 {
        (0..layout::groups_in(blocks)).map(|g| GroupNo(g).fixed_blocks(journal_blocks)).sum()
    }

    /// Blocks that could be allocated now.
    pub(crate) fn available(&self) -> u64 {
        (self.blocks - self.used).saturating_sub(self.held)
    }
    /// Blocks with any bit set.
    pub(crate) fn used(&self) -> u64 {
        self.used
    }
    /// Frees that wait for durability, readers, or their bitmap page.
    pub(crate) fn pending(&self) -> u64 {
        self.releases.len() + self.parked.len() as u64
    }

    /// The pool got larger; the new groups are empty.
    pub(crate) fn grow(&mut self, blocks: u64) -> Result<(), Stop> {
        if blocks <= self.blocks {
            return Ok(());
        }
        let old_groups = layout::groups_in(self.blocks);
        let last = GroupNo(old_groups - 1);
        let partial = !self.blocks.is_multiple_of(GROUP_BLOCKS);
        if partial {
            self.group(last)?;
        }
        let end_of_last = blocks.min(u64::from(old_groups) * GROUP_BLOCKS);
        for block in self.blocks..end_of_last {
            if let Some(group) = self.groups.get_mut(&last.0) {
                group.clear_block(index(PoolBlock(block)));
            }
        }
        let mut more = blocks - self.blocks;
        for g in old_groups..layout::groups_in(blocks) {
            let fixed = GroupNo(g).fixed_blocks(self.journal_blocks);
            self.used += fixed;
            more -= fixed;
        }
        self.turn.room += more;
        if let Some((_, room)) = &mut self.turn.next {
            *room += more;
        }
        self.blocks = blocks;
        self.tables.resize_with(layout::tables_in(blocks) as usize, || None);
        self.root.resize(layout::tables_in(blocks) as usize, SlotRef::default());
        Ok(())
    }

    fn table(&mut self, number: TableNo) -> Result<&mut Table, Stop> {
        let i = number.0 as usize;
        let root = self.root.get(i).copied().unwrap_or_default();
        if self.tables[i].is_none() {
            if root.slot != 0 {
                return Err(Stop::Miss(Miss::Table { number, at: number.page(root.slot - 1), crc: root.crc }));
            }
            self.tables[i] = Some(Table::default());
        }
        self.tables[i].as_mut().ok_or(Stop::Miss(Miss::Table { number, at: number.page(0), crc: 0 }))
    }

    fn group(&mut self, number: GroupNo) -> Result<&mut Group, Stop> {
        if !self.groups.contains_key(&number.0) {
            let reference = self.table(number.table())?.groups[number.index_in_table()];
            match reference.slot {
                Some(slot) => {
                    return Err(Stop::Miss(Miss::Group { number, at: number.bitmap(slot), crc: reference.crc }));
                }
                None => {
                    let group = Group::fresh(number, self.blocks, self.journal_blocks);
                    self.groups.insert(number.0, group);
                }
            }
        }
        self.groups.get_mut(&number.0).ok_or(Stop::bug("group vanished"))
    }

    /// Adds a table page read from the device. `false`: the checksum is wrong.
    pub(crate) fn fulfil_table(&mut self, number: TableNo, crc: u32, bytes: &[u8]) -> bool {
        if crc32c::crc32c(bytes) != crc {
            return false;
        }
        let slot = &mut self.tables[number.0 as usize];
        if slot.is_none() {
            *slot = Some(Table::decode(bytes));
        }
        true
    }

    /// Adds a bitmap page read from the device. `false`: the checksum is wrong.
    pub(crate) fn fulfil_group(&mut self, number: GroupNo, crc: u32, bytes: &[u8]) -> bool {
        if crc32c::crc32c(bytes) != crc {
            return false;
        }
        // A slow read may bring what a checkpoint has since replaced: then the step asks again, for the newer one.
        let current = self.tables[number.table().0 as usize].as_ref().map(|t| t.groups[number.index_in_table()].crc);
        if !self.groups.contains_key(&number.0) && current == Some(crc) {
            self.evict_groups();
            self.groups.insert(number.0, Group::from_bytes(bytes));
        }
        true
    }

    fn evict_groups(&mut self) {
        if self.groups.len() >= RESIDENT_GROUPS {
            self.groups.retain(|_, g| g.dirty || g.is_held() || g.is_reserved() || g.frozen);
        }
    }

    /// Makes sure that the bitmap pages of these blocks are in memory, so that marking them cannot miss.
    pub(crate) fn require(&mut self, run: Run) -> Result<(), Stop> {
        let end = run.start.0 + run.len;
        if run.len == 0 || end > self.blocks {
            let why = format!(
                "a record or map entry refers to pool block {}, the pool has {}",
                end.saturating_sub(1),
                self.blocks
            );
            return Err(Stop::Fail(Error::new(ErrorKind::Corrupt, why)));
        }
        let last = PoolBlock(end - 1);
        for g in GroupNo::of(run.start).0..=GroupNo::of(last).0 {
            self.group(GroupNo(g))?;
        }
        Ok(())
    }

    /// Holds up to `want` free blocks, near `hint` if possible, and adds them to `out`: one run if there is one of a good size,
    /// otherwise all the small ones that a single group has to offer. Nothing is added when nothing is free.
    pub(crate) fn take_runs(&mut self, hint: PoolBlock, want: u64, out: &mut VecDeque<Run>) -> Result<(), Stop> {
        let groups = layout::groups_in(self.blocks);
        let first = if hint.0 == 0 { self.next_group } else { GroupNo::of(hint).0 };
        let mut patience = PATIENCE;
        let mut smallest = want.div_ceil(4);
        for step in 0..groups.saturating_mul(2) {
            let number = GroupNo((first + step) % groups);
            if step >= groups || patience == 0 {
                smallest = 1;
            }
            let free = match self.groups.get(&number.0) {
                Some(group) => group.available(),
                None => {
                    let (blocks, journal) = (self.blocks, self.journal_blocks);
                    self.table(number.table())?.groups[number.index_in_table()].free(number, blocks, journal)
                }
            };
            if u64::from(free) < smallest {
                continue;
            }
            let replaying = self.replaying;
            let group = self.group(number)?;
            let from = if step == 0 && hint.0 != 0 { index(hint) } else { 0 };
            let mut found = group.find(from, want, smallest, replaying);
            if found.is_empty() && from > 0 {
                found = group.find(0, want, smallest, replaying);
            }
            if found.is_empty() {
                patience = patience.saturating_sub(1);
                continue;
            }
            let newly: u32 = found.iter().map(|&(start, len)| group.hold(start, len)).sum();
            self.held += u64::from(newly);
            for (start, len) in found {
                out.push_back(Run { start: PoolBlock(number.first_block().0 + start as u64), len });
            }
            self.next_group = number.0;
            return Ok(());
        }
        Ok(())
    }

    /// Gives back blocks of a run that were not used.
    pub(crate) fn return_run(&mut self, run: Run) {
        for block in run.start.0..run.start.0 + run.len {
            self.unhold(PoolBlock(block));
        }
    }

    fn unhold(&mut self, block: PoolBlock) {
        if let Some(group) = self.groups.get_mut(&GroupNo::of(block).0)
            && group.unhold(index(block))
        {
            self.held -= 1;
        }
    }

    /// The state uses this data block from now on. Its bitmap page must be in memory.
    pub(crate) fn set_block(&mut self, block: PoolBlock) -> Result<(), Stop> {
        let group = self.group(GroupNo::of(block))?;
        let newly = group.set_block(index(block));
        let was_held = group.unhold(index(block));
        self.used += u64::from(newly);
        self.turn.fresh += u64::from(newly);
        self.held -= u64::from(was_held);
        Ok(())
    }

    /// True when no sector of the block is in use.
    pub(crate) fn is_unused(&mut self, block: PoolBlock) -> Result<bool, Stop> {
        Ok(self.group(GroupNo::of(block))?.bits[index(block)] == 0)
    }

    /// How far the free space has been through a turn.
    pub(crate) fn turn(&self) -> Turn {
        self.turn
    }

    /// Makes sure that `slots` metadata sectors can be taken without a miss. `false`: the pool is full.
    ///
    /// While replaying there may be fewer than asked for: `slots` is the most that a step could take, and there are as many as
    /// it did take, see [`Turn`].
    pub(crate) fn prepare_metadata(&mut self, slots: u64) -> Result<bool, Stop> {
        while self.metadata_slots < slots {
            let hint = self.metadata.back().map_or(PoolBlock(0), |&(_, end)| end.block());
            let mut runs = VecDeque::new();
            self.take_runs(hint, METADATA_RUN, &mut runs)?;
            if runs.is_empty() {
                return Ok(self.replaying);
            }
            for run in runs {
                self.metadata_slots += run.len * SECTORS_PER_BLOCK;
                let start = run.start.sector();
                self.metadata.push_back((start, Sector(start.0 + run.len * SECTORS_PER_BLOCK)));
            }
        }
        Ok(true)
    }

    /// Takes a metadata sector prepared before.
    pub(crate) fn take_sector(&mut self) -> Result<Sector, Stop> {
        let Some((next, end)) = self.metadata.front_mut() else {
            return Err(Stop::bug("no metadata sector was prepared"));
        };
        let sector = *next;
        next.0 += 1;
        if next == end {
            self.metadata.pop_front();
        }
        self.metadata_slots -= 1;
        let group = self.group(GroupNo::of(sector.block()))?;
        let newly = group.set_sector(sector);
        let was_held = group.unhold(index(sector.block()));
        self.used += u64::from(newly);
        self.turn.fresh += u64::from(newly);
        self.held -= u64::from(was_held);
        Ok(sector)
    }

    /// A data block left the state with the record numbered `sequence`.
    pub(crate) fn free_block(&mut self, block: PoolBlock, sequence: u64) {
        self.free(Freed::Block(block), sequence);
    }

    /// A metadata sector left the state in `generation`.
    pub(crate) fn free_sector(&mut self, sector: Sector, generation: Generation) {
        self.free(Freed::Sector(sector), generation.0);
    }

    fn free(&mut self, freed: Freed, tag: u64) {
        match self.groups.get_mut(&GroupNo::of(freed.block()).0) {
            Some(group) => {
                let emptied = match freed {
                    Freed::Block(b) => group.clear_block(index(b)),
                    Freed::Sector(s) => group.clear_sector(s),
                };
                if emptied {
                    self.used -= 1;
                    self.held += u64::from(group.hold(index(freed.block()), 1));
                    self.releases.push(freed, tag);
                }
            }
            None => self.parked.push_back((freed, tag)),
        }
    }

    /// Applies parked frees whose bitmap pages can be had; a miss names the next page to load.
    pub(crate) fn unpark(&mut self) -> Result<(), Stop> {
        while let Some(&(freed, tag)) = self.parked.front() {
            self.group(GroupNo::of(freed.block()))?;
            self.parked.pop_front();
            self.free(freed, tag);
        }
        Ok(())
    }

    /// A read of data blocks begins; blocks freed from now on stay untouched until [`Space::end_read`].
    pub(crate) fn begin_read(&mut self) -> ReadTicket {
        self.releases.begin_read()
    }

    pub(crate) fn end_read(&mut self, ticket: ReadTicket) {
        self.releases.end_read(ticket);
    }

    /// Data blocks freed by records up to `sequence` may be used again, unless somebody still reads them.
    pub(crate) fn release_blocks(&mut self, durable: u64) {
        self.durable = self.durable.max(durable);
        while self.pins == 0 {
            let Some(block) = self.releases.next_block(durable) else { break };
            self.unhold(block);
        }
    }

    /// Metadata sectors freed up to `generation` may be used again: a checkpoint without them is durable.
    pub(crate) fn release_sectors(&mut self, generation: Generation) {
        self.checkpointed = self.checkpointed.max(generation);
        while self.pins == 0 {
            let Some(block) = self.releases.next_metadata_block(generation.0) else { break };
            if let Some(block) = block {
                self.unhold(block);
            }
        }
    }

    // ---- checkpoint ----

    /// Starts a checkpoint: the bitmap pages changed since the last one, as they are now. Parked frees must be gone.
    pub(crate) fn freeze(&mut self) -> Vec<FrozenGroup> {
        debug_assert!(self.parked.is_empty(), "frees are unparked before the freeze");
        self.turn.next = Some((self.turn.fresh, self.blocks - self.used));
        // The next generation starts in a block of its own: a block is written once.
        if let Some((next, end)) = self.metadata.front_mut() {
            let skip = next.0.next_multiple_of(SECTORS_PER_BLOCK) - next.0;
            next.0 += skip;
            self.metadata_slots -= skip;
            if next >= end {
                self.metadata.pop_front();
            }
        }
        let mut frozen = Vec::new();
        for (&number, group) in &mut self.groups {
            if std::mem::take(&mut group.dirty) {
                group.frozen = true;
                frozen.push(FrozenGroup { number: GroupNo(number), bits: Arc::clone(&group.bits) });
            }
        }
        frozen.sort_unstable_by_key(|g| g.number);
        frozen
    }

    /// Says where a frozen bitmap page must be written, and notes it in the tables.
    pub(crate) fn place_group(&mut self, frozen: &FrozenGroup) -> Result<PoolBlock, Stop> {
        let number = frozen.number;
        let table = self.table(number.table())?;
        let reference = &mut table.groups[number.index_in_table()];
        let slot = reference.slot.map_or(0, |s| 1 - s);
        let free = frozen.bits.iter().filter(|b| **b == 0).count() as u16;
        *reference = GroupRef { slot: Some(slot), crc: crc32c::crc32c(&frozen.bits[..]), free };
        table.dirty = true;
        Ok(number.bitmap(slot))
    }

    /// The changed table pages, each with the place to write it to.
    pub(crate) fn place_tables(&mut self) -> Vec<(PoolBlock, Vec<u8>)> {
        let mut out = Vec::new();
        for (i, table) in self.tables.iter_mut().enumerate() {
            let Some(table) = table.as_mut().filter(|t| t.dirty) else { continue };
            table.dirty = false;
            let bytes = table.encode();
            let slot = if self.root[i].slot == 1 { 1 } else { 0 };
            self.root[i] = SlotRef { slot: slot + 1, crc: crc32c::crc32c(&bytes) };
            out.push((TableNo(i as u32).page(slot), bytes));
        }
        out
    }

    /// The space root of a pool of `blocks` blocks: 8 bytes for each table page, padded to whole blocks.
    pub(crate) fn encode_root(&self, blocks: u64) -> Vec<u8> {
        table::encode_root(&self.root[..layout::tables_in(blocks) as usize])
    }

    /// Ends a checkpoint.
    pub(crate) fn thaw(&mut self) {
        if let Some((before, room)) = self.turn.next.take() {
            self.turn = Turn { room, fresh: self.turn.fresh - before, next: None };
        }
        for group in self.groups.values_mut() {
            group.frozen = false;
        }
        self.evict_groups();
    }

    // ---- verification ----

    /// Keeps everything that was freed from being reused.
    pub(crate) fn pin(&mut self) {
        self.pins += 1;
    }

    /// Ends a pin; after the last one, what was freed meanwhile may be reused.
    pub(crate) fn unpin(&mut self) {
        self.pins -= 1;
        self.release_blocks(self.durable);
        self.release_sectors(self.checkpointed);
    }

    pub(crate) fn is_pinned(&self) -> bool {
        self.pins > 0
    }

    pub(crate) fn journal_blocks(&self) -> u64 {
        self.journal_blocks
    }

    /// A group's bits as they are now; `None` if it was never used.
    pub(crate) fn bits(&mut self, number: GroupNo) -> Result<Option<Box<[u8; 4096]>>, Stop> {
        let stored = self.table(number.table())?.groups[number.index_in_table()].slot.is_some();
        if !stored && !self.groups.contains_key(&number.0) {
            return Ok(None);
        }
        Ok(Some(Box::new(*self.group(number)?.bits)))
    }

    /// Where the last checkpoint put a group's bitmap, and its checksum; `None` if it was never used.
    pub(crate) fn stored_group(&mut self, number: GroupNo) -> Result<Option<(PoolBlock, u32)>, Stop> {
        let reference = self.table(number.table())?.groups[number.index_in_table()];
        Ok(reference.slot.map(|slot| (number.bitmap(slot), reference.crc)))
    }

    // ---- replay ----

    /// During replay: this run will be claimed by a record to come.
    pub(crate) fn reserve_for_replay(&mut self, run: Run) -> Result<(), Stop> {
        self.require(run)?;
        self.replaying = true;
        for block in run.start.0..run.start.0 + run.len {
            self.group(GroupNo::of(PoolBlock(block)))?.reserve(index(PoolBlock(block)));
        }
        Ok(())
    }

    /// Replay is over: reservations end.
    pub(crate) fn end_replay(&mut self) {
        self.replaying = false;
        for group in self.groups.values_mut() {
            group.end_reservations();
        }
    }
}

/// A block's index within its group.
fn index(block: PoolBlock) -> usize {
    (block.0 % GROUP_BLOCKS) as usize
}

/// Decodes a space root for a pool with this many table pages. `None`: too short or malformed.
pub(crate) use table::decode_root;
