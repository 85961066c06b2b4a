//! One small stream, byte for byte, what is read from it, and the image it makes, against `docs/memory-format.md`.

use std::collections::BTreeMap;
use std::path::Path;

use crate::capture::capture_as;
use crate::error::Result;
use crate::stream::{self, End, Head, RamBlock, RamSection, Sink};
use crate::{PAGE, PageAt, replay};

use super::Image;
use super::compress::compress;

const UUID: [u8; 16] = *b"identity-of-test";
const METADATA: &[u8] = br#"{"machine":"none"}"#;

/// Computed by another implementation of CRC-32C.
const HEADER_SUM: u64 = 0x9de5a2c4;
const PART_SUMS: [u64; 5] = [0x178f7da9, 0x69e95fca, 0xfbc363ff, 0x4ee44ccc, 0xee16dd82];
const PAGE_SUMS: [u8; 16] =
    [0x00, 0x00, 0x00, 0x00, 0x45, 0x93, 0xef, 0x46, 0x00, 0x00, 0x00, 0x00, 0xc2, 0xcb, 0x4a, 0x6a];

/// As QEMU writes it: two blocks, of three pages and of one; in the second page of the first and in the second block
/// there is something.
fn recorded() -> Vec<u8> {
    let parts: [&[u8]; 19] = [
        b"QEVM\x00\x00\x00\x03",
        b"\x07\x00\x00\x00\x04none",
        b"\x05\x1econfiguration/target-page-bits\x00\x00\x00\x01\x00\x00\x00\x0c",
        b"\x01\x00\x00\x00\x02\x03ram\x00\x00\x00\x00\x00\x00\x00\x04",
        b"\x00\x00\x00\x00\x00\x00\x40\x04",
        b"\x04ram0\x00\x00\x00\x00\x00\x00\x30\x00",
        b"\x03rom\x00\x00\x00\x00\x00\x00\x10\x00",
        b"\x00\x00\x00\x00\x00\x00\x00\x10",
        b"\x7e\x00\x00\x00\x02",
        b"\x02\x00\x00\x00\x02",
        b"\x00\x00\x00\x00\x00\x00\x00\x02\x04ram0\x00",
        b"\x00\x00\x00\x00\x00\x00\x10\x28",
        &[0xab; PAGE],
        b"\x00\x00\x00\x00\x00\x00\x00\x08\x03rom",
        &[0xcd; PAGE],
        b"\x00\x00\x00\x00\x00\x00\x00\x10",
        b"\x7e\x00\x00\x00\x02",
        b"\x04devices\x00",
        b"\x06\x00\x00\x00\x02{}",
    ];
    parts.concat()
}

#[derive(Default)]
struct Seen(Vec<(PageAt, Option<u8>)>);

impl Sink for Seen {
    fn start(&mut self, _: &Head) -> Result<()> {
        Ok(())
    }
    fn page(&mut self, at: PageAt, data: &[u8; PAGE]) -> Result<()> {
        self.0.push((at, Some(data[PAGE - 1])));
        Ok(())
    }
    fn zero(&mut self, at: PageAt) -> Result<()> {
        self.0.push((at, None));
        Ok(())
    }
}

#[test]
fn a_recorded_stream_is_understood() {
    let mut seen = Seen::default();
    let (head, devices) = stream::read(&recorded()[..], End::Input, &mut seen).expect("it is sound");
    let block = |name: &str, length| RamBlock { name: name.to_owned(), length };
    assert_eq!(head.blocks, [block("ram0", 0x3000), block("rom", 0x1000)]);
    assert_eq!(head.section, RamSection { id: 2, instance: 0, version: 4 });
    assert_eq!(head.configuration.len(), 9 + 2 + 30 + 8);
    assert_eq!((&devices.bytes[..], devices.sections), (&b"\x04devices\x00\x06\x00\x00\x00\x02{}"[..], 8));
    let at = |block, page| PageAt { block, page };
    assert_eq!(seen.0, [(at(0, 0), None), (at(0, 1), Some(0xab)), (at(1, 0), Some(0xcd))]);
}

/// Field → (first byte, bytes) of a structure of the document.
fn table(name: &str) -> BTreeMap<String, (usize, usize)> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/memory-format.md");
    let text = std::fs::read_to_string(page).expect("the document is there");
    let heading = format!("### `{name}`");
    let rows = text.lines().skip_while(|l| *l != heading).skip(1).skip_while(|l| !l.starts_with('|'));
    let fields = rows.take_while(|l| l.starts_with('|')).filter_map(|row| {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        Some((cells[3].to_owned(), (cells[1].parse().ok()?, cells[2].parse().unwrap_or(0))))
    });
    let out: BTreeMap<_, _> = fields.collect();
    assert!(!out.is_empty(), "the document has no table `{name}`");
    out
}

