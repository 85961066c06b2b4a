//! The page server against a QEMU played by the test, which asks for pages in any order and keeps count.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread::JoinHandle;

use keyframe_memory::serve::{Ready, Served};
use keyframe_memory::{ErrorKind, PAGE, PageAt, Progress, Result, capture, compress};
use proptest::prelude::*;
use tempfile::TempDir;

mod common;
use common::{Memory, Script, understood};

fn quiet(_: Progress) {}

/// The other end of the connection.
struct Qemu {
    link: UnixStream,
    pages: Vec<u64>,
    /// Every page that came, zeros included.
    came: BTreeMap<PageAt, u8>,
}

/// What came on the connection.
#[derive(Debug, PartialEq)]
enum Heard {
    Command(u16, Vec<u8>),
    Start,
    /// The pages of one section, in order.
    Pages(Vec<PageAt>),
    End,
}

impl Qemu {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        self.link.read_exact(&mut out).expect("the server is there");
        out
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut out = vec![0; count];
        self.link.read_exact(&mut out).expect("the server is there");
        out
    }

    fn hear(&mut self) -> Heard {
        match self.take::<1>()[0] {
            0x08 => {
                let (kind, length) = (u16::from_be_bytes(self.take()), u16::from_be_bytes(self.take()));
                Heard::Command(kind, self.bytes(usize::from(length)))
            }
            0x01 => {
                assert_eq!(self.bytes(16), b"\0\0\0\x07\x03ram\0\0\0\0\0\0\0\x04");
                let mut left = u64::from_be_bytes(self.take()) & !0xfff;
                while left > 0 {
                    let name = self.take::<1>()[0];
                    self.bytes(usize::from(name));
                    left -= u64::from_be_bytes(self.take());
                }
                assert_eq!(self.bytes(13), b"\0\0\0\0\0\0\0\x10\x7e\0\0\0\x07");
                Heard::Start
            }
            kind @ (0x02 | 0x03) => {
                assert_eq!(u32::from_be_bytes(self.take()), 7);
                let pages = self.section();
                if kind == 0x02 {
                    return Heard::Pages(pages);
                }
                assert_eq!((pages, self.take::<1>()), (Vec::new(), [0]));
                Heard::End
            }
            other => panic!("a section of the kind {other}"),
        }
    }

    fn section(&mut self) -> Vec<PageAt> {
        let (mut block, mut out) = (None, Vec::new());
        loop {
            let word = u64::from_be_bytes(self.take());
            if word == 0x10 {
                assert_eq!(self.bytes(5), b"\x7e\0\0\0\x07");
                return out;
            }
            if word & 0x20 == 0 {
                let length = usize::from(self.take::<1>()[0]);
                let name = String::from_utf8(self.bytes(length)).expect("a name");
                block = Some(name.strip_prefix("block").expect("ours").parse().expect("a number"));
            }
            let at = PageAt { block: block.expect("named in this section"), page: (word & !0xfff) / PAGE as u64 };
            let data = if word & 0x08 != 0 { self.bytes(PAGE) } else { self.bytes(1) };
            assert!(data.iter().all(|b| *b == data[0]), "the page {at:?} is torn");
            assert_eq!(word & 0x02 != 0, data[0] == 0, "zeros are sent as such, and nothing else is");
            assert_eq!(self.came.insert(at, data[0]), None, "{at:?} came twice, which QEMU takes for an error");
            out.push(at);
        }
    }

    /// Up to where the guest may run. Returns the device state.
    fn begin(&mut self) -> Vec<u8> {
        let devices = self.package();
        self.say(2, &[0, 0, 0, 3]);
        devices
    }

    /// Up to the device state, which is returned but not loaded.
    fn package(&mut self) -> Vec<u8> {
        assert_eq!(self.bytes(8), b"QEVM\0\0\0\x03");
        assert_eq!(self.bytes(9), b"\x07\0\0\0\x04test");
        assert_eq!(self.hear(), Heard::Command(1, vec![]));
        assert_eq!(self.hear(), Heard::Command(3, b"\0\0\0\0\0\0\x10\0\0\0\0\0\0\0\x10\0".to_vec()));
        assert_eq!(self.hear(), Heard::Start);
        let discarded = b"\0\x06block0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x10\0";
        assert_eq!(self.hear(), Heard::Command(6, discarded.to_vec()));
        let Heard::Command(7, length) = self.hear() else { panic!("no package") };
        let length = u32::from_be_bytes(length.try_into().expect("a length"));
        let package = self.bytes(length as usize);
        let inner = package.strip_prefix(b"\x08\0\x04\0\0").expect("it begins with listen");
        let ping_and_run = b"\x08\0\x02\0\x04\0\0\0\x03\x08\0\x05\0\0";
        inner.strip_suffix(ping_and_run).expect("it ends with a ping and run").to_vec()
    }

    fn say(&mut self, kind: u16, data: &[u8]) {
        let head = [kind.to_be_bytes(), (data.len() as u16).to_be_bytes()].concat();
        self.link.write_all(&[&head, data].concat()).expect("the server is there");
    }

    fn ask(&mut self, at: PageAt, named: bool) {
        let mut data = (at.page * PAGE as u64).to_be_bytes().to_vec();
        data.extend((PAGE as u32).to_be_bytes());
        if named {
            data.extend(b"\x06block");
            data.push(b'0' + at.block as u8);
        }
        self.say(if named { 3 } else { 4 }, &data);
    }

    /// Takes pages until the end, asking for `wanted` on the way, one with every section.
    fn take_all(&mut self, wanted: &[PageAt]) {
        let mut wanted = wanted.iter();
        let mut block = None;
        loop {
            if let Some(at) = wanted.next() {
                self.ask(*at, block != Some(at.block));
                block = Some(at.block);
            }
            if self.hear() == Heard::End {
                break self.say(1, &[0; 4]);
            }
        }
    }

    fn contents(&self) -> Memory {
        self.came.iter().filter(|(_, fill)| **fill != 0).map(|(at, fill)| (*at, *fill)).collect()
    }
}

