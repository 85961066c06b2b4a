//! Small acts on files.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::{Result, fault};

/// Only this user may open it.
pub(crate) fn set_private(path: &Path) -> Result<()> {
    std::fs::set_permissions(path, Permissions::from_mode(0o600))
        .map_err(|error| fault::of_io(format_args!("protect {}", path.display()), &error))
}
