//! The power fails at any write or sync of any operation, and again during recovery: what was durable is there, nothing is mixed.

mod support;

use keyframe_engine::PlantedBug;
use support::{
    crash::{life, turns},
    env,
};

/// So many tests share the seeds, for they may run beside each other.
const SHARES: u64 = 4;

fn lives(share: u64) {
    let first = env("KEYFRAME_SEED", 1);
    for seed in (first..first + env("KEYFRAME_SEEDS", 2000)).filter(|seed| seed % SHARES == share) {
        println!("seed {seed}");
        life(seed, PlantedBug::None);
    }
}

#[test]
fn a_power_failure_loses_nothing_durable_0() {
    lives(0);
}

#[test]
fn a_power_failure_loses_nothing_durable_1() {
    lives(1);
}

#[test]
fn a_power_failure_loses_nothing_durable_2() {
    lives(2);
}

#[test]
fn a_power_failure_loses_nothing_durable_3() {
    lives(3);
}

#[test]
fn a_pool_whose_free_space_was_used_many_times_over_comes_back() {
    for seed in 1..=env("KEYFRAME_ROUNDS", 6) {
        println!("seed {seed}");
        turns(seed, PlantedBug::None);
    }
}
