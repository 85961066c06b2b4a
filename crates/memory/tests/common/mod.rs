//! Streams made to order, and the memory they stand for as plain arrays: the obvious model.

use std::collections::BTreeMap;

use keyframe_memory::stream::{self, DeviceState, End, Head, Sink};
use keyframe_memory::{PAGE, PageAt, Result};
use proptest::prelude::*;
use tempfile::TempDir;

/// A folder in memory: hundreds of images are synced here.
pub(crate) fn folder() -> TempDir {
    tempfile::tempdir_in("/dev/shm").expect("a folder")
}

/// What a stream is made from.
#[derive(Clone, Debug)]
pub(crate) struct Script {
    /// Pages of each block.
    pub(crate) blocks: Vec<u64>,
    /// Pages in the order in which they are sent: block, page, contents (0 is a page of zeros), whether a section ends.
    pub(crate) sent: Vec<(usize, u64, u8, bool)>,
    pub(crate) devices: Vec<u8>,
}

/// Contents of pages that are not zero, told by their first byte and checked to the last.
pub(crate) type Memory = BTreeMap<PageAt, u8>;

impl Script {
    pub(crate) fn any() -> impl Strategy<Value = Script> {
        let blocks = prop::collection::vec(1u64..70, 1..5);
        let sent = prop::collection::vec((any::<usize>(), any::<u64>(), 0u8..4, prop::bool::weighted(0.1)), 0..300);
        let devices = prop::collection::vec(any::<u8>(), 0..200);
        (blocks, sent, devices).prop_map(|(blocks, sent, devices)| {
            let place = |(b, p, fill, ends): (usize, u64, u8, bool)| {
                let block = b % blocks.len();
                (block, p % blocks[block], fill, ends)
            };
            let sent = sent.into_iter().map(place).collect();
            Script { blocks, sent, devices }
        })
    }

    /// A machine of one block in which every other page holds something.
    pub(crate) fn striped(pages: u64) -> Script {
        let sent = (0..pages).step_by(2).map(|page| (0, page, 1 + (page % 200) as u8, false)).collect();
        Script { blocks: vec![pages], sent, devices: b"devices".to_vec() }
    }

    /// The stream, encoded without any help of the crate under test.
    pub(crate) fn stream(&self) -> Vec<u8> {
        let mut out = b"QEVM\0\0\0\x03".to_vec();
        out.extend(b"\x07\0\0\0\x04test");
        out.extend(b"\x01\0\0\0\x07\x03ram\0\0\0\0\0\0\0\x04");
        let bytes: u64 = self.blocks.iter().sum::<u64>() * PAGE as u64;
        out.extend((bytes | 4).to_be_bytes());
        for (i, pages) in self.blocks.iter().enumerate() {
            out.extend(name(i));
            out.extend((pages * PAGE as u64).to_be_bytes());
        }
        let end: &[u8] = b"\0\0\0\0\0\0\0\x10\x7e\0\0\0\x07";
        out.extend(end);
        out.extend(b"\x02\0\0\0\x07");
        let mut last = None;
        for (block, page, fill, ends) in &self.sent {
            let kind = if *fill == 0 { 0x02 } else { 0x08 } | if last == Some(block) { 0x20 } else { 0 };
            out.extend(((page * PAGE as u64) | kind).to_be_bytes());
            if last != Some(block) {
                out.extend(name(*block));
            }
            last = Some(block);
            out.extend(if *fill == 0 { vec![0] } else { vec![*fill; PAGE] });
            if *ends {
                out.extend(end);
                out.extend(b"\x02\0\0\0\x07");
            }
        }
        out.extend(end);
        out.push(4);
        out.extend(&self.devices);
        out.extend(b"\0\x06\0\0\0\x02{}");
        out
    }

    pub(crate) fn memory(&self) -> Memory {
        let mut memory = Memory::new();
        for (block, page, fill, _) in &self.sent {
            memory.insert(PageAt { block: *block, page: *page }, *fill);
        }
        memory.retain(|_, fill| *fill != 0);
        memory
    }
}

fn name(block: usize) -> Vec<u8> {
    let name = format!("block{block}");
    [&[name.len() as u8], name.as_bytes()].concat()
}

/// Collects what a stream says.
#[derive(Default)]
struct Collect(Memory);

impl Sink for Collect {
    fn start(&mut self, _: &Head) -> Result<()> {
        Ok(())
    }
    fn page(&mut self, at: PageAt, data: &[u8; PAGE]) -> Result<()> {
        assert!(data.iter().all(|b| *b == data[0]), "the page {at:?} is torn");
        self.0.insert(at, data[0]);
        Ok(())
    }
    fn zero(&mut self, at: PageAt) -> Result<()> {
        self.0.remove(&at);
        Ok(())
    }
}

/// What a stream stands for.
pub(crate) fn understood(bytes: &[u8]) -> Result<(Head, DeviceState, Memory)> {
    let mut collect = Collect::default();
    let (head, devices) = stream::read(bytes, End::Input, &mut collect)?;
    Ok((head, devices, collect.0))
}
