//! Who has which console: one session for each machine, because a serial line has one reader. A second one is refused, or
//! takes over, as it wishes. Nothing of it is kept: an agent that ends closes the sessions that it relays.

use std::collections::HashMap;
use std::sync::Arc;

use keyframe_agent_api::{FaultKind, VmId};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::Result;
use crate::fault::fault;

/// The consoles that are open.
#[derive(Clone, Default)]
pub struct Consoles(Arc<Mutex<HashMap<VmId, Arc<CancellationToken>>>>);

/// A machine's console, until it is dropped.
pub struct Session {
    vm: VmId,
    taken: Arc<CancellationToken>,
    all: Consoles,
}

impl Consoles {
    /// The machine's console for one session, or [`FaultKind::Busy`] while another has it; one that is forced ends the other.
    pub fn open(&self, vm: VmId, force: bool) -> Result<Session> {
        let mut open = self.0.lock();
        if let Some(other) = open.get(&vm) {
            if !force {
                let why = format!("the console of machine {vm} is in use; end that session, or take it over by force");
                return Err(fault(FaultKind::Busy, why));
            }
            other.cancel();
        }
        let taken = Arc::new(CancellationToken::new());
        open.insert(vm, Arc::clone(&taken));
        Ok(Session { vm, taken, all: self.clone() })
    }
}

impl Session {
    /// Returns when another session has taken over.
    pub async fn lost(&self) {
        self.taken.cancelled().await;
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let mut open = self.all.0.lock();
        if open.get(&self.vm).is_some_and(|current| Arc::ptr_eq(current, &self.taken)) {
            open.remove(&self.vm);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_session_has_a_console_until_it_ends_or_is_overruled() {
        let (consoles, vm) = (Consoles::default(), VmId::new());
        let first = consoles.open(vm, false).unwrap();
        assert_eq!(consoles.open(vm, false).err().unwrap().kind, FaultKind::Busy);
        let _other = consoles.open(VmId::new(), false).unwrap();
        let second = consoles.open(vm, true).unwrap();
        assert!(first.taken.is_cancelled() && !second.taken.is_cancelled());
        drop(first);
        assert!(consoles.open(vm, false).is_err(), "the end of the old session freed the new one's console");
        drop(second);
        consoles.open(vm, false).unwrap();
    }
}