/// Reads numbers where the document says they are.
struct Reader<'a> {
    bytes: &'a [u8],
    fields: BTreeMap<String, (usize, usize)>,
}

impl<'a> Reader<'a> {
    fn new(structure: &str, bytes: &'a [u8]) -> Reader<'a> {
        Reader { bytes, fields: table(structure) }
    }
    fn raw(&self, field: &str) -> &'a [u8] {
        let (first, bytes) = self.fields[field];
        &self.bytes[first..first + bytes]
    }
    fn number(&self, field: &str) -> u64 {
        self.raw(field).iter().rev().fold(0, |n, b| n << 8 | u64::from(*b))
    }
}

fn image() -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("image");
    let captured = capture_as(UUID, &recorded()[..], End::Input, &path, METADATA, |_| {}).expect("it can be written");
    assert_eq!((captured.uuid, captured.ram_bytes, captured.stored_pages), (UUID, 0x4000, 2));
    (folder, path)
}

#[test]
fn an_image_is_laid_out_as_documented() {
    let (_folder, path) = image();
    let file = std::fs::read(path).expect("it is there");
    let header = Reader::new("header", &file);
    assert_eq!(header.raw("magic"), b"KFMEMORY");
    assert_eq!(header.raw("uuid"), UUID);
    for (field, expected) in [
        ("version", 1),
        ("form", 0),
        ("page size", 4096),
        ("chunk pages", 16),
        ("section id", 2),
        ("section instance", 0),
        ("section version", 4),
        ("device sections", 8),
        ("pages", 2),
        ("checksum", HEADER_SUM),
    ] {
        assert_eq!(header.number(field), expected, "{field}");
    }
    let parts: [(&str, u64, &[u8]); 5] = [
        (
            "block table",
            20480,
            b"\0\x10\0\0\0\0\0\0\0\x30\0\0\0\0\0\0\x04\0\0\0ram0\0\x40\0\0\0\0\0\0\0\x10\0\0\0\0\0\0\x03\0\0\0rom",
        ),
        ("metadata", 20527, METADATA),
        ("configuration", 20545, &recorded()[8..57]),
        ("device state", 20594, b"\x04devices\x00\x06\x00\x00\x00\x02{}"),
        ("page checksums", 20610, &PAGE_SUMS),
    ];
    for (i, (name, offset, contents)) in parts.into_iter().enumerate() {
        let extent = Reader::new("extent", header.raw(name));
        assert_eq!((extent.number("offset"), extent.number("length")), (offset, contents.len() as u64), "{name}");
        assert_eq!(&file[offset as usize..offset as usize + contents.len()], contents, "{name}");
        assert_eq!(extent.number("checksum"), PART_SUMS[i], "{name}");
    }
    assert_eq!(Reader::new("extent", header.raw("frame index")).number("length"), 0);
    assert_eq!(file.len(), 20626);
    assert_eq!(file[4096 + 4096..][..4096], [0xab; PAGE]);
    assert_eq!(file[4096 + 3 * 4096..][..4096], [0xcd; PAGE]);
}

#[test]
fn a_compressed_image_has_frames_as_documented() {
    let (_folder, path) = image();
    compress(&path, |_| true).expect("it can be compressed");
    let file = std::fs::read(&path).expect("it is there");
    let header = Reader::new("header", &file);
    assert_eq!((header.number("form"), header.raw("uuid")), (1, &UUID[..]));
    let extent = Reader::new("extent", header.raw("frame index"));
    assert_eq!(extent.number("length"), 24);
    let index = &file[extent.number("offset") as usize..][..24];
    let mut at = 4096;
    for (entry, fill) in index.chunks(12).zip([0xab, 0xcd]) {
        let frame = Reader::new("frame", entry);
        assert_eq!(frame.number("offset"), at);
        let bytes = &file[at as usize..][..frame.number("length") as usize];
        assert_eq!(zstd::bulk::decompress(bytes, PAGE).expect("a frame stands alone"), [fill; PAGE]);
        at += frame.number("length");
    }
}

#[test]
fn a_replayed_image_says_what_the_stream_said() {
    let (_folder, path) = image();
    let image = Image::open(&path).expect("it is an image");
    assert_eq!(image.front().metadata(), METADATA);
    let mut out = Vec::new();
    replay(&image, &mut out).expect("it can be written");
    let (mut before, mut after) = (Seen::default(), Seen::default());
    let told = stream::read(&recorded()[..], End::Input, &mut before).expect("it is sound");
    assert_eq!(stream::read(&out[..], End::Input, &mut after).expect("it is sound"), told);
    let contents =
        |seen: Seen| -> BTreeMap<PageAt, u8> { seen.0.into_iter().filter_map(|(at, b)| Some((at, b?))).collect() };
    assert_eq!(contents(after), contents(before));
}
