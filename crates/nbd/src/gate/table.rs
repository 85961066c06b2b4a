//! Who holds which gate, who waits at it, and which workers know. Plain state under the registry's one lock: no thread, no
//! descriptor, no clock of its own.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The gate of one export name.
#[derive(Debug)]
pub(crate) struct Gate {
    /// Small, and nobody else's while this gate is in use.
    pub(crate) id: usize,
    pub(super) name: String,
    /// All that an open gate costs a write: one look at this.
    held: AtomicBool,
}

impl Gate {
    /// Whether writes have to ask. A worker that has acknowledged a hold sees it.
    pub(crate) fn is_held(&self) -> bool {
        self.held.load(Ordering::Acquire)
    }
}

/// What parked writes know of their hold.
pub(crate) struct Grip {
    id: u64,
    gates: Vec<Arc<Gate>>,
    /// Writes parked at a tick below this may go. All of them, once the hold is over.
    passed: AtomicU64,
    pub(crate) longest_wait: Duration,
    pub(crate) on_write: Option<Box<dyn Fn() + Send + Sync>>,
}

impl Grip {
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// The tick before which parked writes may go on.
    pub(crate) fn passed(&self) -> u64 {
        self.passed.load(Ordering::Acquire)
    }
}

/// Writes that were parked between two marks.
struct Group {
    tick: u64,
    since: Instant,
    count: usize,
}

struct Active {
    grip: Arc<Grip>,
    begun: Instant,
    tick: u64,
    parked: VecDeque<Group>,
    writes: u64,
    longest: Duration,
    /// Since which epoch somebody waits for the end of writes in flight.
    draining: Option<u64>,
    /// Workers without writes in flight to these gates, while draining.
    quiet: BTreeSet<u64>,
}

impl Active {
    /// Lets go of what was parked before a tick.
    fn pass(&mut self, before: u64, now: Instant) {
        while let Some(group) = self.parked.pop_front_if(|group| group.tick < before) {
            self.longest = self.longest.max(now.saturating_duration_since(group.since));
        }
        self.grip.passed.fetch_max(before, Ordering::Release);
    }
}

/// How a hold went.
pub(super) struct Summary {
    pub(super) held: Duration,
    pub(super) writes: u64,
    pub(super) longest_wait: Duration,
}

#[derive(Default)]
pub(crate) struct Table {
    gates: BTreeMap<String, Arc<Gate>>,
    free_ids: Vec<usize>,
    /// By gate.
    held_by: BTreeMap<usize, u64>,
    holds: BTreeMap<u64, Active>,
    /// Each worker, and the last epoch it has seen.
    workers: BTreeMap<u64, u64>,
    epoch: u64,
    last_id: u64,
}

impl Table {
    /// The gate of a name, made when first asked for and forgotten when nobody has it.
    pub(crate) fn gate(&mut self, name: &str) -> Arc<Gate> {
        if let Some(gate) = self.gates.get(name) {
            return Arc::clone(gate);
        }
        let free_ids = &mut self.free_ids;
        self.gates.retain(|_, gate| {
            let used = Arc::strong_count(gate) > 1;
            free_ids.extend((!used).then_some(gate.id));
            used
        });
        let id = free_ids.pop().unwrap_or(self.gates.len());
        let gate = Arc::new(Gate { id, name: name.to_owned(), held: AtomicBool::new(false) });
        self.gates.insert(name.to_owned(), Arc::clone(&gate));
        gate
    }

    fn id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    pub(super) fn join(&mut self) -> u64 {
        let id = self.id();
        self.workers.insert(id, self.epoch);
        id
    }

    pub(super) fn leave(&mut self, worker: u64) {
        self.workers.remove(&worker);
    }

