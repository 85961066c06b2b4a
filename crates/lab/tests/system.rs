//! The demonstration with fewer snapshots, against the binary beside this test.

use anyhow::{Context, Result};
use keyframe_lab::demo;

#[test]
fn a_running_machine_is_snapshotted_cloned_wrecked_and_reverted() -> Result<()> {
    let test = std::env::current_exe()?;
    let keyframe = test.parent().and_then(|deps| deps.parent()).context("where are we?")?.join("keyframe");
    demo::run(&demo::Options { keyframe, snapshots: 12, file_systems_every: 4 })
}
