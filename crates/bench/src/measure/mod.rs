//! The measurements, one file each. What each is held to comes from the design of the engine, "Numbers it is held to".

mod aged;
mod amplification;
mod durable;
mod hold;
mod manifold;
mod nbd;
mod raw;
mod recovery;
mod reflink;
mod versions;

use std::path::PathBuf;

use anyhow::Result;

use crate::figure::{Figure, Unit};
use crate::place::Place;
use crate::plan::Plan;
use crate::report::Report;

/// What every measurement needs.
pub(crate) struct Bench<'a> {
    pub(crate) place: &'a Place,
    pub(crate) plan: Plan,
    pub(crate) keyframe: PathBuf,
}

/// One measurement.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) run: fn(&Bench, &mut Report) -> Result<()>,
}

/// All measurements, in the order in which they run.
pub(crate) const CASES: &[Case] = &[
    Case { name: "raw", about: "In process against fio and io_uring on the raw file, 4 KiB at random", run: raw::run },
    Case { name: "nbd", about: "Through NBD with one client (fio), 4 KiB at random, 32 in flight", run: nbd::run },
    Case {
        name: "manifold",
        about: "A volume with many snapshots against one without, 4 KiB at random",
        run: manifold::run,
    },
    Case { name: "hold", about: "A snapshot of a volume that is being written", run: hold::run },
    Case { name: "reflink", about: "The same by XFS reflink of a fragmented file", run: reflink::run },
    Case { name: "durable", about: "Every write durable before the next", run: durable::run },
    Case { name: "aged", about: "Sequential reads after every block was overwritten at random, twice", run: aged::run },
    Case {
        name: "amplify",
        about: "Bytes written to the device for the first writes after a snapshot",
        run: amplification::run,
    },
    Case { name: "versions", about: "Cloning and deleting", run: versions::run },
    Case { name: "recovery", about: "Opening after a crash", run: recovery::run },
];

/// A contender: one run of it gives one value.
type Contender<'a> = Box<dyn FnMut() -> Result<f64> + 'a>;

/// Runs contenders in turn, once to warm up and then `rounds` times; their figures in the same order.
fn in_turn(rounds: usize, unit: Unit, mut contenders: Vec<Contender>) -> Result<Vec<Figure>> {
    let mut values = vec![Vec::new(); contenders.len()];
    for round in 0..=rounds {
        for (run, values) in contenders.iter_mut().zip(&mut values) {
            let value = run()?;
            if round > 0 {
                values.push(value);
            }
        }
    }
    Ok(values.into_iter().map(|values| Figure::new(unit, values)).collect())
}

fn side(write: bool) -> &'static str {
    if write { "write" } else { "read" }
}