    /// Parks writes from now on, or names the gate that somebody else holds. Returns the hold, and the epoch that workers
    /// have seen who know of it.
    pub(super) fn hold(
        &mut self,
        gates: &[Arc<Gate>],
        longest_wait: Duration,
        on_write: Option<Box<dyn Fn() + Send + Sync>>,
        now: Instant,
    ) -> Result<(u64, u64), String> {
        if let Some(gate) = gates.iter().find(|gate| self.held_by.contains_key(&gate.id)) {
            return Err(gate.name.clone());
        }
        let id = self.id();
        let grip = Grip { id, gates: gates.to_vec(), passed: AtomicU64::new(0), longest_wait, on_write };
        let active = Active {
            grip: Arc::new(grip),
            begun: now,
            tick: 0,
            parked: VecDeque::new(),
            writes: 0,
            longest: Duration::ZERO,
            draining: None,
            quiet: BTreeSet::new(),
        };
        self.holds.insert(id, active);
        for gate in gates {
            self.held_by.insert(gate.id, id);
            gate.held.store(true, Ordering::Release);
        }
        self.epoch += 1;
        Ok((id, self.epoch))
    }

    pub(super) fn has_hold(&self, hold: u64) -> bool {
        self.holds.contains_key(&hold)
    }

    pub(super) fn is_seen(&self, epoch: u64) -> bool {
        self.workers.values().all(|seen| *seen >= epoch)
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Parks a write, if its gate is still held. Returns at which tick.
    pub(crate) fn park(&mut self, gate: &Gate, now: Instant) -> Option<(Arc<Grip>, u64)> {
        let active = self.holds.get_mut(self.held_by.get(&gate.id)?)?;
        active.writes += 1;
        match active.parked.back_mut() {
            Some(group) if group.tick == active.tick => group.count += 1,
            _ => active.parked.push_back(Group { tick: active.tick, since: now, count: 1 }),
        }
        Some((Arc::clone(&active.grip), active.tick))
    }

    /// Begins a new tick: what is parked from now on is not before it.
    pub(super) fn mark(&mut self, hold: u64) -> Option<u64> {
        let active = self.holds.get_mut(&hold)?;
        active.tick += 1;
        Some(active.tick)
    }

    /// Whether the hold was there to let them go.
    pub(super) fn pass(&mut self, hold: u64, before: u64, now: Instant) -> bool {
        self.holds.get_mut(&hold).map(|active| active.pass(before, now)).is_some()
    }

    pub(super) fn waiting(&self, hold: u64) -> usize {
        self.holds.get(&hold).map_or(0, |active| active.parked.iter().map(|group| group.count).sum())
    }

    /// Opens the gates of a hold, once.
    pub(super) fn end(&mut self, hold: u64, now: Instant) -> Option<Summary> {
        let mut active = self.holds.remove(&hold)?;
        active.pass(u64::MAX, now);
        for gate in &active.grip.gates {
            self.held_by.remove(&gate.id);
            gate.held.store(false, Ordering::Release);
        }
        Some(Summary {
            held: now.saturating_duration_since(active.begun),
            writes: active.writes,
            longest_wait: active.longest,
        })
    }

    /// Whether the hold is there to be drained. What a worker says counts once it has seen the epoch that this begins: it
    /// may not have submitted yet what has passed.
    pub(super) fn drain(&mut self, hold: u64) -> bool {
        let Some(active) = self.holds.get_mut(&hold) else { return false };
        self.epoch += 1;
        active.draining = Some(self.epoch);
        active.quiet.clear();
        true
    }

    /// Whether the hold was still there.
    pub(super) fn end_drain(&mut self, hold: u64) -> bool {
        self.holds.get_mut(&hold).map(|active| active.draining = None).is_some()
    }

    pub(super) fn is_drained(&self, hold: u64) -> bool {
        let quiet = self.holds.get(&hold).map(|active| &active.quiet);
        quiet.is_none_or(|quiet| self.workers.keys().all(|worker| quiet.contains(worker)))
    }

    pub(super) fn see(&mut self, worker: u64, epoch: u64) {
        if let Some(seen) = self.workers.get_mut(&worker) {
            *seen = epoch;
        }
    }

    /// A worker's writes in flight, by gate. Returns whether somebody waits for their end.
    pub(super) fn report(&mut self, worker: u64, in_flight: &[u32]) -> bool {
        let mut awaited = false;
        let seen = self.workers.get(&worker).copied();
        for active in self.holds.values_mut().filter(|active| active.draining.is_some() && active.draining <= seen) {
            let busy = |gate: &Arc<Gate>| in_flight.get(gate.id).is_some_and(|count| *count > 0);
            if active.grip.gates.iter().any(busy) {
                awaited = true;
            } else {
                active.quiet.insert(worker);
            }
        }
        awaited
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(1);

    #[test]
    fn marks_divide_what_is_parked() {
        let mut table = Table::default();
        let gate = table.gate("vm");
        let start = Instant::now();
        let after = |millis| start + Duration::from_millis(millis);
        assert!(table.park(&gate, start).is_none());
        let (hold, _) = table.hold(&[Arc::clone(&gate)], LONG, None, start).unwrap();
        assert!(gate.is_held());
        let (grip, first) = table.park(&gate, after(10)).unwrap();
        let (_, second) = table.park(&gate, after(20)).unwrap();
        let mark = table.mark(hold).unwrap();
        let (_, third) = table.park(&gate, after(30)).unwrap();
        assert_eq!(table.waiting(hold), 3);
        assert!(grip.passed() <= first);
        assert!(table.pass(hold, mark, after(50)));
        assert!(first < grip.passed() && second < grip.passed() && grip.passed() <= third);
        assert_eq!(table.waiting(hold), 1);
        let summary = table.end(hold, after(60)).unwrap();
        assert!(third < grip.passed() && !gate.is_held());
        let millis = |duration: Duration| duration.as_millis();
        assert_eq!((millis(summary.held), summary.writes, millis(summary.longest_wait)), (60, 3, 40));
        assert!(table.end(hold, after(70)).is_none() && !table.pass(hold, mark, after(70)));
        assert!(table.park(&gate, after(80)).is_none());
    }

    #[test]
    fn a_gate_nobody_has_is_forgotten_and_its_number_used_again() {
        let mut table = Table::default();
        let kept = table.gate("kept");
        for name in ["first", "second", "third"] {
            let gate = table.gate(name);
            assert_eq!(gate.id, 1, "{name}");
            assert!(Arc::ptr_eq(&gate, &table.gate(name)));
        }
        let (hold, _) = table.hold(&[table.gates["third"].clone()], LONG, None, Instant::now()).unwrap();
        assert_eq!(table.gate("fourth").id, 2, "a held gate is in use");
        table.end(hold, Instant::now());
        assert!(Arc::ptr_eq(&kept, &table.gate("kept")));
    }

    #[test]
    fn workers_say_that_they_know_and_that_they_are_done() {
        let mut table = Table::default();
        let (gate, other) = (table.gate("vm"), table.gate("other"));
        let workers = [table.join(), table.join()];
        let (hold, epoch) = table.hold(&[gate], LONG, None, Instant::now()).unwrap();
        assert!(!table.is_seen(epoch));
        workers.iter().for_each(|worker| table.see(*worker, epoch));
        assert!(table.is_seen(epoch));
        assert!(table.drain(hold));
        assert!(!table.report(workers[0], &[]), "what it says counts only when it has seen the drain");
        assert!(!table.is_drained(hold));
        let epoch = table.epoch();
        workers.iter().for_each(|worker| table.see(*worker, epoch));
        assert!(!table.report(workers[0], &[0, 7]), "writes to {} do not matter", other.name);
        assert!(table.report(workers[1], &[1]) && !table.is_drained(hold));
        assert!(!table.report(workers[1], &[0]) && table.is_drained(hold));
        let late = table.join();
        assert!(!table.is_drained(hold));
        table.leave(late);
        assert!(table.is_drained(hold) && table.end_drain(hold));
    }
}
