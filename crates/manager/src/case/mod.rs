//! The use cases: one file for each resource. Each admits the caller, asks the model, and orders a job or changes the
//! catalog.

mod build;
mod clone;
mod disk;
mod host;
mod image;
mod job;
mod page;
mod plug;
mod snapshot;
mod template;
mod tree;
mod vm;
