//! Snapshots of two exports while clients write to both: with gates each is of one instant, without them it is not, and
//! no write is ever forgotten. Clients write n to A, wait for the answer, write n to B: B must never be ahead.

#![expect(clippy::unwrap_used, reason = "a test helper that fails, fails its test")]

mod common;

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use common::{Client, Fixture, READ, WRITE, request};
use keyframe_engine::{Done, Op};
use keyframe_nbd::gate::{GateError, Gates};
use keyframe_nbd::memory::{Memory, MemoryDevice, MemoryExport, MemoryQueue};
use keyframe_nbd::{Backend, Config, Device, Export, Gated, OpenError, Peer, Queue};

const NAMES: [&str; 3] = ["a", "b", "c"];
/// Longer than clients wait for an answer: a write that is forgotten fails its test before its hold ends by itself.
const LONG: Duration = Duration::from_secs(90);

/// Memory that counts the writes which are submitted to an export while its flag is up.
#[derive(Clone)]
struct Watched {
    memory: Memory,
    forbidden: [Arc<AtomicBool>; 3],
    violations: Arc<AtomicU64>,
}

struct WatchedDevice {
    device: MemoryDevice,
    forbidden: Arc<AtomicBool>,
}

struct WatchedQueue {
    queue: MemoryQueue,
    violations: Arc<AtomicU64>,
}

impl Watched {
    fn new() -> Watched {
        Watched {
            memory: Memory::new(NAMES.map(|name| MemoryExport::new(name, 1 << 20))),
            forbidden: Default::default(),
            violations: Arc::default(),
        }
    }

    fn forbid(&self, which: &[usize], forbidden: bool) {
        which.iter().for_each(|at| self.forbidden[*at].store(forbidden, Ordering::SeqCst));
    }
}

impl Backend for Watched {
    type Device = WatchedDevice;
    type Queue = WatchedQueue;

    fn list(&self) -> Vec<Export> {
        self.memory.list()
    }
    fn open(&self, name: &str, peer: Peer) -> Result<WatchedDevice, OpenError> {
        let device = self.memory.open(name, peer)?;
        let at = NAMES.iter().position(|known| *known == name).ok_or(OpenError::Unknown)?;
        Ok(WatchedDevice { device, forbidden: Arc::clone(&self.forbidden[at]) })
    }
    fn queue(&self) -> io::Result<WatchedQueue> {
        Ok(WatchedQueue { queue: self.memory.queue()?, violations: Arc::clone(&self.violations) })
    }
}

impl Device for WatchedDevice {
    fn size(&self) -> u64 {
        self.device.size()
    }
    fn read_only(&self) -> bool {
        self.device.read_only()
    }
    fn description(&self) -> &str {
        self.device.description()
    }
    fn multi_conn(&self) -> bool {
        self.device.multi_conn()
    }
}

impl Queue for WatchedQueue {
    type Device = WatchedDevice;

    fn submit(&mut self, device: &WatchedDevice, token: u64, op: Op) {
        if matches!(op, Op::Write { .. }) && device.forbidden.load(Ordering::SeqCst) {
            self.violations.fetch_add(1, Ordering::SeqCst);
        }
        self.queue.submit(&device.device, token, op);
    }
    fn poll(&mut self, out: &mut Vec<Done>) {
        self.queue.poll(out);
    }
    fn event_fd(&self) -> BorrowedFd<'_> {
        self.queue.event_fd()
    }
}

fn serve(workers: usize) -> (Fixture, Watched, Gates) {
    let (watched, gates) = (Watched::new(), Gates::new());
    let backend = Gated::new(watched.clone(), &gates);
    let config = Config { workers, ..Config::default() };
    (Fixture::serving(watched.memory.clone(), backend, &config), watched, gates)
}

fn write(client: &mut Client, value: u64) {
    let block: Vec<u8> = value.to_be_bytes().repeat(64);
    client.send(&[request(WRITE, value, 0, 512), block].concat());
    assert_eq!(client.reply(), (0, value));
}

fn read(client: &mut Client) -> u64 {
    client.send(&request(READ, 1, 0, 512));
    assert_eq!(client.reply(), (0, 1));
    u64::from_be_bytes(client.receive(512)[..8].try_into().unwrap())
}

/// Runs the dependent writers, cuts for a while, and returns how many cuts there were and how many had B ahead of A.
/// `hold` calls its argument, the cut, in which writes have time to happen between the halves.
fn cuts(hold: impl Fn(&Gates, &mut dyn FnMut())) -> (usize, usize) {
    let (fixture, _, gates) = serve(3);
    let end = Instant::now() + Duration::from_secs(2);
    let (mut all, mut bad) = (0, 0);
    std::thread::scope(|scope| {
        let (mut a, mut b) = (fixture.connect().export("a"), fixture.connect().export("b"));
        scope.spawn(move || {
            for value in 1.. {
                write(&mut a, value);
                write(&mut b, value);
                // Longer than the cuts, which may wait for writes.
                if Instant::now() > end + Duration::from_secs(1) {
                    return;
                }
            }
        });
        let (mut a, mut b) = (fixture.connect().export("a"), fixture.connect().export("b"));
        while Instant::now() < end {
            hold(&gates, &mut || {
                let first = read(&mut a);
                std::thread::sleep(Duration::from_micros(500));
                all += 1;
                bad += usize::from(read(&mut b) > first);
            });
        }
    });
    (all, bad)
}