struct Scene {
    folder: TempDir,
    script: Script,
}

impl Scene {
    fn new(script: Script) -> Scene {
        let scene = Scene { folder: common::folder(), script };
        capture(&scene.script.stream()[..], &scene.image(), b"", quiet).expect("it can be captured");
        scene
    }

    fn image(&self) -> PathBuf {
        self.folder.path().join("image")
    }

    fn start(
        &self,
        how: impl FnOnce(PathBuf, PathBuf) -> Result<Served> + Send + 'static,
    ) -> (Qemu, JoinHandle<Result<Served>>) {
        let socket = self.folder.path().join("socket");
        let listener = UnixListener::bind(&socket).expect("it can listen");
        let (image, to) = (self.image(), socket.clone());
        let server = std::thread::spawn(move || how(image, to));
        let link = listener.accept().expect("the server connects").0;
        std::fs::remove_file(socket).expect("it is there");
        (Qemu { link, pages: self.script.blocks.clone(), came: BTreeMap::new() }, server)
    }

    fn run(&self) -> (Qemu, JoinHandle<Result<Served>>) {
        self.start(|image, socket| Ready::open(&image)?.run(&socket, quiet))
    }
}

fn end(server: JoinHandle<Result<Served>>) -> Result<Served> {
    server.join().expect("the server does not panic")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_page_comes_once_whatever_is_asked_for(
        script in Script::any(),
        wishes in prop::collection::vec((any::<usize>(), any::<u64>()), 0..40),
        cold in any::<bool>(),
    ) {
        let scene = Scene::new(script);
        if cold {
            compress(&scene.image(), |_| true).expect("it can be compressed");
        }
        let wanted: Vec<PageAt> = wishes
            .into_iter()
            .map(|(b, p)| (b % scene.script.blocks.len(), p))
            .map(|(block, p)| PageAt { block, page: p % scene.script.blocks[block] })
            .collect();
        let (mut qemu, server) = scene.run();
        let devices = qemu.begin();
        let (_, told, _) = understood(&scene.script.stream()).expect("it is sound");
        prop_assert_eq!(devices, &told.bytes[..told.sections]);
        qemu.take_all(&wanted);
        let served = end(server).expect("it is all in");
        prop_assert_eq!(qemu.contents(), scene.script.memory());
        prop_assert_eq!(served.pages, qemu.came.len() as u64);
        let zeros: BTreeSet<PageAt> = qemu.came.iter().filter(|(_, fill)| **fill == 0).map(|(at, _)| *at).collect();
        prop_assert!(zeros.iter().all(|at| wanted.contains(at)), "zeros come only when asked for");
    }

    #[test]
    fn another_server_sends_what_the_first_one_did_not(script in Script::any(), seed in any::<u64>()) {
        let scene = Scene::new(script);
        let (mut qemu, server) = scene.start(|image, socket| Ready::open(&image)?.recover(&socket, quiet));
        let mut had = Memory::new();
        for block in 0..qemu.pages.len() {
            let name = format!("\u{6}block{block}");
            prop_assert_eq!(qemu.hear(), Heard::Command(10, name.clone().into_bytes()));
            let pages = qemu.pages[block];
            let mut bits = vec![0u8; pages.div_ceil(64) as usize * 8];
            for page in (0..pages).filter(|page| seed >> (page % 61) & 1 == 1) {
                bits[page as usize / 8] |= 1 << (page % 8);
                had.insert(PageAt { block, page }, 0);
            }
            qemu.say(5, name.as_bytes());
            let bytes = [&(bits.len() as u64).to_be_bytes(), &bits[..], &0x0123_4567_89ab_cdef_u64.to_be_bytes()].concat();
            qemu.link.write_all(&bytes).expect("the server is there");
        }
        prop_assert_eq!(qemu.hear(), Heard::Command(9, vec![]));
        qemu.say(6, &[0, 0, 0, 1]);
        qemu.take_all(&[]);
        end(server).expect("it is all in");
        let mut missing = scene.script.memory();
        missing.retain(|at, _| !had.contains_key(at));
        prop_assert_eq!(qemu.contents(), missing);
    }
}

