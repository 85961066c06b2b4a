//! What the pool looks like on its device. Everything here is a pure function between bytes and values; no I/O.
//!
//! The byte layout is described in `docs/format.md`; a test holds that page against these modules.

pub(crate) mod codec;
pub(crate) mod entry;
pub(crate) mod layout;
pub(crate) mod object;
pub(crate) mod record;
pub(crate) mod superblock;
