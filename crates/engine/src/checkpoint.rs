//! Checkpoints: the state in memory becomes the state on the device, while guests go on writing.
//!
//! Freeze (under the lock, short): dirty pages and bitmaps of this generation are set aside. Then, in steps: checksums from the
//! leaves up, dirty pages in address order into fresh blocks, bitmaps and tables into their other slots, sync, superblock,
//! sync, second superblock. Only then may the journal and freed metadata be reused. A crash before the superblock leaves the
//! old state and its journal as they were.

use crate::buf::IoBuf;
use crate::cache::{FrozenPage, Generation};
use crate::core::stop::Stop;
use crate::disk::entry::Page;
use crate::disk::layout::{SPACE_ROOT_BLOCKS, SUPERBLOCKS, space_root};
use crate::disk::superblock::{SlotRef, Superblock};
use crate::error::{Error, Result};
use crate::journal::Position;
use crate::shared::Shared;
use crate::space::FrozenGroup;
use crate::units::{BLOCK, PoolBlock, SECTOR, SECTORS_PER_BLOCK};

/// Pages handled under one hold of the lock.
const BATCH: usize = 256;
/// Blocks in one metadata write.
const WRITE_BLOCKS: u64 = 256;

/// Proof that everything a superblock refers to was synced.
#[must_use]
struct Synced(());

enum Phase {
    Seal { done: usize },
    Pages { done: usize },
    Groups { done: usize },
    Tables,
    Superblock,
    Finished,
}

/// A checkpoint under way.
pub(crate) struct Checkpoint {
    frozen: Generation,
    superblock: Superblock,
    position: Position,
    /// Frozen pages by rank while sealing, by address while writing.
    pages: Vec<FrozenPage>,
    groups: Vec<FrozenGroup>,
    phase: Phase,
}

impl Checkpoint {
    /// Freezes the state. `previous` is the superblock to follow.
    pub(crate) fn begin(shared: &Shared, previous: &Superblock) -> Result<Checkpoint> {
        let mut checkpoint = shared.attempt(|core| {
            core.space.unpark()?;
            core.store_heads()?;
            core.space.unpark()?;
            let frozen = core.generation;
            core.generation = Generation(frozen.0 + 1);
            core.checkpoint_wanted = false;
            core.cache.freeze();
            let groups = core.space.freeze();
            let pages = core.cache.frozen_pages(frozen);
            let position = core.journal.position();
            let superblock = Superblock {
                generation: previous.generation + 1,
                state: core.state.clone(),
                journal_tail: position.at,
                journal_group: position.group,
                journal_chain: position.chain,
                sequence: core.journal.last_record(),
                table: core.table,
                names: core.names,
                used_blocks: core.space.used(),
                ..previous.clone()
            };
            Ok(Checkpoint { frozen, superblock, position, pages, groups, phase: Phase::Seal { done: 0 } })
        })?;
        // Children before parents; sorted without the lock.
        checkpoint.pages.sort_unstable_by_key(|page| (page.rank, page.at));
        checkpoint.pages.dedup();
        Ok(checkpoint)
    }

    /// Does a bounded piece of work; the new superblock when the checkpoint is complete.
    pub(crate) fn step(&mut self, shared: &Shared) -> Result<Option<Superblock>> {
        self.phase = match self.phase {
            Phase::Seal { done } => self.seal(shared, done),
            Phase::Pages { done } => self.write_pages(shared, done)?,
            Phase::Groups { done } => self.write_group(shared, done)?,
            Phase::Tables => self.write_tables(shared)?,
            Phase::Superblock => {
                let synced = sync(shared)?;
                self.write_superblocks(shared, synced)?;
                self.finish(shared);
                Phase::Finished
            }
            Phase::Finished => Phase::Finished,
        };
        Ok(matches!(self.phase, Phase::Finished).then(|| self.superblock.clone()))
    }

    fn seal(&mut self, shared: &Shared, done: usize) -> Phase {
        let end = (done + BATCH).min(self.pages.len());
        let mut core = shared.lock();
        for page in &self.pages[done..end] {
            core.cache.seal(page.slot);
        }
        if end < self.pages.len() {
            return Phase::Seal { done: end };
        }
        self.superblock.table.crc = core.cache.expected_crc(self.superblock.table);
        self.superblock.names.crc = core.cache.expected_crc(self.superblock.names);
        drop(core);
        self.pages.sort_unstable_by_key(|page| page.at);
        Phase::Pages { done: 0 }
    }

