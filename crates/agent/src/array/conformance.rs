//! What every driver of an array must do, checked through nothing but the trait and the block devices. The oracle is
//! plain bytes in memory.
//!
//! [`suite`] panics with the name of what does not hold. The directory given to `open` is empty at first, and an array
//! opened on it again finds what was there.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use keyframe_agent_api::{
    Bytes, CreateVolume, FaultKind, ImageFormat, ResizeVolume, SnapshotId, SnapshotRef, VolumeRef, VolumeSource,
};
use keyframe_engine::{IoBuf, Op};
use rustix::event::{PollFd, PollFlags, poll};

use super::Array;
use crate::Result;
use crate::exports::{Block, BlockLane};

/// Bytes that are told apart by every driver.
const BLOCK: usize = 4096;
/// Size of most volumes here.
const SIZE: usize = 256 * BLOCK;

/// Opens an array called `a` on a directory.
pub type Open<'a> = dyn Fn(&Path) -> Arc<dyn Array> + 'a;

/// Everything below, each on a new array.
pub fn suite(open: &Open<'_>) {
    type Test = fn(&Bed<'_>);
    let tests: [(&str, Test); 12] = [
        ("calls can be repeated", calls_can_be_repeated),
        ("what is not there", what_is_not_there),
        ("images become volumes", images_become_volumes),
        ("snapshots keep what was", snapshots_keep_what_was),
        ("one instant for all volumes", one_instant_for_all_volumes),
        ("half a set is not kept", half_a_set_is_not_kept),
        ("any snapshot can go", any_snapshot_can_go),
        ("revert", revert),
        ("clones are independent", clones_are_independent),
        ("what is in use stays", what_is_in_use_stays),
        ("differences", differences),
        ("space", space),
    ];
    for (name, test) in tests {
        let dir = tempfile::tempdir().unwrap_or_else(|error| panic!("{name}: {error}"));
        println!("  {name}");
        test(&Bed { dir: dir.path(), array: open(dir.path()) });
    }
    opened_again(open);
}

/// An array that is closed and opened again has everything.
fn opened_again(open: &Open<'_>) {
    let dir = tempfile::tempdir().unwrap_or_else(|error| panic!("{error}"));
    let begun = Bed { dir: dir.path(), array: open(dir.path()) };
    begun.volume("v", &[(0, 1)]);
    let id = begun.snapshot("v");
    begun.fill("v", &[(0, 2)]);
    good(begun.array().close());
    drop(begun);
    let again = Bed { dir: dir.path(), array: open(dir.path()) };
    again.check("v", &[(0, 2)]);
    again.check(&format!("v@{id}"), &[(0, 1)]);
}

struct Bed<'a> {
    dir: &'a Path,
    array: Arc<dyn Array>,
}

fn good<T>(result: Result<T>) -> T {
    result.unwrap_or_else(|fault| panic!("{:?}: {fault}", fault.kind))
}

/// A refusal of that kind that names the object.
fn refused<T>(result: Result<T>, kind: FaultKind, names: &str) {
    let Err(fault) = result else { panic!("expected {kind:?} about {names}") };
    assert_eq!(fault.kind, kind, "{fault}");
    assert!(fault.message.contains(names), "{names} is not named: {fault}");
}

fn empty(size: usize) -> CreateVolume {
    CreateVolume { source: VolumeSource::Empty, size: Some(Bytes(size as u64)) }
}

fn clone_of(volume: &str, snapshot: SnapshotId, size: Option<u64>) -> CreateVolume {
    let volume = VolumeRef { array: "a".into(), volume: volume.into() };
    CreateVolume { source: VolumeSource::Snapshot(SnapshotRef { volume, snapshot }), size: size.map(Bytes) }
}

/// An attached volume or snapshot.
pub struct Disk {
    block: Box<dyn Block>,
    lane: Box<dyn BlockLane>,
}

impl Disk {
    /// Attaches it until it is dropped.
    pub fn open(array: &dyn Array, name: &str) -> Disk {
        let blocks = array.blocks();
        let block = blocks.open(name).unwrap_or_else(|error| panic!("open {name}: {error}"));
        let lane = blocks.lane().unwrap_or_else(|error| panic!("open {name}: {error}"));
        Disk { block, lane }
    }

