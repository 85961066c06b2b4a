//! Reads pools with nothing but the tables of `docs/format.md`: what that page says is what lies on the device.
//!
//! The reader below shares no code with the engine. It takes offsets, types and constants from the page, so a layout that
//! changes without the page, or a page that changes without the layout, fails here.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::HashMap;
use std::path::Path;

use keyframe_engine::units::Bytes;
use keyframe_engine::{Access, CreateOptions, OpenOptions, Pool, Preallocation};

const PAGE: &str = include_str!("../../../docs/format.md");
const POOL_SIZE: u64 = 64 << 20;
const VOLUME_BLOCKS: u64 = 2000;

// ---- the page ----

/// A row of a layout table; `len` is `None` where the content decides.
struct Field {
    name: String,
    at: usize,
    len: Option<usize>,
}

struct Document {
    constants: HashMap<String, u64>,
    layouts: HashMap<String, Vec<Field>>,
    /// By tag: the record's name and its fields as the page writes them.
    records: HashMap<u8, (String, String)>,
}

fn cells(line: &str) -> Vec<String> {
    line.trim_matches('|').split('|').map(|cell| cell.trim().trim_matches('`').to_owned()).collect()
}

impl Document {
    fn read() -> Document {
        let mut document = Document { constants: HashMap::new(), layouts: HashMap::new(), records: HashMap::new() };
        let mut heading = String::new();
        for line in PAGE.lines() {
            if let Some(title) = line.strip_prefix('#') {
                heading = title.trim_start_matches('#').trim().to_owned();
            }
            if !line.starts_with('|') || line.starts_with("|---") {
                continue;
            }
            let row = cells(line);
            if heading == "Units and constants" {
                if let Ok(value) = row[1].parse() {
                    document.constants.insert(row[0].clone(), value);
                }
            } else if heading == "Records" {
                if let Ok(tag) = row[0].parse() {
                    document.records.insert(tag, (row[1].clone(), row[2].clone()));
                }
            } else if let (Some(name), Ok(at)) = (heading.strip_prefix('`'), row[0].parse()) {
                let field = Field { name: row[3].clone(), at, len: row[1].parse().ok() };
                document.layouts.entry(name.trim_end_matches('`').to_owned()).or_default().push(field);
            }
        }
        document
    }

    fn constant(&self, name: &str) -> u64 {
        *self.constants.get(name).unwrap_or_else(|| panic!("docs/format.md has no constant `{name}`"))
    }

    /// The bytes of a field; of one without a length all that follow.
    fn bytes<'a>(&self, layout: &str, field: &str, raw: &'a [u8]) -> &'a [u8] {
        let fields = self.layouts.get(layout).unwrap_or_else(|| panic!("docs/format.md has no layout `{layout}`"));
        let field = fields.iter().find(|f| f.name == field);
        let field = field.unwrap_or_else(|| panic!("docs/format.md has no such field in `{layout}`"));
        &raw[field.at..field.len.map_or(raw.len(), |len| field.at + len)]
    }

    fn number(&self, layout: &str, field: &str, raw: &[u8]) -> u64 {
        little_endian(self.bytes(layout, field, raw))
    }

    fn string(&self, layout: &str, field: &str, raw: &[u8]) -> String {
        let bytes = self.bytes(layout, field, raw);
        String::from_utf8(bytes[1..1 + usize::from(bytes[0])].to_vec()).expect("names are UTF-8")
    }

    fn size(&self, layout: &str) -> usize {
        let last = self.layouts[layout].last().expect("a layout has rows");
        last.at + last.len.expect("a layout of fixed size")
    }
}

fn little_endian(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

// ---- a pool, read by the page ----

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    kind: u64,
    sector: u64,
    birth: u64,
    crc: u64,
}

const EMPTY: u64 = 0;
const POINTER: u64 = 1;
const DISCARDED: u64 = 3;

struct Image {
    page: Document,
    file: Vec<u8>,
    superblock: Vec<u8>,
}

impl Image {
    fn open(path: &Path) -> Image {
        let (page, file) = (Document::read(), std::fs::read(path).unwrap());
        let block = page.constant("block") as usize;
        let copy = |name: &str| {
            let at = page.constant(name) as usize * block;
            file[at..at + block].to_vec()
        };
        let copies = [copy("superblock_first"), copy("superblock_second")];
        for raw in &copies {
            assert_eq!(page.bytes("superblock", "magic", raw), b"KEYFRAME");
            assert_eq!(page.number("superblock", "format", raw), page.constant("format"));
            let crc = page.number("superblock", "crc", raw);
            assert_eq!(u64::from(crc32c::crc32c(&raw[..block - 4])), crc, "superblock checksum");
        }
        let [first, second] = copies;
        let generation = |raw: &[u8]| page.number("superblock", "generation", raw);
        let superblock = if generation(&second) > generation(&first) { second } else { first };
        Image { page, file, superblock }
    }

