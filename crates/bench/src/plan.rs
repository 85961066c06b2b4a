//! How much of everything: three scales, and the sizes that can be set by hand.

use std::time::Duration;

use clap::Args;

/// How long a run may take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Scale {
    /// At most three minutes.
    Quick,
    /// At most twelve.
    Standard,
    /// As long as it takes.
    Full,
}

/// Sizes set by hand.
#[derive(Args)]
pub(crate) struct Sizes {
    /// Size of the measured volume
    #[arg(long, value_name = "MEBIBYTES")]
    volume: Option<u64>,
    /// Size of the pool; four volumes have to fit, with room
    #[arg(long, value_name = "MEBIBYTES")]
    pool: Option<u64>,
    /// Length of one timed run
    #[arg(long, value_name = "SECONDS")]
    seconds: Option<u64>,
    /// Runs of each contender, in turn
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    rounds: Option<u64>,
    /// Most RAM of a measured machine: 256, 1024 and 4096 are taken up to this
    #[arg(long, value_name = "MEBIBYTES", value_parser = clap::value_parser!(u64).range(256..))]
    memory: Option<u64>,
    /// Snapshots that a measured manager knows
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(500..))]
    snapshots: Option<u64>,
}

/// What is measured.
pub(crate) struct Plan {
    pub(crate) scale: Scale,
    /// Bytes.
    pub(crate) volume: u64,
    pub(crate) pool: u64,
    pub(crate) run: Duration,
    pub(crate) rounds: usize,
    /// Snapshots of a volume that has many.
    pub(crate) many: u64,
    /// Numbers of snapshots at which one more is taken.
    pub(crate) stages: &'static [u64],
    /// Clones of the golden image.
    pub(crate) clones: u64,
    /// Most RAM of a measured machine, in MiB.
    pub(crate) memory: u64,
    /// Runs of what is done to a machine.
    pub(crate) machine_rounds: usize,
    /// Snapshots that a manager knows.
    pub(crate) snapshots: usize,
}

impl Plan {
    pub(crate) fn new(scale: Scale, sizes: &Sizes) -> Plan {
        let (volume, pool, run, many, stages, clones): (u64, u64, u64, u64, &'static [u64], u64) = match scale {
            Scale::Quick => (384, 1920, 400, 1000, &[1, 1000], 500),
            Scale::Standard => (2048, 8192, 2000, 5000, &[1, 1000, 5000], 5000),
            Scale::Full => (2048, 10240, 10_000, 5000, &[1, 1000, 5000, 100_000], 5000),
        };
        let rounds = if scale == Scale::Full { 5 } else { 3 };
        let (memory, machine_rounds, snapshots) = match scale {
            Scale::Quick => (256, 3, 1000),
            Scale::Standard => (4096, 5, 10_000),
            Scale::Full => (4096, 15, 10_000),
        };
        Plan {
            scale,
            volume: sizes.volume.unwrap_or(volume) << 20,
            pool: sizes.pool.unwrap_or(pool) << 20,
            run: Duration::from_millis(sizes.seconds.map_or(run, |s| s * 1000)),
            rounds: sizes.rounds.map_or(rounds, |r| r as usize),
            many,
            stages,
            clones,
            memory: sizes.memory.unwrap_or(memory),
            machine_rounds: sizes.rounds.map_or(machine_rounds, |r| r as usize),
            snapshots: sizes.snapshots.map_or(snapshots, |s| s as usize),
        }
    }
}