    fn call(&mut self, op: Op) -> Option<IoBuf> {
        self.lane.submit(&*self.block, 1, op);
        let mut done = Vec::new();
        loop {
            self.lane.poll(&mut done);
            if let Some(done) = done.pop() {
                done.result.unwrap_or_else(|error| panic!("request: {error}"));
                return done.buf;
            }
            let event = self.lane.event_fd();
            poll(&mut [PollFd::new(&event, PollFlags::IN)], None).unwrap_or_else(|error| panic!("poll: {error}"));
        }
    }

    /// Fills a block with a byte.
    pub fn fill(&mut self, block: usize, byte: u8) {
        let buf = IoBuf::copy_of(&[byte; BLOCK]);
        self.call(Op::Write { offset: (block * BLOCK) as u64, buf, fua: false });
    }

    /// Everything.
    pub fn content(&mut self) -> Vec<u8> {
        let size = self.block.size() as usize;
        let buf = self.call(Op::Read { offset: 0, buf: IoBuf::zeroed(size) });
        buf.unwrap_or_else(|| panic!("no buffer came back")).to_vec()
    }
}

impl Bed<'_> {
    fn array(&self) -> &dyn Array {
        &*self.array
    }

    fn fill(&self, volume: &str, blocks: &[(usize, u8)]) {
        let mut disk = Disk::open(self.array(), volume);
        blocks.iter().for_each(|(block, byte)| disk.fill(*block, *byte));
        disk.call(Op::Flush);
    }

    /// The blocks of a version that are not zero.
    fn found(&self, name: &str) -> Vec<(usize, u8)> {
        let content = Disk::open(self.array(), name).content();
        let block = |(index, block): (usize, &[u8])| {
            assert!(block.iter().all(|byte| *byte == block[0]), "{name}: block {index} is mixed");
            (block[0] != 0).then_some((index, block[0]))
        };
        content.chunks(BLOCK).enumerate().filter_map(block).collect()
    }

    fn volume(&self, name: &str, blocks: &[(usize, u8)]) {
        good(self.array().create(name, &empty(SIZE)));
        self.fill(name, blocks);
    }

    fn snapshot(&self, volume: &str) -> SnapshotId {
        let id = SnapshotId::new();
        good(self.array().snapshot(&[volume], id));
        id
    }

    fn check(&self, name: &str, expected: &[(usize, u8)]) {
        assert_eq!(self.found(name), expected, "{name}");
    }
}

fn calls_can_be_repeated(bed: &Bed<'_>) {
    let array = bed.array();
    for _ in 0..2 {
        let info = good(array.create("v", &empty(SIZE)));
        assert_eq!((info.size, info.snapshots), (Bytes(SIZE as u64), 0));
    }
    refused(array.create("v", &empty(SIZE * 2)), FaultKind::Exists, "v");
    bed.fill("v", &[(1, 1)]);
    let id = SnapshotId::new();
    good(array.snapshot(&["v"], id));
    bed.fill("v", &[(1, 2)]);
    good(array.snapshot(&["v"], id));
    bed.check(&format!("v@{id}"), &[(1, 1)]);
    assert_eq!(good(array.volume("v")).snapshots, 1);
    for _ in 0..2 {
        good(array.create("c", &clone_of("v", id, None)));
        bed.check("c", &[(1, 1)]);
        good(array.revert("v", id));
        bed.check("v", &[(1, 1)]);
        let wish = ResizeVolume { size: Bytes(SIZE as u64 * 2), shrink: false };
        assert_eq!(good(array.resize("v", &wish)).size, wish.size);
    }
    for _ in 0..2 {
        good(array.delete_snapshot("v", id));
        good(array.delete("v"));
    }
    bed.check("c", &[(1, 1)]);
}

