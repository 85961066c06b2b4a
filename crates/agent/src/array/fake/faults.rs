//! What goes wrong on purpose.

use std::sync::Arc;
use std::time::Duration;

use keyframe_agent_api::FaultKind;
use parking_lot::Mutex;

use crate::Result;
use crate::fault::fault;
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
    Die,
}

#[derive(Clone, Debug)]
struct Plan {
    call: String,
    /// Calls of that name until it happens; 1 is the next.
    left: u32,
    when: When,
    what: What,
}

#[derive(Default, Debug)]
struct State {
    plans: Vec<Plan>,
    dice: Option<(Dice, usize)>,
    slow: Duration,
    full: bool,
    endless: bool,
    calls: Vec<String>,
}

/// The faults of one array. Clones are the same.
#[derive(Clone, Default, Debug)]
pub struct Faults {
    state: Arc<Mutex<State>>,
    life: Life,
}

impl Faults {
    pub(super) fn new(life: Life) -> Faults {
        Faults { state: Arc::default(), life }
    }

    fn plan(&self, call: &str, nth: u32, when: When, what: What) {
        self.state.lock().plans.push(Plan { call: call.to_owned(), left: nth.max(1), when, what });
    }

    /// The `nth` call of that name from now on fails; `*` is any call.
    pub fn fail(&self, call: &str, nth: u32, when: When, kind: FaultKind) {
        self.plan(call, nth, when, What::Fail(kind));
    }

    /// At the `nth` call of that name from now on the agent dies; `*` is any call.
    pub fn die(&self, call: &str, nth: u32, when: When) {
        self.plan(call, nth, when, What::Die);
    }

    /// From now on chance decides: one call of so many fails before or after its effect, is slow, or the agent dies there.
    pub fn seeded(&self, dice: Dice, one_of: usize) {
        self.state.lock().dice = Some((dice, one_of));
    }

    /// Every call takes so much longer.
    pub fn slow(&self, by: Duration) {
        self.state.lock().slow = by;
    }

    /// Whether there is no space for anything new.
    pub fn full(&self, full: bool) {
        self.state.lock().full = full;
    }

    /// Whether reading an image ends only when it is called off.
    pub fn endless_images(&self, endless: bool) {
        self.state.lock().endless = endless;
    }

    /// The calls so far, in order.
    pub fn calls(&self) -> Vec<String> {
        self.state.lock().calls.clone()
    }

    /// Forgets all plans, and chance.
    pub fn clear(&self) {
        let mut state = self.state.lock();
        state.plans.clear();
        state.dice = None;
        state.slow = Duration::ZERO;
        state.full = false;
        state.endless = false;
    }

    pub(super) fn is_full(&self) -> bool {
        self.state.lock().full
    }

    pub(super) fn are_images_endless(&self) -> bool {
        self.alive() && self.state.lock().endless
    }

    pub(super) fn alive(&self) -> bool {
        !self.life.ended()
    }

    /// Runs one call with what is planned for it.
    pub(super) fn around<T>(&self, call: &str, body: impl FnOnce() -> Result<T>) -> Result<T> {
        let (due, slow) = self.arrive(call);
        std::thread::sleep(slow);
        self.meet(call, &due, When::Before)?;
        self.life.check()?;
        let done = body()?;
        self.meet(call, &due, When::After)?;
        // An answer does not reach the dead.
        self.life.check()?;
        Ok(done)
    }

    fn arrive(&self, call: &str) -> (Vec<Plan>, Duration) {
        let mut state = self.state.lock();
        if !self.life.ended() {
            state.calls.push(call.to_owned());
        }
        let mut due = Vec::new();
        state.plans.retain_mut(|plan| {
            if plan.call != call && plan.call != "*" {
                return true;
            }
            plan.left -= 1;
            if plan.left == 0 {
                due.push(plan.clone());
            }
            plan.left > 0
        });
        let when = |after| if after { When::After } else { When::Before };
        let mut draw = |after, what| due.push(Plan { call: call.to_owned(), left: 0, when: when(after), what });
        let mut slow = state.slow;
        match state.dice.as_mut().map_or(Fate::Fine, |(dice, one_of)| dice.fate(*one_of)) {
            Fate::Fine => {}
            Fate::Slow(by) => slow += by,
            Fate::Fail(after, kind) => draw(after, What::Fail(kind)),
            Fate::Die(after) => draw(after, What::Die),
        }
        (due, slow)
    }

    fn meet(&self, call: &str, due: &[Plan], when: When) -> Result<()> {
        for plan in due.iter().filter(|plan| plan.when == when) {
            match plan.what {
                What::Fail(kind) => return Err(fault(kind, format!("{call}: a planned failure"))),
                What::Die => self.life.end(),
            }
        }
        Ok(())
    }
}
