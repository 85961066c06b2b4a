//! Verification: everything reachable is read and compared with its checksum, and what is reachable with what is allocated.
//!
//! `check` looks at a pool that nobody uses, as recovery left it, and writes nothing. `scrub` looks at a pool in use: it takes a
//! checkpoint, keeps whatever that refers to from being reused, and walks it while guests go on. Both need memory for one bit
//! per sector of the pool (256 MiB for 1 TiB), twice, and for the count below each metadata page.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::buf::IoBuf;
use crate::core::tree::Tree;
use crate::core::{names, tree::Place};
use crate::device::{FileDevice, IoMode};
use crate::disk::entry::{Entry, FANOUT, Identity, span};
use crate::disk::layout::{GROUP_BLOCKS, GroupNo, groups_in};
use crate::disk::object::{Object, State, Version};
use crate::error::{Error, ErrorKind, Result};
use crate::info::CheckReport;
use crate::keeper::Keeper;
use crate::pool::OpenOptions;
use crate::recovery;
use crate::shared::Shared;
use crate::units::{BLOCK, Lba, PoolBlock, SECTORS_PER_BLOCK, Sector, VersionId};

/// Names listed with a damaged block.
const NAMES_PER_ERROR: usize = 8;

/// A bit per sector, by group.
type Bits = BTreeMap<u32, Box<[u8; GROUP_BLOCKS as usize]>>;

/// Verifies a pool that no process has open. Writes nothing.
pub fn check(path: &Path, options: &OpenOptions, progress: &mut dyn FnMut(u64, u64)) -> Result<CheckReport> {
    let device = Arc::new(FileDevice::open(path, IoMode::Threads)?);
    check_on(device, options, progress)
}

