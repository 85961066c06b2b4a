//! The obvious model: every version is a list of blocks, every block has an identity and eight stamped sectors.

use std::collections::{BTreeMap, BTreeSet};

/// Sectors in a block.
pub const SECTORS: usize = 8;

/// A stored block: who it is (copies share it), and the stamp of each sector. Stamp 0 reads as zeroes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Block {
    pub id: u64,
    pub stamps: [u64; SECTORS],
}

/// A version: `None` reads as zeroes and holds nothing.
pub type Map = Vec<Option<Block>>;

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Volume {
    pub head: Map,
    /// In creation order.
    pub snapshots: Vec<(String, Map)>,
}

impl Volume {
    pub fn snapshot(&self, name: &str) -> &Map {
        &self.snapshots.iter().find(|(n, _)| n == name).expect("oracle knows the snapshot").1
    }
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Oracle {
    pub volumes: BTreeMap<String, Volume>,
    pub next_id: u64,
}

impl Oracle {
    pub fn create(&mut self, name: &str, blocks: u64) {
        self.volumes.insert(name.into(), Volume { head: vec![None; blocks as usize], snapshots: vec![] });
    }

    pub fn head(&mut self, name: &str) -> &mut Map {
        &mut self.volumes.get_mut(name).expect("oracle knows the volume").head
    }

    /// Stamps sectors, making new blocks of all they touch.
    pub fn write(&mut self, name: &str, sector: u64, stamps: &[u64]) {
        let mut next = self.next_id;
        let head = self.head(name);
        let mut fresh = BTreeSet::new();
        for (i, stamp) in stamps.iter().enumerate() {
            let at = sector as usize + i;
            let block = head[at / SECTORS].get_or_insert(Block { id: 0, stamps: [0; SECTORS] });
            if fresh.insert(at / SECTORS) {
                next += 1;
                block.id = next;
            }
            block.stamps[at % SECTORS] = *stamp;
        }
        self.next_id = next;
    }

    pub fn punch(&mut self, name: &str, block: u64, count: u64) {
        self.head(name)[block as usize..(block + count) as usize].fill(None);
    }

    pub fn snapshot(&mut self, name: &str, snapshot: &str) {
        let volume = self.volumes.get_mut(name).expect("oracle knows the volume");
        volume.snapshots.push((snapshot.into(), volume.head.clone()));
    }

    pub fn clone_of(&mut self, source: &str, snapshot: &str, name: &str) {
        let head = self.volumes[source].snapshot(snapshot).clone();
        self.volumes.insert(name.into(), Volume { head, snapshots: vec![] });
    }

    pub fn revert(&mut self, name: &str, snapshot: &str, keep: Option<&str>) {
        if let Some(keep) = keep {
            self.snapshot(name, keep);
        }
        let volume = self.volumes.get_mut(name).expect("oracle knows the volume");
        volume.head = volume.snapshot(snapshot).clone();
    }

    pub fn delete_snapshot(&mut self, name: &str, snapshot: &str) {
        self.volumes.get_mut(name).expect("oracle knows the volume").snapshots.retain(|(n, _)| n != snapshot);
    }

    pub fn delete_volume(&mut self, name: &str) {
        self.volumes.remove(name);
    }

    pub fn resize(&mut self, name: &str, blocks: u64) {
        self.head(name).resize(blocks as usize, None);
    }

    /// All versions with the names the pool gives them.
    pub fn versions(&self) -> Vec<(String, &Map)> {
        let mut out = vec![];
        for (name, volume) in &self.volumes {
            out.push((name.clone(), &volume.head));
            out.extend(volume.snapshots.iter().map(|(s, map)| (format!("{name}@{s}"), map)));
        }
        out
    }

    fn users(&self) -> BTreeMap<u64, u32> {
        let mut users = BTreeMap::new();
        for (_, map) in self.versions() {
            for id in ids(map) {
                *users.entry(id).or_default() += 1;
            }
        }
        users
    }

    /// Different blocks that any version refers to.
    pub fn distinct(&self) -> u64 {
        self.users().len() as u64
    }

    /// Blocks that only these versions refer to.
    pub fn held_only_by(&self, names: &[String]) -> u64 {
        let (inside, outside): (Vec<_>, Vec<_>) =
            self.versions().into_iter().partition(|(name, _)| names.contains(name));
        let others: BTreeSet<u64> = outside.iter().flat_map(|(_, map)| ids(map)).collect();
        let ours: BTreeSet<u64> = inside.iter().flat_map(|(_, map)| ids(map)).collect();
        ours.difference(&others).count() as u64
    }

    /// For each version, how many of its blocks no other version refers to.
    pub fn unique(&self) -> Vec<(String, u64)> {
        let users = self.users();
        self.versions()
            .into_iter()
            .map(|(name, map)| (name, ids(map).iter().filter(|id| users[id] == 1).count() as u64))
            .collect()
    }
}

pub fn ids(map: &Map) -> BTreeSet<u64> {
    map.iter().flatten().map(|b| b.id).collect()
}
