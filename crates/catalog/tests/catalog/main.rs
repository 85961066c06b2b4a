//! Every query, on SQLite and on a real PostgreSQL server.

#![expect(clippy::unwrap_used, reason = "a test fails where it unwraps")]

mod durability;
mod full;
mod inventory;
mod jobs;
mod large;
mod others;
mod races;
mod server;
mod snapshots;
mod vms;
mod volumes;
mod world;
