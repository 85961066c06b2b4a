//! Streams become images and streams again; damage and interruptions are noticed.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use keyframe_memory::{ErrorKind, Front, Image, Progress, capture, capture_and_decline, compress, replay};
use proptest::prelude::*;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tempfile::TempDir;

mod common;
use common::{Memory, Script, understood};

fn quiet(_: Progress) {}

fn folder() -> (TempDir, PathBuf) {
    let folder = common::folder();
    let path = folder.path().join("image");
    (folder, path)
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("the folder is there");
    let mut names: Vec<String> =
        entries.map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn memory_of(path: &Path) -> keyframe_memory::Result<Memory> {
    let image = Image::open(path)?;
    let mut out = Vec::new();
    replay(&image, &mut out)?;
    Ok(understood(&out).expect("a replayed stream is sound").2)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn an_image_holds_what_the_stream_said(script in Script::any()) {
        let (_folder, path) = folder();
        let (head, devices, memory) = understood(&script.stream()).expect("it is sound");
        prop_assert_eq!(&memory, &script.memory());
        prop_assert_eq!(&devices.bytes[1..devices.sections], &script.devices[..]);
        capture(&script.stream()[..], &path, b"about", quiet).expect("it can be captured");
        let plain = Image::open(&path).expect("it is an image");
        let front = plain.front();
        prop_assert_eq!((plain.head(), front.devices(), front.metadata()), (head, &devices, &b"about"[..]));
        prop_assert_eq!(plain.stored_pages(), memory.len() as u64);
        prop_assert_eq!(&memory_of(&path).expect("it can be read"), &memory);
        let shrunk = compress(&path, |_| true).expect("it can be compressed");
        prop_assert!(shrunk.after <= shrunk.before + 8192);
        let cold = Image::open(&path).expect("it is an image");
        prop_assert_eq!((cold.front().uuid(), cold.head()), (front.uuid(), plain.head()));
        prop_assert_eq!(cold.front().devices(), front.devices());
        prop_assert!(cold.front().is_compressed());
        prop_assert_eq!(&memory_of(&path).expect("it can be read"), &memory);
        // Who had the old one open goes on reading it.
        plain.verify(|_| true).expect("the old file is still there");
    }

    #[test]
    fn a_stream_that_is_cut_or_bent_makes_no_wrong_image(script in Script::any(), at in any::<usize>(), bit in 0u8..8) {
        let (folder, path) = folder();
        let whole = script.stream();
        let at = at % whole.len();
        let cut = capture(&whole[..at], &path, b"", quiet).expect_err("it is cut short");
        prop_assert_eq!(cut.kind(), ErrorKind::BadStream);
        prop_assert!(names(folder.path()).is_empty());
        let mut bent = whole;
        bent[at] ^= 1 << bit;
        // It may be another sound stream; if it is not, nothing may be left.
        if capture(&bent[..], &path, b"", quiet).is_err() {
            prop_assert!(names(folder.path()).is_empty());
        }
    }

    #[test]
    fn a_flipped_bit_of_an_image_never_becomes_memory(
        script in Script::any(), at in any::<prop::sample::Index>(), bit in 0u8..8, cold in any::<bool>()
    ) {
        let (_folder, path) = folder();
        capture(&script.stream()[..], &path, b"about", quiet).expect("it can be captured");
        if cold {
            compress(&path, |_| true).expect("it can be compressed");
        }
        let mut bytes = std::fs::read(&path).expect("it is there");
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        std::fs::write(&path, bytes).expect("it can be written");
        match memory_of(&path) {
            // The bit was in a hole.
            Ok(memory) => prop_assert_eq!(memory, script.memory()),
            Err(e) => prop_assert!(
                matches!(e.kind(), ErrorKind::Corrupt | ErrorKind::NotAnImage | ErrorKind::NewerFormat), "{e}"
            ),
        }
    }
}

#[test]
fn only_commands_that_change_nothing_are_understood() {
    let script = Script::striped(4);
    let plain = script.stream();
    let devices = plain.len() - 1 - script.devices.len() - b"\0\x06\0\0\0\x02{}".len();
    let with = |command: &[u8]| understood(&[&plain[..devices], command, &plain[devices..]].concat());
    // QEMU 10.0 announces devices where it stops the guest itself; the others come with a return path.
    for harmless in [&b"\x08\0\x0b\0\0"[..], b"\x08\0\x01\0\0", b"\x08\0\x02\0\x04\0\0\0\x01"] {
        assert_eq!(with(harmless).expect("it is sound"), understood(&plain).expect("it is sound"));
    }
    for other in [b"\x08\0\x02\0\0", b"\x08\0\x03\0\0", b"\x08\0\x0b\0\x01"] {
        assert_eq!(with(other).expect_err("it means something else").kind(), ErrorKind::Unsupported);
    }
}

/// As QEMU with a return path: says no more than the stream, does not end it, and hears an answer.
struct Waiting<'a> {
    stream: &'a [u8],
    told: Vec<u8>,
}

