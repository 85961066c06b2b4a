//! The use cases: one file for each resource. Each checks the caller, asks the model, and orders a job or changes the catalog.

mod clone;
mod disk;
mod host;
mod job;
mod snapshot;
mod template;
mod vm;