#[test]
fn what_the_guest_waits_for_comes_first_and_its_neighbours_with_it() {
    let scene = Scene::new(Script::striped(4000));
    let (mut qemu, server) = scene.run();
    qemu.begin();
    let wanted = PageAt { block: 0, page: 3004 };
    qemu.ask(wanted, true);
    let before = loop {
        let Heard::Pages(pages) = qemu.hear() else { panic!("it never came") };
        if pages[0] == wanted {
            assert_eq!(pages.len(), 8, "{pages:?}");
            assert!(pages.iter().all(|at| at.page / 16 == 3004 / 16), "{pages:?}");
            break qemu.came.len();
        }
    };
    // What was under way when the request came is no more than what a socket takes in.
    assert!(before < 400, "{before} pages came before the one that was waited for");
    let Heard::Pages(next) = qemu.hear() else { panic!("there is more") };
    assert_eq!(next[0].page, 3008, "the background goes on from there");
    qemu.take_all(&[]);
    assert_eq!(end(server).expect("it is all in"), Served { pages: 2000, requested: 1 });
}

/// Devices read memory while they are loaded, and QEMU takes in no end before they are.
#[test]
fn a_device_gets_a_page_of_zeros_after_everything_else_is_sent() {
    let scene = Scene::new(Script::striped(40));
    let (mut qemu, server) = scene.run();
    qemu.package();
    while qemu.contents() != scene.script.memory() {
        assert!(matches!(qemu.hear(), Heard::Pages(_)), "only pages come before the devices are loaded");
    }
    let zero = (0..40).map(|page| PageAt { block: 0, page }).find(|at| !qemu.came.contains_key(at)).expect("a gap");
    qemu.ask(zero, true);
    assert_eq!(qemu.hear(), Heard::Pages(vec![zero]));
    qemu.say(2, &[0, 0, 0, 3]);
    assert_eq!(qemu.hear(), Heard::End);
    qemu.say(1, &[0; 4]);
    assert_eq!(end(server).expect("it is all in"), Served { pages: 21, requested: 1 });
}