    fn root(&self, field: &str) -> u64 {
        self.page.number("superblock", field, &self.superblock)
    }

    fn blocks(&self, block: u64, count: u64) -> &[u8] {
        let size = self.page.constant("block");
        &self.file[(block * size) as usize..((block + count) * size) as usize]
    }

    fn entry(&self, raw: &[u8]) -> Entry {
        let field = |name| self.page.number("entry", name, raw);
        Entry { kind: field("kind"), sector: field("sector"), birth: field("birth"), crc: field("crc") }
    }

    fn checked(&self, bytes: &[u8], crc: u64, what: &str) -> Vec<u8> {
        assert_eq!(u64::from(crc32c::crc32c(bytes)), crc, "checksum of {what}");
        bytes.to_vec()
    }

    /// The bytes behind a pointer, held to its checksum under the given identity.
    fn follow(&self, entry: Entry, base: u64, family: u64, rank: u64) -> Vec<u8> {
        assert_eq!(entry.kind, POINTER);
        let sector = self.page.constant("sector");
        let len = if rank == 0 { self.page.constant("block") } else { sector };
        let at = (entry.sector * sector) as usize;
        let bytes = &self.file[at..at + len as usize];
        let mut identity = vec![0; self.page.size("identity")];
        for (name, value) in [("base", base), ("family", family), ("rank", rank)] {
            let field = self.page.layouts["identity"].iter().find(|f| f.name == name).unwrap();
            let len = field.len.unwrap();
            identity[field.at..field.at + len].copy_from_slice(&value.to_le_bytes()[..len]);
        }
        identity.extend_from_slice(bytes);
        assert_eq!(u64::from(crc32c::crc32c(&identity)), entry.crc, "checksum of rank {rank}, base {base}");
        bytes.to_vec()
    }

    /// The level-1 entry for a key of a tree, or the first entry on the way that is no pointer.
    fn lookup(&self, root: Entry, levels: u64, key: u64, family: u64, rank_of_level_0: u64) -> Entry {
        let fanout = self.page.constant("fanout");
        let mut entry = root;
        for level in (1..=levels).rev() {
            if entry.kind != POINTER {
                break;
            }
            let span = fanout.pow(level as u32);
            let node = self.follow(entry, key / span * span, family, rank_of_level_0 + level);
            let index = (key % span / (span / fanout)) as usize;
            let size = self.page.size("entry");
            entry = self.entry(&node[index * size..(index + 1) * size]);
        }
        entry
    }

    fn object(&self, id: u64) -> Vec<u8> {
        let root = self.entry(self.page.bytes("superblock", "table", &self.superblock));
        let entry = self.lookup(root, self.page.constant("table_levels"), id, 0, 8);
        self.follow(entry, id, 0, 8)
    }

    /// The object with this owner and name, by way of the name index.
    fn find(&self, owner: u64, name: &str, layout: &str) -> Vec<u8> {
        let levels = self.page.constant("name_levels");
        let crc = crc32c::crc32c_append(crc32c::crc32c(&(owner as u32).to_le_bytes()), name.as_bytes());
        let bucket = u64::from(crc) % self.page.constant("fanout").pow(levels as u32);
        let root = self.entry(self.page.bytes("superblock", "names", &self.superblock));
        let mut next = self.lookup(root, levels, bucket, 0, 16).sector;
        while next != 0 {
            let object = self.object(next);
            assert_eq!(self.page.number(layout, "id", &object), next);
            if self.page.string(layout, "name", &object) == name {
                return object;
            }
            next = self.page.number(layout, "name_next", &object);
        }
        panic!("the name index does not lead to {name}");
    }

    fn map_entry(&self, version: &[u8], lba: u64) -> Entry {
        let number = |field| self.page.number("version", field, version);
        let root = self.entry(self.page.bytes("version", "root", version));
        self.lookup(root, number("root_level"), lba, number("family"), 0)
    }

    fn data(&self, version: &[u8], lba: u64) -> Vec<u8> {
        self.follow(self.map_entry(version, lba), lba, self.page.number("version", "family", version), 0)
    }