/// As [`check`], on any device.
pub fn check_on(
    device: Arc<dyn crate::device::Device>,
    options: &OpenOptions,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<CheckReport> {
    let opened = recovery::open(device, options.cache.0 as usize, options.planted, recovery::Mode::Look)?;
    let shared = &opened.shared;
    let mut report = CheckReport::default();
    if let Some(copy) = opened.damaged_copy {
        report.error(format!("superblock copy {} is damaged; the next checkpoint writes it anew", copy + 1));
    }
    shared.run(|core| {
        core.space.unpark()?;
        core.store_heads()?;
        core.space.unpark()
    })?;
    let (table, names, blocks, used) = {
        let core = shared.lock();
        (core.table, core.names, core.state.blocks, core.space.used())
    };
    let mut allocated = Bits::new();
    for g in 0..groups_in(blocks) {
        match shared.run(|core| core.space.bits(GroupNo(g))) {
            Ok(Some(bits)) => {
                allocated.insert(g, bits);
            }
            Ok(None) => {}
            Err(e) => report.error(e.to_string()),
        }
    }
    let mut walk = Walk::new(shared, report, used, progress);
    walk.pool(table, names)?;
    walk.compare(&allocated, blocks);
    Ok(walk.report)
}

/// Verifies a pool in use.
pub(crate) fn scrub(
    shared: &Shared,
    keeper: &Mutex<Keeper>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<CheckReport> {
    let mut report = CheckReport::default();
    let _pin = shared.pin();
    let (table, names, blocks, used, allocated) = {
        let mut keeper = keeper.lock();
        keeper.checkpoint_now()?;
        let superblock = keeper.superblock();
        let allocated = stored_bits(shared, superblock.state.blocks, &mut report)?;
        (superblock.table, superblock.names, superblock.state.blocks, superblock.used_blocks, allocated)
    };
    let mut walk = Walk::new(shared, report, used, progress);
    walk.gives_way = Some(shared.lock().admission.space_rounds);
    walk.pool(table, names)?;
    walk.compare(&allocated, blocks);
    Ok(walk.report)
}

/// The bitmaps of the last checkpoint, from the device.
fn stored_bits(shared: &Shared, blocks: u64, report: &mut CheckReport) -> Result<Bits> {
    let mut out = Bits::new();
    for g in 0..groups_in(blocks) {
        let Some((at, crc)) = shared.run(|core| core.space.stored_group(GroupNo(g)))? else { continue };
        let mut block = IoBuf::zeroed(BLOCK as usize);
        shared
            .device
            .read_at(&mut block, at.offset())
            .map_err(|e| Error::io(format!("cannot read allocation bitmap {g} of pool {}", shared.device.name()), e))?;
        if crc32c::crc32c(&block) != crc {
            report.error(format!("allocation bitmap {g} at offset {} does not match its checksum", at.offset()));
            continue;
        }
        let mut bits = Box::new([0; GROUP_BLOCKS as usize]);
        bits.copy_from_slice(&block);
        out.insert(g, bits);
    }
    Ok(out)
}

struct Walk<'a> {
    shared: &'a Shared,
    report: CheckReport,
    reachable: Bits,
    /// Data blocks below each node: shared subtrees are counted once and remembered.
    counts: HashMap<u64, u64>,
    versions: Vec<Version>,
    merging: VersionId,
    /// Stop when guests have begun to wait for space, counted in rounds of making space since this one.
    gives_way: Option<u64>,
    done: u64,
    total: u64,
    progress: &'a mut dyn FnMut(u64, u64),
}

impl<'a> Walk<'a> {
    fn new(shared: &'a Shared, report: CheckReport, total: u64, progress: &'a mut dyn FnMut(u64, u64)) -> Walk<'a> {
        Walk {
            shared,
            report,
            reachable: Bits::new(),
            counts: HashMap::new(),
            versions: Vec::new(),
            merging: VersionId::NONE,
            gives_way: None,
            done: 0,
            total,
            progress,
        }
    }

    fn pool(&mut self, table: Entry, names: Entry) -> Result<()> {
        self.index(table, Tree::TABLE, names::TABLE_LEVELS, 0)?;
        self.index(names, Tree::NAMES, names::NAME_LEVELS, 0)?;
        let mut versions = std::mem::take(&mut self.versions);
        // A ghost whose merge is under way no longer speaks for what lies below its cursor: others come first.
        versions.sort_by_key(|v| (matches!(v.state, State::Ghost { .. }) && v.cursor > 0, v.id));
        self.versions = versions.clone();
        self.merging = versions
            .iter()
            .find(|v| matches!(v.state, State::Ghost { .. }) && v.cursor > 0)
            .map_or(VersionId::NONE, |v| v.id);
        for version in &versions {
            self.report.versions += 1;
            let place = Place { entry: version.root, level: version.root_level };
            let mapped = self.map(version, place, version.root_level, 0)?;
            if version.id != self.merging && mapped != version.mapped {
                let name = self.name(version);
                self.report
                    .error(format!("{name} refers to {mapped} data blocks, its counter says {}", version.mapped));
            }
        }
        (self.progress)(self.total, self.total);
        Ok(())
    }

    fn name(&self, version: &Version) -> String {
        self.shared.describe(version).map_or_else(|_| format!("version {}", version.id), |info| info.name)
    }

    /// Fetches a page; a damaged one is reported once and treated as empty.
    fn fetch(&mut self, entry: Entry, identity: Identity, whose: &str) -> Result<Option<crate::disk::entry::Page>> {
        self.report.metadata_pages += 1;
        match self.shared.page(entry, identity) {
            Ok(page) => Ok(Some(page)),
            Err(e) if matches!(e.kind(), ErrorKind::Corrupt | ErrorKind::Io) => {
                self.report.error(format!("{whose}: {e}"));
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }

    /// Marks a sector; false if it was marked before.
    fn mark(&mut self, at: Sector) -> bool {
        let block = at.0 / SECTORS_PER_BLOCK;
        let bits =
            self.reachable.entry((block / GROUP_BLOCKS) as u32).or_insert_with(|| Box::new([0; GROUP_BLOCKS as usize]));
        let byte = &mut bits[(block % GROUP_BLOCKS) as usize];
        let bit = 1 << (at.0 % SECTORS_PER_BLOCK);
        let new = *byte & bit == 0;
        *byte |= bit;
        new
    }

    fn mark_block(&mut self, block: PoolBlock) -> bool {
        let new = (0..SECTORS_PER_BLOCK).all(|i| self.mark(Sector(block.0 * SECTORS_PER_BLOCK + i)));
        if new {
            self.done += 1;
            if self.done.is_multiple_of(1024) {
                (self.progress)(self.done.min(self.total), self.total);
            }
        }
        new
    }

    /// The object table and the name index: nothing in them is shared.
    fn index(&mut self, entry: Entry, tree: Tree, level: u8, base: u64) -> Result<()> {
        if !entry.is_pointer() {
            return Ok(());
        }
        let is_table = level <= names::TABLE_LEVELS && tree.identity(1, 0) == Tree::TABLE.identity(1, 0);
        if level == 0 {
            return if is_table { self.object(entry, base) } else { Ok(()) };
        }
        if !self.mark(entry.at) {
            self.report.error(format!("metadata sector {} is used twice", entry.at.0));
            return Ok(());
        }
        let Some(page) = self.fetch(entry, tree.identity(level, base), "pool index")? else { return Ok(()) };
        for (i, child) in page.entries().enumerate() {
            self.index(child, tree, level - 1, base + i as u64 * span(level - 1))?;
        }
        Ok(())
    }

    fn object(&mut self, entry: Entry, id: u64) -> Result<()> {
        if !self.mark(entry.at) {
            self.report.error(format!("metadata sector {} is used twice", entry.at.0));
        }
        let Some(page) = self.fetch(entry, names::object_identity(id), "object table")? else { return Ok(()) };
        match Object::decode(&page) {
            Ok(Object::Version(version)) => self.versions.push(version),
            Ok(Object::Volume(_)) => {}
            Err(_) => self.report.error(format!("object {id} cannot be decoded")),
        }
        Ok(())
    }

    /// Walks a version's map where nobody has walked before; returns the data blocks below.
    fn map(&mut self, version: &Version, place: Place, level: u8, base: u64) -> Result<u64> {
        if !place.entry.is_pointer() {
            return Ok(0);
        }
        if version.id == self.merging && base + span(level) <= version.cursor {
            return Ok(0);
        }
        if !self.mark(place.entry.at) {
            return Ok(self.counts.get(&place.entry.at.0).copied().unwrap_or(0));
        }
        let tree = Tree::map(version.family);
        let name = format!("{} from block {base}", self.name(version));
        let Some(page) = self.fetch(place.entry, tree.identity(level, base), &name)? else { return Ok(0) };
        let mut count = 0;
        if level == 1 {
            count = page.entries().filter(|e| e.is_pointer()).count() as u64;
            let skip = if version.id == self.merging { version.cursor.saturating_sub(base) } else { 0 };
            self.leaf(version, &page, base, skip)?;
        } else {
            for (i, entry) in page.entries().enumerate() {
                let child = Place { entry, level: level - 1 };
                count += self.map(version, child, level - 1, base + i as u64 * span(level - 1))?;
            }
        }
        self.counts.insert(place.entry.at.0, count);
        Ok(count)
    }

    fn leaf(&mut self, version: &Version, page: &crate::disk::entry::Page, base: u64, skip: u64) -> Result<()> {
        let entries: Vec<Entry> = page.entries().collect();
        let mut i = skip.min(FANOUT) as usize;
        while i < entries.len() {
            if !entries[i].is_pointer() || !self.mark_block(entries[i].block()) {
                i += 1;
                continue;
            }
            let start = i;
            i += 1;
            while i < entries.len()
                && entries[i].is_pointer()
                && entries[i].block().0 == entries[start].block().0 + (i - start) as u64
                && self.mark_block(entries[i].block())
            {
                i += 1;
            }
            self.data(version, &entries[start..i], base + start as u64)?;
        }
        Ok(())
    }

    fn data(&mut self, version: &Version, entries: &[Entry], lba: u64) -> Result<()> {
        let mut buf = IoBuf::zeroed(entries.len() * BLOCK as usize);
        let at = entries[0].block().offset();
        if self.gives_way.is_some_and(|round| self.shared.lock().admission.space_rounds > round + 1) {
            let why =
                "the scrub stopped: guests wait for space that it keeps from being reused; make room and run it again";
            return Err(Error::new(ErrorKind::NoSpace, why));
        }
        let read = self.shared.device.read_at(&mut buf, at);
        self.report.data_blocks += entries.len() as u64;
        for (i, entry) in entries.iter().enumerate() {
            let lba = lba + i as u64;
            let bytes = &buf[i * BLOCK as usize..(i + 1) * BLOCK as usize];
            let good = read.is_ok() && Identity::data(version.family, Lba(lba)).checksum(bytes) == entry.crc;
            if !good {
                let users = self.users(version, *entry, lba)?;
                let why = match &read {
                    Ok(()) => "does not match its checksum".to_owned(),
                    Err(e) => format!("cannot be read: {e}"),
                };
                self.report.error(format!("block {lba} (offset {}) {why}; used by {users}", entry.block().offset()));
            }
        }
        Ok(())
    }

    /// Who else refers to a damaged block.
    fn users(&self, first: &Version, bad: Entry, lba: u64) -> Result<String> {
        let mut names = vec![self.name(first)];
        let mut more = 0;
        for version in self.versions.iter().filter(|v| v.family == first.family && v.id != first.id) {
            let tree = Tree::map(version.family);
            let found = self.shared.run(|core| core.lookup(version.root, version.root_level, tree, lba));
            if found.is_ok_and(|entry| entry.same(bad)) {
                if names.len() < NAMES_PER_ERROR {
                    names.push(self.name(version));
                } else {
                    more += 1;
                }
            }
        }
        let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
        Ok(names.join(", ") + &rest)
    }

    /// What is reachable must be allocated, and nothing else.
    fn compare(&mut self, allocated: &Bits, blocks: u64) {
        let journal = self.shared.lock().space.journal_blocks();
        for g in 0..groups_in(blocks) {
            let number = GroupNo(g);
            let fixed = number.fixed_blocks(journal);
            let empty = [0; GROUP_BLOCKS as usize];
            let reachable = self.reachable.get(&g).map_or(&empty, |b| &**b);
            let Some(allocated) = allocated.get(&g) else {
                if reachable.iter().any(|b| *b != 0) {
                    self.report.error(format!("group {g} is in use but was never allocated"));
                }
                continue;
            };
            let end = (blocks - number.first_block().0).min(GROUP_BLOCKS);
            let (mut leaked, mut missing, mut example) = (0u64, 0u64, 0);
            for i in fixed..end {
                let (want, have) = (reachable[i as usize], allocated[i as usize]);
                leaked += u64::from((have & !want).count_ones());
                missing += u64::from((want & !have).count_ones());
                if want != have && leaked + missing <= 8 {
                    example = number.first_block().0 + i;
                }
            }
            if missing > 0 {
                self.report
                    .error(format!("group {g}: {missing} sectors are in use but marked free (near block {example})"));
            }
            if leaked > 0 {
                self.report.error(format!(
                    "group {g}: {leaked} sectors are marked used but nothing refers to them (near block {example})"
                ));
            }
        }
    }
}
