//! Where new identities come from.

use keyframe_model::agent::{DiskId, NicId};
use keyframe_model::hardware::Fresh;
use uuid::Uuid;

/// Random ones.
pub(crate) struct Random;

impl Fresh for Random {
    fn uuid(&mut self) -> Uuid {
        Uuid::new_v4()
    }

    fn disk(&mut self) -> DiskId {
        DiskId::new()
    }

    fn nic(&mut self) -> NicId {
        NicId::new()
    }

    fn address(&mut self) -> [u8; 6] {
        rand::random()
    }
}
