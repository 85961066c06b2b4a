//! Opens and checks a pool whose bytes were changed: superblock, journal, nodes, objects, bitmaps. Checksums of the superblock
//! are made good again, so that its fields are reached too. Nothing may panic.
#![no_main]

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};

use keyframe_engine::device::{Device, Ring};
use keyframe_engine::units::{BLOCK, Bytes};
use keyframe_engine::{OpenOptions, Pool, check_on};
use libfuzzer_sys::fuzz_target;

const BLOCKS: u64 = 4096;

/// Sparse bytes without durability.
#[derive(Default)]
struct Image(Mutex<BTreeMap<u64, [u8; 512]>>);

impl Device for Image {
    fn name(&self) -> String {
        "image".into()
    }
    fn len(&self) -> io::Result<u64> {
        Ok(BLOCKS * BLOCK)
    }
    fn extend(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn alignment(&self) -> u32 {
        512
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        if offset + buf.len() as u64 > BLOCKS * BLOCK {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let sectors = self.0.lock().unwrap();
        for (i, out) in buf.chunks_mut(512).enumerate() {
            out.copy_from_slice(sectors.get(&(offset / 512 + i as u64)).unwrap_or(&[0; 512]));
        }
        Ok(())
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let mut sectors = self.0.lock().unwrap();
        for (i, bytes) in buf.chunks_exact(512).enumerate().filter(|(_, b)| b.iter().any(|b| *b != 0)) {
            sectors.insert(offset / 512 + i as u64, bytes.try_into().unwrap());
        }
        Ok(())
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
    fn ring(self: Arc<Self>) -> io::Result<Box<dyn Ring>> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

fn options() -> OpenOptions {
    OpenOptions { cache: Bytes(0), background: false, ..OpenOptions::default() }
}

/// A pool with volumes, snapshots and a clone, half in a checkpoint and half in the journal.
fn sample() -> &'static BTreeMap<u64, [u8; 512]> {
    static SAMPLE: OnceLock<BTreeMap<u64, [u8; 512]>> = OnceLock::new();
    SAMPLE.get_or_init(|| {
        let image = Arc::new(Image::default());
        Pool::format(&*image, BLOCKS).unwrap();
        let pool = Pool::open_on(Arc::clone(&image) as _, Path::new("image"), &options()).unwrap();
        pool.create_volume("a", Bytes(1 << 20)).unwrap();
        pool.create_volume("b", Bytes(4 << 20)).unwrap();
        pool.snapshot(&[("a".into(), "s".into()), ("b".into(), "s".into())]).unwrap();
        pool.checkpoint().unwrap();
        pool.clone_volume("a@s", "c", "").unwrap();
        pool.delete_snapshot("b@s").unwrap();
        let sectors = image.0.lock().unwrap().clone();
        drop(pool);
        sectors
    })
}

fuzz_target!(|data: &[u8]| {
    let sample = sample();
    let used: Vec<u64> = sample.keys().copied().collect();
    let mut sectors = sample.clone();
    for patch in data.chunks_exact(5) {
        let sector = used[u16::from_le_bytes([patch[0], patch[1]]) as usize % used.len()];
        let at = u16::from_le_bytes([patch[2], patch[3]]) as usize % 512;
        sectors.get_mut(&sector).unwrap()[at] = patch[4];
    }
    for copy in [4, 5] {
        let mut block = vec![0; BLOCK as usize];
        for i in 0..8 {
            block[i * 512..][..512].copy_from_slice(sectors.get(&(copy * 8 + i as u64)).unwrap_or(&[0; 512]));
        }
        let crc = crc32c::crc32c(&block[..4092]);
        block[4092..].copy_from_slice(&crc.to_le_bytes());
        sectors.insert(copy * 8 + 7, block[3584..].try_into().unwrap());
    }
    let image = Arc::new(Image(Mutex::new(sectors)));
    // Whatever it is now, refusing is fine.
    let _any = check_on(image, &options(), &mut |_, _| {});
});