    /// The bitmap of a group, by way of space root and table page; `None` if it was never written.
    fn bitmap(&self, group: u64) -> Option<Vec<u8>> {
        let per_table = self.page.constant("groups_per_table");
        let first = self.page.constant("space_root_first");
        let slot = first + self.root("space_slot") * self.page.constant("space_root_blocks");
        let tables = self.root("blocks").div_ceil(self.page.constant("group_blocks") * per_table);
        let refs = self.page.size("table_ref");
        let root = self.blocks(slot, (tables * refs as u64).div_ceil(self.page.constant("block")));
        let root = self.checked(root, self.root("space_crc"), "the space root");
        let table = &root[(group / per_table) as usize * refs..];
        let table_slot = self.page.number("table_ref", "slot", table).checked_sub(1)?;
        let first_block = group / per_table * per_table * self.page.constant("group_blocks");
        let table_crc = self.page.number("table_ref", "crc", table);
        let table = self.checked(self.blocks(first_block + 2 + table_slot, 1), table_crc, "the table page");
        let reference = &table[(group % per_table) as usize * self.page.size("group_ref")..];
        let slot = self.page.number("group_ref", "slot", reference).checked_sub(1)?;
        let at = group * self.page.constant("group_blocks") + slot;
        let bits = self.checked(self.blocks(at, 1), self.page.number("group_ref", "crc", reference), "the bitmap");
        let free = bits.iter().filter(|byte| **byte == 0).count() as u64;
        assert_eq!(self.page.number("group_ref", "free", reference), free, "free count of group {group}");
        Some(bits)
    }

    fn is_allocated(&self, sector: u64) -> bool {
        let group_blocks = self.page.constant("group_blocks");
        let bits = self.bitmap(sector / 8 / group_blocks).expect("a used group has a bitmap");
        bits[(sector / 8 % group_blocks) as usize] >> (sector % 8) & 1 == 1
    }
}

// ---- records ----

/// Takes the fields that the page lists off the front of `raw`; numbers by name, names of objects as text.
fn take_fields(fields: &str, raw: &mut &[u8], out: &mut Vec<(String, u64)>, texts: &mut Vec<String>) {
    let (mut depth, mut from, mut items) = (0, 0, vec![]);
    for (i, c) in fields.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                items.push(&fields[from..i]);
                from = i + 1;
            }
            _ => {}
        }
    }
    items.push(&fields[from..]);
    for item in items.into_iter().map(str::trim) {
        if let Some((count, repeated)) = item.split_once(" × ") {
            let times = out.iter().rev().find(|(name, _)| name == count).map(|(_, value)| *value);
            let repeated = repeated.trim_start_matches('(').trim_end_matches(')');
            for _ in 0..times.unwrap_or_else(|| panic!("{item}: no field `{count}` before it")) {
                take_fields(repeated, raw, out, texts);
            }
            continue;
        }
        let (name, kind) = item.split_once(' ').unwrap_or_else(|| panic!("{item}: not a name and a type"));
        let len = match kind {
            "u8" => 1,
            "u32" => 4,
            "u64" => 8,
            "str" => 1 + usize::from(raw[0]),
            other => panic!("{item}: unknown type {other}"),
        };
        let (bytes, rest) = raw.split_at(len);
        *raw = rest;
        if kind == "str" {
            texts.push(String::from_utf8(bytes[1..].to_vec()).expect("names are UTF-8"));
        } else {
            out.push((name.to_owned(), little_endian(bytes)));
        }
    }
}

struct Record {
    name: String,
    numbers: Vec<(String, u64)>,
    texts: Vec<String>,
}

impl Record {
    fn number(&self, name: &str) -> u64 {
        self.numbers.iter().find(|(n, _)| n == name).map(|(_, value)| *value).expect("the record has this field")
    }
}

/// All records from the journal's tail on.
fn journal(image: &Image) -> Vec<Record> {
    let page = &image.page;
    let ring = image.blocks(page.constant("journal_first"), image.root("journal_blocks"));
    let mut at = (image.root("journal_tail") % ring.len() as u64) as usize;
    let (mut number, mut chain) = (image.root("journal_group"), image.root("journal_chain"));
    let mut record_number = image.root("sequence") + 1;
    let mut records = vec![];
    let size = page.size("group_header");
    while page.bytes("group_header", "magic", &ring[at..]) == b"KFJGROUP" {
        let header = &ring[at..at + size];
        let field = |name| page.number("group_header", name, header);
        assert_eq!(u64::from(crc32c::crc32c(&header[..size - 4])), field("crc"), "header of group {number}");
        assert_eq!(page.bytes("group_header", "uuid", header), page.bytes("superblock", "uuid", &image.superblock));
        assert_eq!((field("number"), field("chain"), field("first_record")), (number, chain, record_number));
        let payload = &ring[at + size..at + size + field("payload") as usize];
        assert_eq!(u64::from(crc32c::crc32c(payload)), field("payload_crc"), "payload of group {number}");
        let mut rest = payload;
        for _ in 0..field("records") {
            let tag = rest[0];
            rest = &rest[1..];
            let (name, fields) = page.records.get(&tag).unwrap_or_else(|| panic!("docs/format.md has no record {tag}"));
            let mut record = Record { name: name.clone(), numbers: vec![], texts: vec![] };
            take_fields(fields, &mut rest, &mut record.numbers, &mut record.texts);
            records.push(record);
        }
        assert!(rest.is_empty(), "group {number}: the page explains all bytes of the payload");
        record_number += field("records");
        at += (size + payload.len()).next_multiple_of(image.root("journal_align") as usize);
        (number, chain) = (number + 1, field("crc"));
    }
    records
}

