//! The manager: what `start` puts together and `stop` takes apart.

use crate::{Error, ErrorKind};

/// The manager of an installation. Cheap to share behind an `Arc`.
pub struct Manager {}

impl Manager {
    pub(crate) fn unfinished(&self, call: std::fmt::Arguments<'_>) -> Error {
        Error::new(ErrorKind::Unsupported, format!("this version cannot do that yet: {call}"))
    }
}
