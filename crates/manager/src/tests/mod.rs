//! The manager with a real agent in this process, whose arrays and machines are fakes.

mod chance;
mod contents;
mod dry_runs;
mod image;
mod kinds;
mod leftovers;
mod made;
mod recovery;
mod refusals;
mod scale;
mod scenario;
pub(crate) mod site;
mod sources;
mod stuck;
mod tree;