// ---- tests ----

fn new_pool(path: &Path) -> Pool {
    Pool::create(path, &CreateOptions { size: Bytes(POOL_SIZE), preallocation: Preallocation::Off }).unwrap();
    Pool::open(path, &OpenOptions { background: false, ..OpenOptions::default() }).unwrap()
}

fn content(seed: u8) -> Vec<u8> {
    (0..4096u32).map(|i| (i % 251) as u8 ^ seed).collect()
}

#[test]
fn fixed_layouts_have_no_holes() {
    let page = Document::read();
    for (name, size) in [
        ("superblock", 4096),
        ("table_ref", 8),
        ("group_ref", 8),
        ("entry", 16),
        ("identity", 16),
        ("group_header", 64),
    ] {
        let mut at = 0;
        for field in &page.layouts[name] {
            assert_eq!(field.at, at, "docs/format.md: `{}` of `{name}` does not follow its predecessor", field.name);
            at += field.len.expect("fixed");
        }
        assert_eq!(at, size, "docs/format.md: `{name}`");
    }
}

#[test]
fn a_closed_pool_is_what_the_page_says() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pool");
    let pool = new_pool(&path);
    pool.create_volume("disk", Bytes(VOLUME_BLOCKS * 4096)).unwrap();
    let disk = pool.open_volume("disk", Access::ReadWrite).unwrap();
    disk.write_at(&[content(1), content(2)].concat(), 5 * 4096).unwrap();
    disk.write_at(&content(3), 1500 * 4096).unwrap();
    pool.snapshot(&[("disk".into(), "one".into())]).unwrap();
    disk.write_at(&content(4), 5 * 4096).unwrap();
    disk.discard(6 * 4096, 4096).unwrap();
    drop(disk);
    let (uuid, generation) = (pool.info().uuid, pool.info().checkpoints);
    pool.close().unwrap();

    let image = Image::open(&path);
    let hex: String =
        image.page.bytes("superblock", "uuid", &image.superblock).iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(hex, uuid);
    assert_eq!(image.root("generation"), generation + 1);
    assert_eq!(image.root("blocks"), POOL_SIZE / 4096);
    assert_eq!((image.root("volumes"), image.root("snapshots"), image.root("ghosts")), (1, 1, 0));
    assert!(image.root("journal_blocks") >= image.page.constant("journal_min"));

    let volume = image.find(0, "disk", "volume");
    let id = image.page.number("volume", "id", &volume);
    assert_eq!((image.root("first_volume"), image.root("last_volume")), (id, id));
    let snapshot = image.find(id, "one", "version");
    let head = image.object(image.page.number("volume", "head", &volume));
    let of = |version: &[u8], field| image.page.number("version", field, version);
    assert_eq!((of(&head, "state"), of(&snapshot, "state")), (0, 1));
    assert_eq!(of(&head, "parent"), of(&snapshot, "id"));
    assert_eq!((of(&snapshot, "mapped"), of(&head, "mapped"), of(&head, "owned")), (3, 2, 1));
    assert_eq!(of(&head, "blocks"), VOLUME_BLOCKS);

    assert_eq!(image.data(&snapshot, 5), content(1));
    assert_eq!(image.data(&snapshot, 6), content(2));
    assert_eq!(image.data(&head, 5), content(4));
    assert_eq!(image.data(&head, 1500), content(3));
    assert_eq!(image.map_entry(&head, 1500), image.map_entry(&snapshot, 1500), "an unchanged block is shared");
    assert_eq!(image.map_entry(&head, 6).kind, DISCARDED);
    assert_eq!(image.map_entry(&head, 700).kind, EMPTY);
    assert!(image.map_entry(&head, 5).birth > of(&snapshot, "epoch"), "what the head wrote since is its own");
    assert!(image.map_entry(&snapshot, 5).birth <= of(&snapshot, "epoch"));
}

