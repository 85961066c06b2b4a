//! The arrays of this agent, by the names in its configuration.

use std::collections::BTreeMap;
use std::sync::Arc;

use keyframe_agent_api::{FaultKind, VolumeRef};

use super::{Array, check_name};
use crate::Result;
use crate::fault::fault;

/// Some volumes of one array.
pub type OnArray<'a> = (Arc<dyn Array>, Vec<&'a str>);

/// Arrays by name.
#[derive(Clone, Default)]
pub struct Arrays(BTreeMap<String, Arc<dyn Array>>);

impl Arrays {
    /// From pairs of a name and an array; the last of a name counts.
    pub fn new(arrays: impl IntoIterator<Item = (String, Arc<dyn Array>)>) -> Arrays {
        Arrays(arrays.into_iter().collect())
    }

    /// One array.
    pub fn get(&self, name: &str) -> Result<&Arc<dyn Array>> {
        let known = || self.0.keys().cloned().collect::<Vec<_>>().join(", ");
        self.0.get(name).ok_or_else(|| fault(FaultKind::NotFound, format!("no array {name:?}; there are: {}", known())))
    }

    /// The array of a volume whose name is sound.
    pub fn of<'a>(&'a self, volume: &VolumeRef) -> Result<&'a dyn Array> {
        check_name("volume", &volume.volume)?;
        self.get(&volume.array).map(|array| &**array)
    }

    /// All, in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Arc<dyn Array>)> {
        self.0.iter().map(|(name, array)| (name.as_str(), array))
    }

    /// Volumes sorted by the array they lie on; refuses unknown arrays, unsound names and a volume named twice.
    pub fn sort<'a>(&self, volumes: &'a [VolumeRef]) -> Result<Vec<OnArray<'a>>> {
        let mut sorted: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for volume in volumes {
            self.of(volume)?;
            let names = sorted.entry(&volume.array).or_default();
            if names.contains(&volume.volume.as_str()) {
                return Err(fault(FaultKind::Invalid, format!("volume {volume} is named twice")));
            }
            names.push(&volume.volume);
        }
        sorted.into_iter().map(|(array, names)| Ok((Arc::clone(self.get(array)?), names))).collect()
    }
}
