//! Words on standard error that nobody has to hear. Where a disk is full there is no room for a log either, and whoever read it
//! may be gone: `eprintln!` would end the thread that speaks, and with it a request, a network or a page server.

use std::fmt::Display;
use std::io::{Write, stderr};

/// Says a line, if that can be done.
pub fn say(line: impl Display) {
    // There is nowhere else to tell of it.
    writeln!(stderr(), "{line}").unwrap_or(());
}