#[test]
fn what_is_used_is_marked_used() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pool");
    let pool = new_pool(&path);
    pool.create_volume("disk", Bytes(VOLUME_BLOCKS * 4096)).unwrap();
    pool.open_volume("disk", Access::ReadWrite).unwrap().write_at(&content(1), 5 * 4096).unwrap();
    pool.close().unwrap();

    let image = Image::open(&path);
    let volume = image.find(0, "disk", "volume");
    let head = image.object(image.page.number("volume", "head", &volume));
    let data = image.map_entry(&head, 5);
    assert_eq!(data.sector % 8, 0, "data lies in whole blocks");
    let root = image.entry(image.page.bytes("version", "root", &head));
    let sectors = (data.sector..data.sector + 8).chain([root.sector]);
    for sector in sectors
        .chain(["table", "names"].map(|f| image.entry(image.page.bytes("superblock", f, &image.superblock)).sector))
    {
        assert!(image.is_allocated(sector), "sector {sector}");
    }
    let group_blocks = image.page.constant("group_blocks");
    let mut used = 0;
    for group in 0..image.root("blocks").div_ceil(group_blocks) {
        let fixed = match group {
            0 => image.page.constant("journal_first") + image.root("journal_blocks"),
            g if g % image.page.constant("groups_per_table") == 0 => 4,
            _ => 2,
        };
        used += match image.bitmap(group) {
            Some(bits) => {
                assert!(bits[..fixed as usize].iter().all(|b| *b == 0xff), "fixed blocks of group {group}");
                bits.iter().filter(|b| **b != 0).count() as u64
            }
            None => fixed,
        };
    }
    assert_eq!(used, image.root("used_blocks"));
}

#[test]
fn the_journal_is_what_the_page_says() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pool");
    let pool = new_pool(&path);
    pool.create_volume("disk", Bytes(VOLUME_BLOCKS * 4096)).unwrap();
    let disk = pool.open_volume("disk", Access::ReadWrite).unwrap();
    disk.write_at(&[content(1), content(2)].concat(), 5 * 4096).unwrap();
    pool.snapshot(&[("disk".into(), "one".into())]).unwrap();
    disk.discard(6 * 4096, 4096).unwrap();
    drop(disk);
    pool.clone_volume("disk", "copy", "two").unwrap();
    pool.resize_volume("copy", Bytes((VOLUME_BLOCKS + 9) * 4096)).unwrap();
    pool.rename("copy", "other").unwrap();
    for name in ["disk", "other"] {
        pool.open_volume(name, Access::ReadWrite).unwrap().write_at(&content(4), 5 * 4096).unwrap();
    }
    pool.revert("disk", "one", Some("kept")).unwrap();
    pool.delete_snapshot("disk@two").unwrap();
    pool.reclaim().unwrap();
    pool.delete_volume("other", true).unwrap();
    pool.reclaim().unwrap();
    pool.rename("disk", "end").unwrap();
    // No background worker, so nothing is checkpointed: all of it is in the journal.
    drop(pool);

    let image = Image::open(&path);
    assert_eq!(image.root("generation"), 1);
    let records = journal(&image);
    let mut kinds: Vec<&str> = records.iter().map(|r| r.name.as_str()).collect();
    assert_eq!(kinds[..4], ["create volume", "write", "branch", "punch"]);
    assert_eq!(records[0].texts, ["disk"]);
    assert_eq!(records[2].texts, ["one"]);
    let clone = records.iter().filter(|r| r.name == "branch").nth(1).unwrap();
    assert_eq!(clone.texts, ["two", "copy"], "a snapshot and a clone in one record");
    let write = &records[1];
    assert_eq!((write.number("lba"), write.number("count")), (5, 2));
    assert_eq!(image.blocks(write.number("block"), 2), [content(1), content(2)].concat());
    let first = Entry { kind: POINTER, sector: write.number("block") * 8, birth: 0, crc: write.number("crc") };
    assert_eq!(image.follow(first, 5, write.number("family"), 0), content(1), "the record carries the data's checksum");
    let punch = &records[3];
    assert_eq!((punch.number("from"), punch.number("to"), punch.number("kind")), (6, 7, 0));
    kinds.sort_unstable();
    kinds.dedup();
    for kind in ["resize", "rename", "revert", "delete snapshot", "delete volume", "forget volume", "merge", "splice"] {
        assert!(kinds.contains(&kind), "the journal has no {kind}: {kinds:?}");
    }
}