fn what_is_not_there(bed: &Bed<'_>) {
    let (array, id) = (bed.array(), SnapshotId::new());
    refused(array.volume("nobody"), FaultKind::NotFound, "nobody");
    refused(
        array.resize("nobody", &ResizeVolume { size: Bytes(1 << 20), shrink: false }),
        FaultKind::NotFound,
        "nobody",
    );
    refused(array.snapshot(&["nobody"], id), FaultKind::NotFound, "nobody");
    refused(array.snapshots("nobody"), FaultKind::NotFound, "nobody");
    refused(array.create("c", &clone_of("nobody", id, None)), FaultKind::NotFound, "nobody");
    refused(array.space("nobody", None), FaultKind::NotFound, "nobody");
    assert!(!good(array.has_snapshot("nobody", id)));
    assert_eq!(good(array.would_free(&[("nobody", None), ("nobody", Some(id))])), Bytes(0));
    bed.volume("v", &[]);
    refused(array.revert("v", id), FaultKind::NotFound, "v@");
    refused(array.create("e", &CreateVolume { source: VolumeSource::Empty, size: None }), FaultKind::Invalid, "e");
    assert!(array.blocks().open("nobody").is_err());
    assert!(array.blocks().open("../v").is_err());
    assert_eq!(good(array.volumes(None, 10)).len(), 1);
}

fn images_become_volumes(bed: &Bed<'_>) {
    let path = bed.dir.join("image.raw");
    let mut content = vec![0; SIZE];
    content[BLOCK * 3..BLOCK * 4].fill(7);
    std::fs::write(&path, &content).unwrap_or_else(|error| panic!("{error}"));
    let image = |size: Option<u64>| {
        let path = path.display().to_string();
        let source = VolumeSource::Image { path, format: Some(ImageFormat::Raw) };
        CreateVolume { source, size: size.map(Bytes) }
    };
    let array = bed.array();
    assert_eq!(good(array.create("v", &image(None))).size, Bytes(SIZE as u64));
    bed.check("v", &[(3, 7)]);
    let large = SIZE as u64 * 2;
    assert_eq!(good(array.create("w", &image(Some(large)))).size, Bytes(large));
    bed.check("w", &[(3, 7)]);
    refused(array.create("x", &image(Some(SIZE as u64 / 2))), FaultKind::Invalid, "x");
    let source = VolumeSource::Image { path: "/nonexistent/image".into(), format: None };
    refused(array.create("y", &CreateVolume { source, size: None }), FaultKind::NotFound, "/nonexistent/image");
    let names: Vec<String> = good(array.volumes(None, 10)).into_iter().map(|info| info.volume.volume).collect();
    assert_eq!(names, ["v", "w"], "failed ones leave nothing");
    assert_eq!(good(array.volumes(Some("v"), 10)).len(), 1);
    assert_eq!(good(array.volumes(None, 1)).len(), 1);
}

fn snapshots_keep_what_was(bed: &Bed<'_>) {
    bed.volume("v", &[(0, 1), (5, 1)]);
    let first = bed.snapshot("v");
    bed.fill("v", &[(5, 2), (6, 2)]);
    let second = bed.snapshot("v");
    bed.fill("v", &[(0, 3)]);
    bed.check(&format!("v@{first}"), &[(0, 1), (5, 1)]);
    bed.check(&format!("v@{second}"), &[(0, 1), (5, 2), (6, 2)]);
    let mut ids = good(bed.array().snapshots("v"));
    ids.sort();
    assert_eq!(ids, [first, second]);
}

/// A writer goes round: a block of `b` is written only after the same one of `a`. With the array's word that a group is
/// one instant, `b` is never ahead.
fn one_instant_for_all_volumes(bed: &Bed<'_>) {
    if !good(bed.array().info()).capabilities.group_snapshot {
        return;
    }
    bed.volume("a", &[]);
    bed.volume("b", &[]);
    let (stop, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    let ids: Vec<SnapshotId> = (0..20).map(|_| SnapshotId::new()).collect();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut a, mut b) = (Disk::open(bed.array(), "a"), Disk::open(bed.array(), "b"));
            for round in 1..=u8::MAX {
                if stop.load(Ordering::SeqCst) {
                    break;
                }
                (0..16).for_each(|block| (a.fill(block, round), b.fill(block, round)).0);
                rounds.store(u64::from(round), Ordering::SeqCst);
            }
        });
        for id in &ids {
            let seen = rounds.load(Ordering::SeqCst);
            good(bed.array().snapshot(&["a", "b"], *id));
            while rounds.load(Ordering::SeqCst) == seen && seen < u64::from(u8::MAX) {
                std::thread::yield_now();
            }
        }
        stop.store(true, Ordering::SeqCst);
    });
    for id in ids {
        let content = |volume: &str| Disk::open(bed.array(), &format!("{volume}@{id}")).content();
        let (a, b) = (content("a"), content("b"));
        let at: Vec<(u8, u8)> = (0..16).map(|block| (a[block * BLOCK], b[block * BLOCK])).collect();
        assert!(at.iter().all(|(a, b)| a >= b), "b is ahead of a: {at:?}");
        let late = at.windows(2).filter(|pair| pair[0].0 < pair[1].0 || pair[0].1 < pair[1].1).count();
        assert_eq!(late, 0, "a later block is newer: {at:?}");
        assert!(at.iter().filter(|(a, b)| a != b).count() <= 1, "more than one write in between: {at:?}");
    }
}

