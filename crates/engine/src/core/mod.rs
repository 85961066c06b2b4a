//! The core: the pool's state in memory and every step that changes it. A plain struct behind one lock; it does no I/O.
//!
//! A step either finishes, or changes nothing and says why it stopped ([`stop::Stop`]). Changes of state are [`Record`]s:
//! validated by `control`, applied by `apply`, appended to the journal, and applied again by the same code after a crash.

pub(crate) mod admit;
mod apply;
pub(crate) mod control;
mod ghost;
mod head;
mod map;
pub(crate) mod names;
pub(crate) mod stop;
pub(crate) mod tree;
mod txn;
pub(crate) mod view;

use crate::cache::{AddressMap, Generation, PageCache};
use crate::disk::entry::{Entry, Identity, Page};
use crate::disk::record::Record;
use crate::disk::superblock::PoolState;
use crate::error::{Error, ErrorKind};
use crate::journal::Journal;
use crate::space::Space;
use crate::units::{SECTOR, Sector, VersionId};
use admit::Admission;
pub(crate) use head::Head;
use stop::{Miss, Step, Stop, Wait};

/// The pool's state.
pub(crate) struct Core {
    pub(crate) state: PoolState,
    /// Root of the object table.
    pub(crate) table: Entry,
    /// Root of the name index.
    pub(crate) names: Entry,
    pub(crate) cache: PageCache,
    pub(crate) generation: Generation,
    /// Checkpoints completed since the pool was opened. Addresses freed in one era are reused in the next at the earliest.
    pub(crate) era: u64,
    pub(crate) space: Space,
    pub(crate) journal: Journal,
    heads: AddressMap<u32, Head>,
    /// Views of frozen versions, until the next checkpoint.
    views: AddressMap<u32, view::View>,
    /// How many handles are open on each version.
    attached: AddressMap<u32, u32>,
    pub(crate) admission: Admission,
    /// A record was refused until the next one.
    pub(crate) checkpoint_wanted: bool,
    /// Ghosts that the background worker shall look at.
    ghost_events: Vec<VersionId>,
    pub(crate) poisoned: Option<String>,
    /// Deliberately broken rules, for tests that must notice.
    pub(crate) planted: PlantedBug,
}

/// A bug to plant, so that a test can show that it would be caught.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum PlantedBug {
    /// None: the engine as it should be.
    #[default]
    None,
    /// A head ignores how far the merge of its parent has come.
    SkipMergeCursor,
    /// Ghosts are trimmed parents first.
    TrimTopDown,
    /// Freed blocks are reused before the freeing record is durable.
    ReuseEarly,
    /// Data checksums are not compared.
    IgnoreChecksum,
    /// The free space goes through whole turns between two checkpoints.
    ForgetTurn,
}

impl Core {
    pub(crate) fn new(
        state: PoolState,
        table: Entry,
        names: Entry,
        cache: PageCache,
        space: Space,
        journal: Journal,
    ) -> Core {
        Core {
            state,
            table,
            names,
            cache,
            generation: Generation(1),
            era: 0,
            space,
            journal,
            heads: AddressMap::default(),
            views: AddressMap::default(),
            attached: AddressMap::default(),
            admission: Admission::default(),
            checkpoint_wanted: false,
            ghost_events: Vec::new(),
            poisoned: None,
            planted: PlantedBug::None,
        }
    }

    /// The page behind a pointer, from memory or not at all.
    pub(crate) fn page(&mut self, entry: Entry, identity: Identity) -> Step<&Page> {
        if !self.cache.contains(entry.at) {
            return Err(Stop::Miss(Miss::page(entry, identity, self.cache.expected_crc(entry), self.era)));
        }
        self.cache.get(entry.at).ok_or_else(|| Stop::bug("cached page vanished"))
    }

    /// Takes in a page that a step missed. `false`: it is not what the pointer promised.
    pub(crate) fn fulfil(&mut self, miss: Miss, block: &[u8]) -> bool {
        match miss {
            Miss::Table { number, crc, .. } => self.space.fulfil_table(number, crc, block),
            Miss::Group { number, crc, .. } => self.space.fulfil_group(number, crc, block),
            // Addresses may have changed hands while the read was under way: the step shall ask again.
            Miss::Page { era, .. } if era != self.era => true,
            Miss::Page { at, identity, crc, .. } => {
                let from = (at.offset() - at.block().offset()) as usize;
                let mut page = Page::ZERO;
                page.0.copy_from_slice(&block[from..from + SECTOR as usize]);
                let good = identity.checksum(&page.0) == crc && (!identity.rank.is_node() || page.is_well_formed());
                if good {
                    self.cache.insert_clean(at, identity, page);
                }
                good
            }
        }
    }

    /// A page that may be changed in place and belongs to nobody else: `entry` itself, or a copy with a new address.
    ///
    /// `owned`: the page belongs to this version alone, so a copy replaces it; otherwise others keep the old one.
    fn own_page(&mut self, entry: Entry, owned: bool, identity: Identity, birth: crate::units::Epoch) -> Step<Entry> {
        if entry.is_pointer() && owned && self.cache.get_mut(entry.at, self.generation).is_some() {
            return Ok(entry);
        }
        let page = if entry.is_pointer() {
            let mut page =
                *self.cache.get(entry.at).ok_or_else(|| Stop::bug("a page to be copied was not resolved"))?;
            if self.cache.has_unsettled_crcs() {
                self.cache.fill_crcs(&mut page, identity);
            }
            page
        } else if identity.rank.is_node() {
            Page::filled(entry)
        } else {
            Page::ZERO
        };
        let at = self.space.take_sector()?;
        self.cache.insert_dirty(at, identity, page, self.generation);
        if entry.is_pointer() && owned {
            self.free_page(entry.at);
        }
        Ok(Entry::pointer(at, birth, 0))
    }

