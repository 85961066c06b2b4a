//! A machine that is nothing but a state, a client for exports, and a client for calls.

#![expect(dead_code, reason = "each test uses a part of it")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

pub(crate) mod call;
pub(crate) mod export;
pub(crate) mod stub;

use std::path::Path;
use std::sync::Arc;

use keyframe_agent::array::Array;
use keyframe_agent::testing::{TestAgent, TestOptions};
use keyframe_agent_api::{
    Bytes, CreateVolume, Generation, Micros, Quiesce, TakeInstant, VmId, VolumeRef, VolumeSource,
};

use self::stub::Stub;

pub(crate) const BLOCK: usize = 4096;

pub(crate) fn volume(array: &str, name: &str) -> VolumeRef {
    VolumeRef { array: array.into(), volume: name.into() }
}

/// One volume on each of the two arrays.
pub(crate) fn pair() -> Vec<VolumeRef> {
    vec![volume("fake", "a"), volume("fake2", "b")]
}

pub(crate) fn start(dir: &Path, stub: &Arc<Stub>) -> TestAgent {
    TestAgent::start(dir, stub.clone(), &TestOptions::default()).unwrap()
}

pub(crate) fn start_with_pair(dir: &Path, stub: &Arc<Stub>) -> TestAgent {
    let agent = start(dir, stub);
    for volume in pair() {
        let wish = CreateVolume { source: VolumeSource::Empty, size: Some(Bytes(16 * BLOCK as u64)) };
        agent.array(&volume.array).create(&volume.volume, &wish).unwrap();
    }
    agent
}

pub(crate) fn wish(vm: VmId, memory: bool) -> TakeInstant {
    TakeInstant {
        vm,
        generation: Generation(1),
        volumes: pair(),
        memory,
        quiesce: Quiesce::No,
        deadline: Micros(5_000_000),
    }
}
