//! The manager with a real agent in this process, whose arrays and machines are fakes.

mod kinds;
mod recovery;
mod refusals;
mod scenario;
mod site;
mod tree;