    fn free_page(&mut self, at: Sector) {
        self.space.free_sector(at, self.generation);
        self.cache.remove(at, self.generation);
    }

    /// Changes a page that [`Core::own_page`] returned.
    fn page_mut(&mut self, at: Sector) -> Step<&mut Page> {
        self.cache.get_mut(at, self.generation).ok_or_else(|| Stop::bug("a page was changed without being owned"))
    }

    /// Makes sure that a step can take this many metadata sectors.
    fn prepare_metadata(&mut self, sectors: u64) -> Step<()> {
        if self.space.prepare_metadata(sectors)? { Ok(()) } else { Err(Stop::Wait(Wait::Space)) }
    }

    /// Applies a record and appends it to the journal: the one way in which state changes.
    pub(crate) fn execute(&mut self, record: &Record, encoded_len: usize) -> Step<u64> {
        self.refuse_if_poisoned()?;
        let most = record.most_new_blocks();
        let replayable = self.space.turn().allows(most) || self.planted == PlantedBug::ForgetTurn;
        if !self.journal.has_room(encoded_len) || self.cache_is_full_of_dirt() || !replayable {
            self.checkpoint_wanted = true;
            return Err(Stop::Wait(Wait::Checkpoint));
        }
        let sequence = self.journal.last_record() + 1;
        let used = self.space.turn();
        self.apply(record, sequence)?;
        debug_assert!(self.space.turn().since(used) <= most, "more blocks than foreseen came into use by {record:?}");
        if self.planted == PlantedBug::ReuseEarly {
            self.space.release_blocks(u64::MAX);
        }
        Ok(self.journal.append(record))
    }

    /// As [`Core::execute`], for records whose length is not known.
    pub(crate) fn execute_record(&mut self, record: &Record) -> Step<u64> {
        let mut bytes = Vec::new();
        record.encode(&mut bytes);
        let limit = self.journal.group_limit();
        if bytes.len() as u64 > limit {
            let why = format!(
                "one operation on too many volumes at once: it takes {} bytes of journal, the limit is {limit}",
                bytes.len()
            );
            return Err(Error::new(ErrorKind::Invalid, why).into());
        }
        self.execute(record, bytes.len())
    }

    pub(crate) fn cache_is_full_of_dirt(&self) -> bool {
        self.cache.dirty_len() > self.cache.limit() / 4 * 3
    }

    /// A checkpoint would be of use: the journal or the cache is half full of changes, the free space has half
    /// changed, or somebody waits for one.
    pub(crate) fn wants_checkpoint(&self) -> bool {
        self.journal.fill_percent() >= 50
            || self.cache.current_dirty() > self.cache.limit() / 4
            || self.checkpoint_wanted
            || self.space.turn().is_half_over() && self.planted != PlantedBug::ForgetTurn
    }

    pub(crate) fn refuse_if_poisoned(&self) -> Result<(), Error> {
        match &self.poisoned {
            None => Ok(()),
            Some(why) => Err(Error::new(
                ErrorKind::Poisoned,
                format!("the pool stopped taking changes: {why}; close it and open it again"),
            )),
        }
    }

    /// Stops the pool: after a failed write or sync nothing more is acknowledged.
    pub(crate) fn poison(&mut self, why: &str) {
        if self.poisoned.is_none() {
            self.poisoned = Some(why.to_owned());
        }
    }

    /// The ghosts that want to be looked at since the last call.
    pub(crate) fn take_ghost_events(&mut self) -> Vec<VersionId> {
        std::mem::take(&mut self.ghost_events)
    }

    /// No ghost waits to be looked at, and no volume is doomed.
    pub(crate) fn nothing_to_reclaim(&self) -> bool {
        self.ghost_events.is_empty() && self.state.merging.some().is_none() && self.state.first_doomed.some().is_none()
    }

    /// Ends a checkpoint: roots kept outside pages learn the checksums it computed.
    pub(crate) fn thaw(&mut self, frozen: Generation) {
        self.table.crc = self.cache.expected_crc(self.table);
        self.names.crc = self.cache.expected_crc(self.names);
        for head in self.heads.values_mut() {
            head.root.crc = self.cache.expected_crc(head.root);
        }
        self.views.clear();
        self.era += 1;
        self.cache.thaw(frozen);
        self.space.thaw();
        self.space.release_sectors(frozen);
    }

    pub(crate) fn has_attachments(&self) -> bool {
        !self.attached.is_empty()
    }

    pub(crate) fn attach(&mut self, id: VersionId) {
        *self.attached.entry(id.0).or_default() += 1;
    }

    pub(crate) fn detach(&mut self, id: VersionId) {
        if let Some(count) = self.attached.get_mut(&id.0) {
            *count -= 1;
            if *count == 0 {
                self.attached.remove(&id.0);
            }
        }
    }

    /// Open handles on a version.
    pub(crate) fn attachments(&self, id: VersionId) -> u32 {
        self.attached.get(&id.0).copied().unwrap_or(0)
    }
}