fn half_a_set_is_not_kept(bed: &Bed<'_>) {
    bed.volume("a", &[(0, 1)]);
    bed.volume("b", &[(0, 1)]);
    let id = SnapshotId::new();
    good(bed.array().snapshot(&["a"], id));
    bed.fill("a", &[(0, 2)]);
    bed.fill("b", &[(0, 2)]);
    good(bed.array().snapshot(&["a", "b"], id));
    bed.check(&format!("a@{id}"), &[(0, 2)]);
    bed.check(&format!("b@{id}"), &[(0, 2)]);
    let other = SnapshotId::new();
    refused(bed.array().snapshot(&["a", "nobody"], other), FaultKind::NotFound, "nobody");
    assert!(!good(bed.array().has_snapshot("a", other)));
}

fn any_snapshot_can_go(bed: &Bed<'_>) {
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        bed.volume("v", &[(0, 1)]);
        let mut ids = Vec::new();
        for round in 2..5 {
            ids.push(bed.snapshot("v"));
            bed.fill("v", &[(0, round), (usize::from(round), round)]);
        }
        let states: [&[(usize, u8)]; 3] = [&[(0, 1)], &[(0, 2), (2, 2)], &[(0, 3), (2, 2), (3, 3)]];
        let mut left: Vec<usize> = vec![0, 1, 2];
        for gone in order {
            good(bed.array().delete_snapshot("v", ids[gone]));
            left.retain(|index| *index != gone);
            for index in &left {
                bed.check(&format!("v@{}", ids[*index]), states[*index]);
            }
            bed.check("v", &[(0, 4), (2, 2), (3, 3), (4, 4)]);
        }
        good(bed.array().delete("v"));
    }
}

fn revert(bed: &Bed<'_>) {
    bed.volume("v", &[(0, 1)]);
    let first = bed.snapshot("v");
    bed.fill("v", &[(0, 2)]);
    let second = bed.snapshot("v");
    bed.fill("v", &[(0, 3)]);
    good(bed.array().revert("v", first));
    bed.check("v", &[(0, 1)]);
    bed.fill("v", &[(1, 9)]);
    let branch = bed.snapshot("v");
    good(bed.array().revert("v", second));
    bed.check("v", &[(0, 2)]);
    bed.check(&format!("v@{branch}"), &[(0, 1), (1, 9)]);
    good(bed.array().delete_snapshot("v", second));
    good(bed.array().revert("v", branch));
    bed.check("v", &[(0, 1), (1, 9)]);
}

fn clones_are_independent(bed: &Bed<'_>) {
    let array = bed.array();
    for (source_first, snapshot_first) in [(false, false), (false, true), (true, false), (true, true)] {
        bed.volume("v", &[(0, 1)]);
        let id = bed.snapshot("v");
        let large = SIZE as u64 * 2;
        assert_eq!(good(array.create("c", &clone_of("v", id, Some(large)))).size, Bytes(large));
        good(array.create("d", &clone_of("v", id, None)));
        bed.fill("c", &[(1, 5)]);
        bed.fill("v", &[(0, 9)]);
        bed.check("d", &[(0, 1)]);
        if snapshot_first {
            good(array.delete_snapshot("v", id));
        }
        let (gone, stays) = if source_first { ("v", "c") } else { ("c", "v") };
        good(array.delete(gone));
        bed.check("d", &[(0, 1)]);
        bed.check(stays, if source_first { &[(0, 1), (1, 5)] } else { &[(0, 9)] });
        let (_, _) = (good(array.delete(stays)), good(array.delete("d")));
    }
    refused(array.create("e", &clone_of("v", SnapshotId::new(), None)), FaultKind::NotFound, "v");
}

