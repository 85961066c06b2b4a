//! House rules that no compiler checks. The rules are in `tests/`, one file each; here is what they share.
//!
//! Nothing of the product is linked: the tree is read as text. A rule collects all offences before it fails, each with file,
//! line and the way out.

mod source;
mod tree;

pub use source::{Function, functions, modules};
pub use tree::{Kind, Tree};

/// What a rule found.
#[derive(Default)]
pub struct Offences(Vec<String>);

impl Offences {
    /// Notes an offence: where it is, what is wrong, and what to do about it.
    pub fn add(&mut self, at: impl std::fmt::Display, what: impl std::fmt::Display) {
        self.0.push(format!("{at}: {what}"));
    }

    /// Fails unless nothing was found.
    ///
    /// # Panics
    /// With the list of offences.
    pub fn none(mut self) {
        self.0.sort();
        assert!(self.0.is_empty(), "offences: {}\n  {}\n", self.0.len(), self.0.join("\n  "));
    }
}
