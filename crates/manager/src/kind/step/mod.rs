//! Steps that several kinds of jobs have. Each does one thing to the world that can be repeated, and knows how to take it
//! back.

mod aside;
mod delete;
mod disk;
mod identity;
mod instant;
mod power;
mod volume;

use keyframe_model::agent::{InstantReport, MemoryInfo, Power, VmId};
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub(crate) use aside::{GiveUp, KeepMemory};
pub(crate) use delete::{DeleteInstants, DeleteVolumes, Forget};
pub(crate) use disk::{AddDisk, RemoveDisk, Resize, SetLinks};
pub(crate) use identity::{FixIdentities, NewGuest, SetClock, UNPLUGGED};
pub(crate) use instant::Instant;
pub(crate) use power::{Check, Pause, Reset, Resume, Start, Stop, forget};
pub(crate) use volume::{Make, Revert};

use crate::job::Outputs;
use crate::{Error, ErrorKind, Result};

/// What a step leaves for the job's end.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Output {
    /// An instant was taken.
    Instant(InstantReport),
    /// The memory of what was given up could not be stored, and why.
    Lost(String),
    /// What a machine does now.
    Power(Power),
    /// Volumes were made, of these sizes in bytes.
    Sizes(Vec<u64>),
    /// How a memory image is stored.
    Memory(MemoryInfo),
    /// What people should know.
    Notes(Vec<String>),
    /// Copied guests were told who they are.
    Told(Vec<Told>),
}

/// What came of telling a guest who it is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Told {
    /// Which machine.
    pub(crate) vm: VmId,
    /// What the guest does not know, for people.
    pub(crate) complaints: Vec<String>,
    /// Its cables, which were to be in, are out.
    pub(crate) unplugged: bool,
}

impl Output {
    pub(crate) fn value(&self) -> Result<Value> {
        serde_json::to_value(self).map_err(|e| Error {
            kind: ErrorKind::Internal,
            message: "cannot write down what a step did".to_owned(),
            source: Some(Box::new(e)),
        })
    }
}

/// What the first `steps` steps left, in their order.
pub(crate) fn outputs(outputs: &Outputs, steps: usize) -> Vec<Output> {
    let read = |index| outputs.raw(index).and_then(|value| serde_json::from_value(value.clone()).ok());
    (0..steps).filter_map(read).collect()
}

/// The last report of the instant that was taken: its memory may have come later.
pub(crate) fn report(all: &[Output]) -> Option<InstantReport> {
    all.iter().rev().find_map(|output| if let Output::Instant(report) = output { Some(report.clone()) } else { None })
}

/// Why the memory of what was given up is lost, if it is.
pub(crate) fn lost(all: &[Output]) -> Option<String> {
    all.iter().find_map(|output| if let Output::Lost(why) = output { Some(why.clone()) } else { None })
}

/// What the machine did last.
pub(crate) fn power(all: &[Output]) -> Option<Power> {
    all.iter().rev().find_map(|output| if let Output::Power(power) = output { Some(power.clone()) } else { None })
}

/// What people should know.
pub(crate) fn notes(all: &[Output]) -> Vec<String> {
    let notes = all.iter().filter_map(|output| match output {
        Output::Notes(notes) => Some(notes.clone()),
        Output::Told(told) => Some(told.iter().flat_map(|told| told.complaints.clone()).collect()),
        Output::Instant(_) | Output::Lost(_) | Output::Sizes(_) | Output::Memory(_) | Output::Power(_) => None,
    });
    notes.flatten().collect()
}
