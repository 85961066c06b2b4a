//! Chance that can be had again: the same seed throws the same.

use std::time::Duration;

use keyframe_agent_api::FaultKind;

/// What is drawn for a call of a driver.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fate {
    /// Nothing goes wrong.
    Fine,
    /// It takes longer.
    Slow(Duration),
    /// It fails; whether it has had its effect by then.
    Fail(bool, FaultKind),
    /// The agent dies; whether the call has had its effect by then.
    Die(bool),
}

/// What a driver fails with that tells nothing untrue of what is there.
const KINDS: [FaultKind; 4] = [FaultKind::Internal, FaultKind::Deadline, FaultKind::NoSpace, FaultKind::Busy];

/// Dice (SplitMix64: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Dice(u64);

impl Dice {
    /// Those of a seed.
    pub fn new(seed: u64) -> Dice {
        Dice(seed)
    }

    /// Any number; a seed, for example.
    pub fn throw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below that one, which is not 0.
    pub fn below(&mut self, most: usize) -> usize {
        usize::try_from(self.throw() % most as u64).unwrap_or(0)
    }

    /// One of these, unless there are none.
    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> Option<&'a T> {
        if of.is_empty() { None } else { of.get(self.below(of.len())) }
    }

    /// One call of so many meets with something, and one of eight of those with a death.
    pub(crate) fn fate(&mut self, one_of: usize) -> Fate {
        if self.below(one_of.max(1)) > 0 {
            return Fate::Fine;
        }
        let after = self.below(2) == 1;
        match self.below(8) {
            0 => Fate::Die(after),
            1 => Fate::Slow(Duration::from_millis(1 + self.throw() % 20)),
            kind => Fate::Fail(after, KINDS[kind % KINDS.len()]),
        }
    }
}
