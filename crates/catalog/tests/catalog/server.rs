//! One PostgreSQL server for all tests of this process, and a database for each.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use keyframe_lab::postgres::Postgres;

/// The URL of a new, empty database.
pub(crate) fn new_database() -> String {
    static SERVER: OnceLock<Postgres> = OnceLock::new();
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let server = SERVER.get_or_init(|| Postgres::start().unwrap());
    server.create(&format!("test{}", NEXT.fetch_add(1, Ordering::SeqCst))).unwrap()
}