#[test]
fn progress_is_told_up_to_the_last_page() {
    let scene = Scene::new(Script::striped(2000));
    let (sender, told) = std::sync::mpsc::channel();
    let (mut qemu, server) = scene
        .start(move |image, socket| Ready::open(&image)?.run(&socket, |p| sender.send(p).expect("somebody listens")));
    qemu.begin();
    qemu.take_all(&[]);
    end(server).expect("it is all in");
    let told: Vec<Progress> = told.iter().collect();
    assert!(told.len() >= 4 && told.is_sorted_by_key(|p| p.done), "{told:?}");
    assert_eq!(told.last(), Some(&Progress { done: 1000, total: 1000, requested: 0 }));
}

#[test]
fn a_qemu_that_leaves_or_misbehaves_ends_the_server_with_a_reason() {
    fn check(misbehave: impl FnOnce(&mut Qemu), expected: ErrorKind, words: &str) {
        let scene = Scene::new(Script::striped(4000));
        let (mut qemu, server) = scene.run();
        qemu.begin();
        misbehave(&mut qemu);
        // Takes what still comes, so that the server hears what was said.
        let link = qemu.link.try_clone().expect("it can be shared");
        if expected == ErrorKind::PeerGone {
            link.shutdown(std::net::Shutdown::Both).expect("it is open");
        }
        let drain = std::thread::spawn(move || std::io::copy(&mut &link, &mut std::io::sink()));
        let e = end(server).expect_err("it cannot go on");
        assert_eq!(e.kind(), expected, "{e}");
        assert!(e.to_string().contains(words), "{e}");
        drain.join().expect("it does not panic").ok();
    }
    let far = PageAt { block: 0, page: 4000 };
    check(|_| {}, ErrorKind::PeerGone, "QEMU");
    check(|q| q.say(1, &[0, 0, 0, 1]), ErrorKind::Refused, "gave up loading (code 1)");
    check(|q| q.say(1, &[]), ErrorKind::Refused, "a number that is none");
    check(|q| q.say(77, b"?"), ErrorKind::Refused, "unknown kind 77");
    check(|q| q.say(6, &[0, 0, 0, 1]), ErrorKind::Refused, "not asked");
    check(|q| q.ask(far, true), ErrorKind::Refused, "asked for 4096 bytes at 0xfa0000 of block block0");
    check(|q| q.ask(PageAt { block: 9, page: 0 }, true), ErrorKind::Refused, "unknown block 'block9'");
    check(|q| q.ask(PageAt { block: 0, page: 0 }, false), ErrorKind::Refused, "a page of no block");
    check(|q| q.say(4, &[1, 2, 3]), ErrorKind::Refused, "in a form that is none");
}

#[test]
fn a_damaged_page_is_not_sent() {
    let scene = Scene::new(Script::striped(64));
    let mut bytes = std::fs::read(scene.image()).expect("it is there");
    bytes[4096 + 40 * 4096] ^= 1;
    std::fs::write(scene.image(), bytes).expect("it can be written");
    let (mut qemu, server) = scene.run();
    // An answer that nobody reads would break the connection rather than end it.
    qemu.package();
    let mut link = qemu.link.try_clone().expect("it can be shared");
    let drain = std::thread::spawn(move || {
        let mut all = Vec::new();
        link.read_to_end(&mut all).map(|_| all.len())
    });
    let e = end(server).expect_err("a page is damaged");
    assert_eq!(e.kind(), ErrorKind::Corrupt, "{e}");
    assert!(e.to_string().contains("block block0 at 0x28000"), "{e}");
    let sent = drain.join().expect("it does not panic").expect("an orderly end");
    assert!(sent < 17 * PAGE, "only the two chunks before the damaged one were sent, not {sent} bytes");
}

#[test]
fn an_image_may_vanish_while_it_is_served() {
    let scene = Scene::new(Script::striped(3000));
    let (mut qemu, server) = scene.run();
    qemu.begin();
    std::fs::remove_file(scene.image()).expect("it is there");
    qemu.take_all(&[]);
    end(server).expect("it is all in");
    assert_eq!(qemu.contents(), scene.script.memory());
}
