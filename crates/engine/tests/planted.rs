//! Bugs planted on purpose: the tests must notice each of them, or they prove nothing.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::panic::{AssertUnwindSafe, catch_unwind};

use keyframe_engine::PlantedBug;
use support::driver::{Driver, compare, new_disk, open};
use support::{
    Rng,
    crash::{life, turns},
};

/// Seeds tried before a bug counts as missed.
const PATIENCE: u64 = 300;

fn random_operations(seed: u64, planted: PlantedBug) {
    let disk = new_disk(seed);
    let mut driver = Driver::new(open(&disk, planted).unwrap(), Rng::new(seed));
    for _ in 0..6 {
        for _ in 0..50 {
            let op = driver.choose();
            driver.run(&op).unwrap();
            Driver::model(&mut driver.oracle, &op);
        }
        compare(&driver, &disk);
    }
}

fn caught_by(test: fn(u64, PlantedBug), planted: PlantedBug) {
    // The panics are what we want to see; their texts are not.
    std::panic::set_hook(Box::new(|_| {}));
    let seed = (1..=PATIENCE).find(|seed| catch_unwind(AssertUnwindSafe(|| test(*seed, planted))).is_err());
    drop(std::panic::take_hook());
    let seed = seed.unwrap_or_else(|| panic!("{planted:?} was not noticed in {PATIENCE} seeds"));
    println!("{planted:?} noticed with seed {seed}");
}

#[test]
fn every_planted_bug_is_noticed() {
    caught_by(random_operations, PlantedBug::SkipMergeCursor);
    caught_by(random_operations, PlantedBug::TrimTopDown);
    caught_by(life, PlantedBug::ReuseEarly);
    caught_by(life, PlantedBug::IgnoreChecksum);
    caught_by(turns, PlantedBug::ForgetTurn);
}