    fn write_pages(&mut self, shared: &Shared, done: usize) -> Result<Phase> {
        let Some(&FrozenPage { at: first, .. }) = self.pages.get(done) else { return Ok(Phase::Groups { done: 0 }) };
        let start = first.block();
        let mut end = done;
        let mut last = start;
        while let Some(page) = self.pages.get(end) {
            let block = page.at.block();
            if block.0 > last.0 + 1 || block.0 >= start.0 + WRITE_BLOCKS {
                break;
            }
            last = block;
            end += 1;
        }
        let mut buf = IoBuf::zeroed(((last.0 - start.0 + 1) * BLOCK) as usize);
        {
            let core = shared.lock();
            for &FrozenPage { at, slot, .. } in &self.pages[done..end] {
                let offset = ((at.0 - start.0 * SECTORS_PER_BLOCK) * SECTOR) as usize;
                let page: &Page = core.cache.frozen_page(slot);
                buf[offset..offset + SECTOR as usize].copy_from_slice(&page.0);
            }
        }
        write(shared, &buf, start)?;
        Ok(Phase::Pages { done: end })
    }

    fn write_group(&mut self, shared: &Shared, done: usize) -> Result<Phase> {
        let Some(group) = self.groups.get(done) else { return Ok(Phase::Tables) };
        let place = shared.attempt(|core| core.space.place_group(group))?;
        write(shared, &IoBuf::copy_of(&group.bits[..]), place)?;
        Ok(Phase::Groups { done: done + 1 })
    }

    fn write_tables(&mut self, shared: &Shared) -> Result<Phase> {
        let (tables, root) = {
            let mut core = shared.lock();
            (core.space.place_tables(), core.space.encode_root(self.superblock.state.blocks))
        };
        for (place, bytes) in &tables {
            write(shared, &IoBuf::copy_of(bytes), *place)?;
        }
        if root.len() as u64 > SPACE_ROOT_BLOCKS * BLOCK {
            return Err(crate::core::stop::Stop::bug("the space root outgrew its place").into_error());
        }
        let slot = 1 - self.superblock.space.slot;
        write(shared, &IoBuf::copy_of(&root), space_root(slot))?;
        self.superblock.space = SlotRef { slot, crc: crc32c::crc32c(&root) };
        Ok(Phase::Superblock)
    }

    fn write_superblocks(&self, shared: &Shared, synced: Synced) -> Result<()> {
        let Synced(()) = synced;
        let bytes = IoBuf::copy_of(&self.superblock.encode());
        write(shared, &bytes, SUPERBLOCKS[0])?;
        let Synced(()) = sync(shared)?;
        // The copy is a spare for a damaged first one; it becomes durable with the next sync.
        write(shared, &bytes, SUPERBLOCKS[1])
    }

    fn finish(&self, shared: &Shared) {
        let mut core = shared.lock();
        core.thaw(self.frozen);
        core.journal.advance_tail(self.position);
        core.journal.note_durable(self.superblock.sequence);
        let durable = core.journal.durable();
        core.space.release_blocks(durable);
        core.admission.wake_all();
        shared.moved.notify_all();
    }
}

fn write(shared: &Shared, buf: &IoBuf, at: PoolBlock) -> Result<()> {
    shared
        .device
        .write_at(buf, at.offset())
        .map_err(|e| Error::io(format!("cannot write metadata at {} of pool {}", at.offset(), shared.device.name()), e))
}

fn sync(shared: &Shared) -> Result<Synced> {
    shared.device.sync().map_err(|e| Error::io(format!("cannot sync pool {}", shared.device.name()), e))?;
    Ok(Synced(()))
}

impl Stop {
    /// For places that cannot stop any other way.
    fn into_error(self) -> Error {
        match self {
            Stop::Fail(e) => e,
            Stop::Miss(_) | Stop::Wait(_) => {
                Error::new(crate::error::ErrorKind::Corrupt, "internal error: unexpected stop")
            }
        }
    }
}
