//! Every query, on SQLite and on a real PostgreSQL server.

mod durability;
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