fn what_is_in_use_stays(bed: &Bed<'_>) {
    let array = bed.array();
    bed.volume("v", &[(0, 1)]);
    let id = bed.snapshot("v");
    let mut disk = Disk::open(array, "v");
    refused(array.delete("v"), FaultKind::Busy, "v");
    refused(array.revert("v", id), FaultKind::Busy, "v");
    let smaller = ResizeVolume { size: Bytes(SIZE as u64 / 2), shrink: true };
    refused(array.resize("v", &smaller), FaultKind::Busy, "v");
    let larger = ResizeVolume { size: Bytes(SIZE as u64 * 2), shrink: false };
    good(array.resize("v", &larger));
    disk.fill(0, 2);
    good(array.snapshot(&["v"], SnapshotId::new()));
    good(array.create("c", &clone_of("v", id, None)));
    drop(disk);
    refused(array.resize("v", &ResizeVolume { shrink: false, ..smaller }), FaultKind::Invalid, "v");
    good(array.resize("v", &smaller));
    good(array.revert("v", id));
    good(array.delete("v"));
    bed.check("c", &[(0, 1)]);
}

fn differences(bed: &Bed<'_>) {
    bed.volume("v", &[(0, 1), (2, 1), (200, 1)]);
    let from = bed.snapshot("v");
    bed.fill("v", &[(2, 2), (3, 2), (100, 2)]);
    let to = bed.snapshot("v");
    let diff = |from: Option<SnapshotId>, after: usize, limit: usize| -> Vec<(usize, usize)> {
        let from = from.map(|from| ("v", from));
        let extents = good(bed.array().diff(from, ("v", to), Bytes((after * BLOCK) as u64), limit));
        let blocks = |bytes: Bytes| bytes.0 as usize / BLOCK;
        extents.iter().map(|extent| (blocks(extent.offset), blocks(extent.length))).collect()
    };
    assert_eq!(diff(Some(from), 0, 100), [(2, 2), (100, 1)]);
    assert_eq!(diff(Some(from), 0, 1), [(2, 2)]);
    assert_eq!(diff(Some(from), 4, 100), [(100, 1)]);
    assert_eq!(diff(None, 0, 100), [(0, 1), (2, 2), (100, 1), (200, 1)]);
}

fn space(bed: &Bed<'_>) {
    let array = bed.array();
    bed.volume("v", &[(0, 1), (1, 1)]);
    let first = bed.snapshot("v");
    bed.fill("v", &[(1, 2), (2, 2)]);
    let second = bed.snapshot("v");
    bed.fill("v", &[(2, 3)]);
    let blocks = |count: u64| Bytes(count * BLOCK as u64);
    let check = |snapshot: Option<SnapshotId>, referenced: u64, unique: u64| {
        let space = good(array.space("v", snapshot));
        assert_eq!((space.referenced, space.unique), (blocks(referenced), blocks(unique)), "{snapshot:?}");
    };
    check(Some(first), 2, 1);
    check(Some(second), 3, 1);
    check(None, 3, 1);
    let free = |doomed: &[(&str, Option<SnapshotId>)]| good(array.would_free(doomed));
    assert_eq!(free(&[("v", Some(first))]), blocks(1));
    assert_eq!(free(&[("v", Some(first)), ("v", Some(second))]), blocks(2));
    assert_eq!(free(&[("v", Some(second)), ("v", Some(second))]), blocks(1));
    assert_eq!(free(&[("v", None)]), blocks(5));
    good(array.create("c", &clone_of("v", second, None)));
    assert_eq!(free(&[("v", None)]), blocks(2), "the clone still needs what was at its snapshot");
}

#[cfg(test)]
mod tests {
    use super::super::fake::{FakeArray, FakeOptions};
    use super::super::{Engine, EngineOptions};
    use super::*;
    use crate::life::Life;

    #[test]
    fn the_engine_conforms() {
        suite(&|dir| {
            let pool = dir.join("pool.kf");
            let options = EngineOptions { pool, create: Some(Bytes::mib(256)), cache: Bytes::mib(16) };
            Arc::new(Engine::open("a", &options, Life::new()).unwrap())
        });
    }

    #[test]
    fn the_fake_conforms() {
        for group_snapshot in [true, false] {
            let options = FakeOptions { group_snapshot, ..FakeOptions::default() };
            suite(&|dir| Arc::new(FakeArray::open("a", &dir.join("a"), &options, Life::new()).unwrap()));
        }
    }
}