impl Read for Waiting<'_> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        assert!(!self.stream.is_empty(), "QEMU says no more before it has an answer");
        let some = out.len().min(7_001);
        self.stream.read(&mut out[..some])
    }
}

impl Write for Waiting<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        assert!(self.stream.is_empty(), "it is told before it has said everything");
        self.told.write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_migration_is_declined_when_its_image_is_there() {
    let (_folder, path) = folder();
    let stream = Script::striped(400).stream();
    let mut qemu = Waiting { stream: &stream, told: Vec::new() };
    capture_and_decline(&mut qemu, &path, b"", quiet).expect("it can be captured");
    assert_eq!(qemu.told, [0, 1, 0, 4, 0, 0, 0, 1], "the return path ends with an error");
    assert_eq!(memory_of(&path).expect("it is sound"), understood(&stream).expect("it is sound").2);
}

#[test]
fn a_damaged_page_is_named() {
    let (_folder, path) = folder();
    capture(&Script::striped(40).stream()[..], &path, b"", quiet).expect("it can be captured");
    let mut bytes = std::fs::read(&path).expect("it is there");
    bytes[4096 + 34 * 4096 + 17] ^= 1;
    std::fs::write(&path, bytes).expect("it can be written");
    let e = Image::open(&path).expect("the tables are sound").verify(|_| true).expect_err("a page is not");
    let expected = format!("{} is damaged: block block0 at 0x22000: the checksum does not match", path.display());
    assert_eq!((e.kind(), e.to_string()), (ErrorKind::Corrupt, expected));
}

/// Hands out a stream, and at every read looks at what a crash at that moment would leave.
struct Watched<'a> {
    stream: &'a [u8],
    folder: &'a Path,
}

impl Read for Watched<'_> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        for name in names(self.folder) {
            assert!(name.starts_with("image.") && name.ends_with(".partial"), "{name}");
            let e = Image::open(&self.folder.join(name)).expect_err("it is not complete");
            assert_eq!(e.kind(), ErrorKind::NotAnImage);
        }
        let some = out.len().min(10_000);
        self.stream.read(&mut out[..some])
    }
}

#[test]
fn until_an_image_is_complete_there_is_none() {
    let (folder, path) = folder();
    let stream = Script::striped(400).stream();
    capture(Watched { stream: &stream, folder: folder.path() }, &path, b"", quiet).expect("it can be captured");
    assert_eq!(names(folder.path()), ["image"]);
    // The header comes last: without it the file is nothing, whatever its name.
    let mut bytes = std::fs::read(&path).expect("it is there");
    bytes[..4096].fill(0);
    std::fs::write(&path, bytes).expect("it can be written");
    assert_eq!(Image::open(&path).expect_err("it has no header").kind(), ErrorKind::NotAnImage);
}

#[test]
fn a_leftover_of_a_killed_process_is_in_nobodys_way() {
    let (folder, path) = folder();
    let left = format!("image.{}-0.partial", std::process::id());
    std::fs::write(folder.path().join(&left), vec![7; 100_000]).expect("it can be written");
    let script = Script::striped(10);
    capture(&script.stream()[..], &path, b"", quiet).expect("it can be captured");
    assert_eq!(memory_of(&path).expect("it can be read"), script.memory());
    assert_eq!(names(folder.path()), ["image".to_owned(), left]);
}

