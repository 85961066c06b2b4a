//! Calls of a job to its host that are lost, and answers that are.

use std::collections::HashMap;

/// What is lost of one run of a job, for longer than the client's patience. The next call is lost too, whatever it is: it may be
/// one that a job makes only after a loss.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Loss {
    /// The call, as [`World::calls`](super::World::calls) names it.
    pub call: String,
    /// How many of that name there have been with it.
    pub nth: usize,
    /// The call has its effect, and its answer is lost.
    pub answer: bool,
}

/// All that can be lost of these calls but the first ones.
pub(super) fn losses(calls: &[String], first: usize) -> impl Iterator<Item = Loss> {
    let mut counts: HashMap<&str, usize> = HashMap::new();
    let all = calls.iter().flat_map(move |call| {
        let count = counts.entry(call).or_default();
        *count += 1;
        let nth = *count;
        [false, true].map(|answer| Loss { call: call.clone(), nth, answer })
    });
    all.skip(first * 2)
}

impl std::fmt::Display for Loss {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let what = if self.answer { "the answer to " } else { "" };
        write!(f, "{what}call {} of {} is lost, and the next call", self.nth, self.call)
    }
}
