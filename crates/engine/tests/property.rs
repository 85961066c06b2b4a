//! Random operations on a pool and on the oracle: they must agree after each, and reclaiming must leave exactly what is in use.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use keyframe_engine::PlantedBug;
use support::driver::{Driver, compare, contents, expected, new_disk, open};
use support::{Rng, env};

fn run(seed: u64, operations: u64, planted: PlantedBug) {
    let disk = new_disk(seed);
    let mut driver = Driver::new(open(&disk, planted).unwrap(), Rng::new(seed));
    for n in 0..operations {
        let op = driver.choose();
        driver.run(&op).unwrap_or_else(|e| panic!("operation {n} {op:?}: {e}"));
        Driver::model(&mut driver.oracle, &op);
        if n % 10 == 9 {
            assert_eq!(contents(&driver.pool).unwrap(), expected(&driver.oracle), "after operation {n}: {op:?}");
        }
        if n % 60 == 59 {
            compare(&driver, &disk);
        }
    }
    compare(&driver, &disk);
    driver.pool.close().unwrap();
    let again = open(&disk, PlantedBug::None).unwrap();
    assert_eq!(again.replayed_groups(), 0, "a closed pool has nothing to replay");
    assert_eq!(contents(&again).unwrap(), expected(&driver.oracle));
}

#[test]
fn a_pool_is_what_the_oracle_says() {
    let first = env("KEYFRAME_SEED", 1);
    for seed in first..first + env("KEYFRAME_SEEDS", 40) {
        println!("seed {seed}");
        run(seed, 300, PlantedBug::None);
    }
}