/// Begins another work on the same image in the middle of its own.
struct Twice<'a> {
    stream: &'a [u8],
    then: Option<Box<dyn FnOnce() + 'a>>,
}

impl Read for Twice<'_> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        if self.stream.len() < 200_000
            && let Some(then) = self.then.take()
        {
            then();
        }
        let some = out.len().min(10_000);
        self.stream.read(&mut out[..some])
    }
}

#[test]
fn two_at_once_do_not_write_into_one_file() {
    let (folder, path) = folder();
    let (first, second) = (Script::striped(100), Script::striped(90));
    let (stream, other) = (first.stream(), second.stream());
    let then = || {
        capture(&other[..], &path, b"", quiet).expect("the second can be captured");
        compress(&path, |_| true).expect("it can be compressed");
        assert_eq!(memory_of(&path).expect("it can be read"), second.memory());
    };
    capture(Twice { stream: &stream, then: Some(Box::new(then)) }, &path, b"", quiet).expect("so can the first");
    assert_eq!(memory_of(&path).expect("it can be read"), first.memory());
    assert_eq!(names(folder.path()), ["image"]);
}

#[test]
fn zeros_take_no_space() {
    let (_folder, path) = folder();
    let script = Script { blocks: vec![1 << 18], sent: vec![(0, 9, 1, false)], devices: Vec::new() };
    let captured = capture(&script.stream()[..], &path, b"", quiet).expect("it can be captured");
    assert_eq!((captured.ram_bytes, captured.stored_pages), (1 << 30, 1));
    assert!(captured.allocated < 256 << 10, "{captured:?}");
    // Pages that are zero in the end, as an ordinary migration may send them.
    let again = (0..1000).flat_map(|page| [(0, page, 1, false), (0, page, 0, false)]).collect();
    let script = Script { blocks: vec![1000], sent: again, devices: Vec::new() };
    let captured = capture(&script.stream()[..], &path, b"", quiet).expect("it can be captured");
    assert!(captured.stored_pages == 0 && captured.allocated < 256 << 10, "{captured:?}");
    assert_eq!(Front::open(&path).expect("an image").allocated().expect("it can be asked"), captured.allocated);
}

#[test]
fn a_full_disk_is_told_from_other_failures_and_leaves_what_was_there() -> Result<()> {
    let (folder, _) = folder();
    let small = folder.path();
    mount("tmpfs", small, "tmpfs", MountFlags::empty(), Some(c"size=1M"))?;
    let path = small.join("image");
    let result = (|| -> Result<()> {
        let full = capture(&Script::striped(1000).stream()[..], &path, b"", quiet).expect_err("it is too much");
        ensure!(full.kind() == ErrorKind::NoSpace && names(small).is_empty(), "{full}: {:?}", names(small));
        let script = Script::striped(360);
        capture(&script.stream()[..], &path, b"", quiet)?;
        std::fs::write(small.join("more"), vec![1; 1 << 20]).expect_err("this fills what is left");
        let full = compress(&path, |_| true).expect_err("there is no room for a second image");
        ensure!(full.kind() == ErrorKind::NoSpace, "{full}");
        ensure!(memory_of(&path)? == script.memory() && names(small) == ["image", "more"]);
        Ok(())
    })();
    unmount(small, UnmountFlags::DETACH)?;
    result
}

#[test]
fn a_file_that_is_something_else_is_no_image() {
    let (_folder, path) = folder();
    for (bytes, kind) in [
        (Vec::new(), ErrorKind::NotAnImage),
        (vec![0; 10_000], ErrorKind::NotAnImage),
        ([b"KFMEMORY\x02\0\0\0".to_vec(), vec![0; 9000]].concat(), ErrorKind::NewerFormat),
        ([b"KFMEMORY\x01\0\0\0".to_vec(), vec![0; 9000]].concat(), ErrorKind::Corrupt),
    ] {
        std::fs::write(&path, bytes).expect("it can be written");
        assert_eq!(Image::open(&path).expect_err("it is none").kind(), kind);
    }
}
