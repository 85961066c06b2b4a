//! What goes wrong on purpose.

use std::time::Duration;

use keyframe_agent_api::{Fault, FaultKind};
use parking_lot::{Condvar, Mutex};

use crate::Result;
use crate::hypervisor::Cancel;
use crate::life::Life;
use crate::testing::{Dice, Fate};

/// On which side of its effect a call goes wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum When {
    /// It has none.
    Before,
    /// It has had it.
    After,
}

#[derive(Clone, Debug)]
enum What {
    Fail(FaultKind),
    Hang,
    Die(Life),
}

#[derive(Clone, Debug)]
struct Plan {
    call: String,
    left: u32,
    when: When,
    what: What,
}

#[derive(Default)]
struct State {
    plans: Vec<Plan>,
    chance: Option<(Dice, usize, Life)>,
    slow: Duration,
    full: bool,
    calls: Vec<String>,
}

/// The faults of one driver. Calls go by the names of the trait's functions.
#[derive(Default)]
pub struct Faults {
    state: Mutex<State>,
    changed: Condvar,
}

/// How often a call that hangs asks whether it is cancelled.
const ASK: Duration = Duration::from_millis(2);

impl Faults {
    /// The `nth` call of that name from now on fails; 1 is the next, `*` is any call.
    pub fn fail(&self, call: &str, nth: u32, when: When, kind: FaultKind) {
        self.plan(call, nth, when, What::Fail(kind));
    }

    /// The `nth` call of that name from now on hangs until it is cancelled, or until [`clear`](Faults::clear).
    pub fn hang(&self, call: &str, nth: u32, when: When) {
        self.plan(call, nth, when, What::Hang);
    }

    /// From now on chance decides: one call of so many fails before or after its effect, is slow, or the agent whose life that
    /// is dies there.
    pub fn seeded(&self, dice: Dice, one_of: usize, life: &Life) {
        self.state.lock().chance = Some((dice, one_of, life.clone()));
    }

    /// Every call takes so much longer.
    pub fn slow(&self, by: Duration) {
        self.state.lock().slow = by;
    }

    /// Whether there is no space for memory images.
    pub fn full(&self, full: bool) {
        self.state.lock().full = full;
    }

    /// The calls so far, in order.
    pub fn calls(&self) -> Vec<String> {
        self.state.lock().calls.clone()
    }

    /// Forgets all plans, and chance; what hangs fails.
    pub fn clear(&self) {
        let mut state = self.state.lock();
        state.plans.clear();
        state.chance = None;
        state.slow = Duration::ZERO;
        state.full = false;
        self.changed.notify_all();
    }

    pub(super) fn is_full(&self) -> bool {
        self.state.lock().full
    }

    fn plan(&self, call: &str, nth: u32, when: When, what: What) {
        self.state.lock().plans.push(Plan { call: call.to_owned(), left: nth.max(1), when, what });
    }

    /// Runs one call with what is planned for it.
    pub(super) fn around<T>(
        &self,
        call: &str,
        cancel: Option<&dyn Cancel>,
        body: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let (due, slow) = {
            let mut state = self.state.lock();
            state.calls.push(call.to_owned());
            let mut due = Vec::new();
            state.plans.retain_mut(|plan| {
                let meant = plan.call == call || plan.call == "*";
                plan.left -= u32::from(meant);
                if meant && plan.left == 0 {
                    due.push(plan.clone());
                }
                plan.left > 0
            });
            let when = |after| if after { When::After } else { When::Before };
            let mut draw = |after, what| due.push(Plan { call: call.to_owned(), left: 0, when: when(after), what });
            let mut slow = state.slow;
            if let Some((dice, one_of, life)) = state.chance.as_mut() {
                match dice.fate(*one_of) {
                    Fate::Fine => {}
                    Fate::Slow(by) => slow += by,
                    Fate::Fail(after, kind) => draw(after, What::Fail(kind)),
                    Fate::Die(after) => draw(after, What::Die(life.clone())),
                }
            }
            (due, slow)
        };
        std::thread::sleep(slow);
        self.meet(call, &due, When::Before, cancel)?;
        let done = body()?;
        self.meet(call, &due, When::After, cancel)?;
        Ok(done)
    }

    fn meet(&self, call: &str, due: &[Plan], when: When, cancel: Option<&dyn Cancel>) -> Result<()> {
        match due.iter().find(|plan| plan.when == when).map(|plan| &plan.what) {
            Some(What::Fail(kind)) => Err(Fault::new(*kind, format!("{call}: a planned failure"))),
            Some(What::Hang) => Err(self.hung(call, cancel)),
            Some(What::Die(life)) => {
                life.end();
                life.check()
            }
            None => Ok(()),
        }
    }

    fn hung(&self, call: &str, cancel: Option<&dyn Cancel>) -> Fault {
        let mut state = self.state.lock();
        loop {
            if cancel.is_some_and(Cancel::cancelled) {
                return Fault::new(FaultKind::Deadline, format!("{call}: given up, as asked"));
            }
            if !self.changed.wait_for(&mut state, ASK).timed_out() {
                return Fault::new(FaultKind::Deadline, format!("{call}: hung"));
            }
        }
    }
}
