//! How far long work on a host is.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How far a work is: the filling of a volume from an image, the reading of a stored memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct WorkProgress {
    /// So much of `total`, in the work's own unit.
    pub done: u64,
    /// 0 if no work is under way, or while it is not known.
    pub total: u64,
}
