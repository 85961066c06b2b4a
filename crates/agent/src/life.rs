//! Whether an agent may still touch the world. Tests end an agent's life at a chosen point; as far as arrays, machines and
//! files can tell, that is a `kill -9`: what had an effect before keeps it, nothing has one afterwards, clean-up included.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use keyframe_agent_api::{Fault, FaultKind};

use crate::Result;

/// One agent's life; clones are the same life.
#[derive(Clone, Default, Debug)]
pub struct Life(Arc<AtomicBool>);

impl Life {
    /// A life that has begun.
    pub fn new() -> Life {
        Life::default()
    }

    /// Ends it.
    pub fn end(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Whether it has ended.
    pub fn ended(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// [`FaultKind::Unreachable`] once it has ended.
    pub fn check(&self) -> Result<()> {
        if self.ended() { Err(Fault::new(FaultKind::Unreachable, "this agent was killed")) } else { Ok(()) }
    }
}
