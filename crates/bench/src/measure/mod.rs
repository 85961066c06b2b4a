//! The measurements, one file each.

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
mod vm;

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

impl Case {
    /// `vm` means all whose names begin with `vm-`.
    pub(crate) fn is_of(&self, name: &str) -> bool {
        self.name == name || self.name.strip_prefix(name).is_some_and(|rest| rest.starts_with('-'))
    }
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
    Case { name: "vm-disks", about: "A snapshot of a running machine's disks", run: vm::disks::run },
    Case {
        name: "vm-memory",
        about: "Snapshots with memory of a running machine, applied and forked",
        run: vm::memory::run,
    },
    Case { name: "vm-clones", about: "A hundred thin clones of a template", run: vm::clones::run },
    Case { name: "vm-catalog", about: "A manager that knows many snapshots", run: vm::catalog::run },
    Case {
        name: "vm-libvirt",
        about: "The same guest under Keyframe and under libvirt with qcow2",
        run: vm::libvirt::run,
    },
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