#[test]
fn closed_gates_make_one_instant_of_two_exports() {
    let (all, bad) = cuts(|gates, cut| {
        let hold = gates.set(["a", "b"]).close(LONG).unwrap();
        cut();
        hold.open().unwrap();
    });
    assert!(all > 50, "{all} cuts");
    assert_eq!(bad, 0, "of {all}");
}

/// The machine resumes at some write: what it wrote before goes on, and the first write after waits for the cut.
#[test]
fn armed_gates_make_one_instant_of_two_exports() {
    let (all, bad) = cuts(|gates, cut| {
        let (wake, wakes) = mpsc::sync_channel(1);
        let hold = gates.set(["a", "b"]).arm(LONG, move || wake.try_send(()).unwrap_or(())).unwrap();
        for round in 0.. {
            wakes.recv_timeout(LONG).unwrap();
            let before = hold.mark();
            if round == 10 {
                break;
            }
            hold.pass(before).unwrap();
        }
        cut();
        assert!(hold.open().unwrap().writes > 0);
    });
    assert!(all > 50, "{all} cuts");
    assert_eq!(bad, 0, "of {all}");
}

#[test]
fn without_gates_there_is_no_instant() {
    let (all, bad) = cuts(|_, cut| cut());
    assert!(bad > all / 10, "the check does not find what it is for: {bad} of {all}");
}

#[test]
fn one_gate_of_two_is_not_enough() {
    let (all, bad) = cuts(|gates, cut| {
        let hold = gates.set(["a"]).close(LONG).unwrap();
        cut();
        hold.open().unwrap();
    });
    assert!(all > 50 && bad == 0, "B follows A, so holding A alone stops both: {bad} of {all}");
    let (all, bad) = cuts(|gates, cut| {
        let hold = gates.set(["c"]).close(LONG).unwrap();
        cut();
        hold.open().unwrap();
    });
    assert!(bad > all / 10, "holding another export alone stops neither: {bad} of {all}");
}

/// Holds a random set again and again, by closing or by arming; what it forbids while writes must not be submitted.
fn coordinate(watched: &Watched, gates: &Gates, seed: u64, end: Instant) -> u64 {
    let mut random = seed;
    let mut holds = 0;
    while Instant::now() < end {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let mask = (random >> 60) as usize % 7 + 1;
        let which: Vec<usize> = (0..3).filter(|at| mask >> at & 1 == 1).collect();
        let set = gates.set(which.iter().map(|at| NAMES[*at]));
        let armed = random >> 40 & 1 == 1;
        let hold = match if armed { set.arm(LONG, || {}) } else { set.close(LONG) } {
            Ok(hold) => hold,
            Err(GateError::Busy { .. }) => {
                std::thread::yield_now();
                continue;
            }
            Err(error) => panic!("{error}"),
        };
        holds += 1;
        for _ in 0..if armed { random >> 50 & 7 } else { 0 } {
            let before = hold.mark();
            std::thread::sleep(Duration::from_micros(random >> 30 & 127));
            hold.pass(before).unwrap();
        }
        if armed || random >> 41 & 1 == 1 {
            // What passed is in flight; when that has ended, nothing may follow.
            hold.drain(LONG).unwrap();
        }
        watched.forbid(&which, true);
        std::thread::sleep(Duration::from_micros(random >> 20 & 255));
        watched.forbid(&which, false);
        if random >> 42 & 1 == 1 {
            hold.open().unwrap();
        }
    }
    holds
}

/// Every client gets every answer, whatever the coordinators do, and no write slips through.
#[test]
fn storm() {
    let (fixture, watched, gates) = serve(3);
    let end = Instant::now() + Duration::from_secs(8);
    let (writes, holds) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for at in 0..12 {
            let mut client = fixture.connect().export(NAMES[at % 3]);
            let writes = &writes;
            scope.spawn(move || {
                let depth = [1, 3, 32, 200][at % 4];
                let offset = at as u64 * 4096;
                for round in 1.. {
                    let block = [round as u8; 512];
                    let request = |cookie| [&request(WRITE, cookie, offset, 512)[..], &block].concat();
                    client.send(&(0..depth).flat_map(request).collect::<Vec<u8>>());
                    (0..depth).for_each(|cookie| assert_eq!(client.reply(), (0, cookie)));
                    writes.fetch_add(depth, Ordering::SeqCst);
                    if Instant::now() > end {
                        return;
                    }
                }
            });
        }
        for seed in 1..=3 {
            let (watched, gates, holds) = (&watched, &gates, &holds);
            scope.spawn(move || holds.fetch_add(coordinate(watched, gates, seed << 32, end), Ordering::SeqCst));
        }
    });
    let (writes, holds) = (writes.into_inner(), holds.into_inner());
    assert_eq!(watched.violations.load(Ordering::SeqCst), 0, "of {writes} writes under {holds} holds");
    assert!(writes > 1000 && holds > 100, "{writes} writes, {holds} holds");
    fixture.idle();
}
