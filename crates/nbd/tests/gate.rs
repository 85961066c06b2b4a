//! Writes held before the backend, as clients and coordinators see it.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{Client, DISC, FLUSH, Fixture, READ, SIZE, TRIM, WRITE, WRITE_ZEROES, request};
use keyframe_engine::{IoBuf, Op};
use keyframe_nbd::gate::{GateError, Gates};
use keyframe_nbd::memory::{Memory, MemoryExport};
use keyframe_nbd::{Backend, Config, Gated, Peer, Queue};

/// Longer than clients wait for an answer: a write that is forgotten fails its test before its hold ends by itself.
const LONG: Duration = Duration::from_secs(90);

fn memory() -> Memory {
    Memory::new(["vm", "other"].map(|name| MemoryExport::new(name, SIZE)))
}

fn serve(memory: Memory) -> (Fixture, Gates) {
    let gates = Gates::new();
    let config = Config { workers: 2, ..Config::default() };
    (Fixture::serving(memory.clone(), Gated::new(memory, &gates), &config), gates)
}

fn write(cookie: u64, offset: u64, byte: u8) -> Vec<u8> {
    [request(WRITE, cookie, offset, 512), vec![byte; 512]].concat()
}

fn read(client: &mut Client, offset: u64) -> u8 {
    client.send(&request(READ, 99, offset, 512));
    assert_eq!(client.reply(), (0, 99));
    let bytes = client.receive(512);
    assert!(bytes.iter().all(|byte| *byte == bytes[0]));
    bytes[0]
}

fn pause() {
    std::thread::sleep(Duration::from_millis(50));
}

#[test]
fn writes_of_every_kind_wait_and_all_else_passes() {
    let (fixture, gates) = serve(memory());
    let mut client = fixture.connect().export("vm");
    client.send(&write(1, 0, 7));
    assert_eq!(client.reply(), (0, 1));
    let hold = gates.set(["vm"]).close(LONG).unwrap();
    client.send(&write(2, 0, 8));
    client.send(&[request(TRIM, 3, 0, 4096), request(WRITE_ZEROES, 4, 0, 512)].concat());
    client.send(&request(FLUSH, 5, 0, 0));
    assert_eq!(client.reply(), (0, 5));
    assert_eq!(read(&mut client, 0), 7);
    assert!(client.is_silent());
    assert_eq!(hold.waiting(), 3);
    let mut other = fixture.connect().export("other");
    other.send(&write(1, 0, 1));
    assert_eq!(other.reply(), (0, 1), "the other export's gate is open");
    let mut late = fixture.connect().export("vm");
    late.send(&write(6, 512, 9));
    assert!(late.is_silent(), "connections opened later wait too");
    let held = hold.open().unwrap();
    assert_eq!([client.reply(), client.reply(), client.reply()], [(0, 2), (0, 3), (0, 4)]);
    assert_eq!(late.reply(), (0, 6));
    assert_eq!(read(&mut late, 512), 9);
    assert_eq!(held.writes, 4);
    assert!(held.longest_wait >= Duration::from_millis(200) && held.longest_wait <= held.held, "{held:?}");
    client.send(&write(7, 0, 1));
    assert_eq!(client.reply(), (0, 7));
    drop((client, other, late));
    fixture.idle();
}

#[test]
fn a_connection_keeps_its_order_and_its_limits() {
    let (fixture, gates) = serve(memory());
    let mut client = fixture.connect().export("vm");
    let hold = gates.set(["vm"]).close(LONG).unwrap();
    let writes: Vec<u8> = (0..300).flat_map(|cookie| write(cookie, cookie % 3 * 512, cookie as u8)).collect();
    client.send(&writes);
    fixture.eventually("the connection's slots are full", |_| hold.waiting() == 256);
    pause();
    assert_eq!(hold.waiting(), 256, "what has no slot is not read");
    hold.open().unwrap();
    for cookie in 0..300 {
        assert_eq!(client.reply(), (0, cookie));
    }
    assert_eq!([0, 512, 1024].map(|offset| read(&mut client, offset)), [297, 298, 299].map(|n: i32| n as u8));
}

#[test]
fn clients_that_leave_with_parked_writes() {
    let (fixture, gates) = serve(memory());
    let hold = gates.set(["vm"]).close(LONG).unwrap();
    let mut gone = fixture.connect().export("vm");
    let mut polite = fixture.connect().export("vm");
    gone.send(&write(1, 0, 1));
    polite.send(&[write(1, 512, 2), request(DISC, 2, 0, 0)].concat());
    fixture.eventually("both wait", |_| hold.waiting() == 2);
    drop(gone);
    pause();
    assert_eq!(fixture.backend.attached("vm"), 2, "a device stays until its requests have finished");
    hold.open().unwrap();
    assert_eq!(polite.reply(), (0, 1));
    assert_eq!(polite.until_closed(), []);
    fixture.idle();
}

#[test]
fn stopping_the_server_waits_for_parked_writes() {
    let (fixture, gates) = serve(memory());
    let hold = gates.set(["vm"]).close(Duration::from_millis(500)).unwrap();
    let mut client = fixture.connect().export("vm");
    client.send(&write(1, 0, 1));
    fixture.eventually("it waits", |_| hold.waiting() == 1);
    fixture.server.stop().unwrap();
    assert_eq!(client.reply(), (0, 1));
    assert_eq!(hold.open().unwrap_err(), GateError::Lost);
    gates.set(["vm"]).close(LONG).unwrap().open().unwrap();
}

#[test]
fn a_gate_opens_by_itself_and_says_so() {
    let (fixture, gates) = serve(memory());
    let mut client = fixture.connect().export("vm");
    let mut other = fixture.connect().export("other");
    let limit = Duration::from_millis(300);
    let hold = gates.set(["vm", "other"]).close(limit).unwrap();
    std::thread::sleep(limit);
    let begun = Instant::now();
    client.send(&write(1, 0, 1));
    assert_eq!(client.reply(), (0, 1));
    let waited = begun.elapsed();
    assert!(waited >= limit && waited < limit * 5, "waited {waited:?}");
    other.send(&write(2, 0, 1));
    assert_eq!(other.reply(), (0, 2), "the set opens as a whole");
    let mark = hold.mark();
    assert_eq!(hold.pass(mark), Err(GateError::Lost));
    assert_eq!(hold.drain(limit), Err(GateError::Lost));
    assert_eq!(hold.open().unwrap_err(), GateError::Lost);
    let unused = gates.set(["vm", "other"]).close(Duration::from_millis(20)).unwrap();
    pause();
    assert_eq!(unused.open().unwrap().writes, 0, "nobody waited, so nothing was lost");
}

#[test]
fn an_armed_gate_passes_what_was_parked_before_a_mark() {
    let (fixture, gates) = serve(memory());
    let mut client = fixture.connect().export("vm");
    let calls = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&calls);
    let count = move || {
        counter.fetch_add(1, Ordering::SeqCst);
    };
    let hold = gates.set(["vm"]).arm(LONG, count).unwrap();
    client.send(&write(1, 0, 1));
    fixture.eventually("the call", |_| calls.load(Ordering::SeqCst) == 1);
    let before = hold.mark();
    client.send(&write(2, 0, 2));
    fixture.eventually("the second call", |_| calls.load(Ordering::SeqCst) == 2);
    hold.pass(before).unwrap();
    assert_eq!(client.reply(), (0, 1));
    assert!(client.is_silent(), "the second write came after the mark");
    assert_eq!((read(&mut client, 0), hold.waiting()), (1, 1));
    hold.pass(before).unwrap();
    assert!(client.is_silent(), "a mark passes what it passed before");
    let second = hold.mark();
    hold.pass(second).unwrap();
    assert_eq!(client.reply(), (0, 2));
    client.send(&write(3, 0, 3));
    fixture.eventually("the third call", |_| calls.load(Ordering::SeqCst) == 3);
    assert_eq!(read(&mut client, 0), 2);
    assert_eq!(hold.open().unwrap().writes, 3);
    assert_eq!(client.reply(), (0, 3));
}

#[test]
fn a_gate_has_one_holder() {
    let (fixture, gates) = serve(memory());
    let both = gates.set(["vm", "other"]);
    let hold = gates.set(["other", "other"]).close(LONG).unwrap();
    assert_eq!(both.close(LONG).unwrap_err(), GateError::Busy { export: "other".to_owned() });
    let mut client = fixture.connect().export("vm");
    client.send(&write(1, 0, 1));
    assert_eq!(client.reply(), (0, 1), "nothing of a refused set is held");
    drop(hold);
    both.close(LONG).unwrap().open().unwrap();
    let elsewhere = gates.set(["no such export"]).close(LONG).unwrap();
    assert_eq!(both.close(LONG).unwrap().waiting() + elsewhere.waiting(), 0);
}

#[test]
fn draining_waits_for_writes_in_flight() {
    /// Long beside what a busy host takes for a few calls.
    const WRITE: Duration = Duration::from_secs(3);
    let (fixture, gates) = serve(memory().with_latency(WRITE));
    let mut client = fixture.connect().export("vm");
    client.send(&[write(1, 0, 1), write(2, 512, 1)].concat());
    pause();
    let begun = Instant::now();
    let hold = gates.set(["vm"]).close(LONG).unwrap();
    assert!(begun.elapsed() < WRITE / 2, "closing does not wait for writes in flight");
    client.send(&[write(3, 0, 1), request(READ, 4, 0, 512)].concat());
    assert_eq!(hold.drain(Duration::from_millis(50)), Err(GateError::InFlight));
    hold.drain(LONG).unwrap();
    assert!(begun.elapsed() >= WRITE / 2);
    assert_eq!([client.reply(), client.reply()], [(0, 1), (0, 2)]);
    hold.drain(LONG).unwrap();
    assert_eq!(hold.open().unwrap().writes, 1);
}

/// A queue without a server: what a worker does is done by hand.
fn submit<Q: Queue>(queue: &mut Q, device: &Q::Device, token: u64, byte: u8) {
    queue.submit(device, token, Op::Write { offset: 0, buf: IoBuf::copy_of(&[byte; 512]), fua: false });
}

fn tokens<Q: Queue>(queue: &mut Q) -> Vec<u64> {
    let mut done = Vec::new();
    queue.poll(&mut done);
    done.iter().map(|done| done.token).collect()
}

#[test]
fn a_worker_that_does_not_come_round_stops_nobody() {
    let gates = Gates::new();
    let backend = Gated::new(memory(), &gates);
    let device = backend.open("vm", Peer::default()).unwrap();
    let mut queue = backend.queue().unwrap();
    let error = gates.set(["vm"]).close(Duration::from_millis(50)).unwrap_err();
    assert_eq!(error, GateError::Unresponsive);
    submit(&mut queue, &device, 1, 1);
    assert_eq!(tokens(&mut queue), [1]);
    drop(queue);
    gates.set(["vm"]).close(LONG).unwrap().open().unwrap();
}

#[test]
fn what_an_ended_hold_let_go_does_not_follow_the_next_one() {
    let gates = Gates::new();
    let backend = Gated::new(memory(), &gates);
    let device = backend.open("vm", Peer::default()).unwrap();
    let mut queue = backend.queue().unwrap();
    let set = gates.set(["vm"]);
    let closed = |queue: &mut _| {
        std::thread::scope(|scope| {
            let closing = scope.spawn(|| set.close(LONG).unwrap());
            let mut finished = Vec::new();
            while !closing.is_finished() {
                finished.extend(tokens(queue));
            }
            (closing.join().unwrap(), finished)
        })
    };
    let (first, _) = closed(&mut queue);
    submit(&mut queue, &device, 1, 1);
    assert_eq!(tokens(&mut queue), []);
    first.open().unwrap();
    // The worker has not come round since: the new write must neither overtake the old one nor be lost.
    submit(&mut queue, &device, 2, 2);
    assert_eq!(tokens(&mut queue), [1, 2]);
    let (second, _) = closed(&mut queue);
    submit(&mut queue, &device, 3, 3);
    second.open().unwrap();
    let (third, finished) = closed(&mut queue);
    assert_eq!(finished, [3], "it went on before the next hold began");
    submit(&mut queue, &device, 4, 4);
    assert_eq!((tokens(&mut queue), third.waiting()), (vec![], 1));
    drop(third);
    assert_eq!(tokens(&mut queue), [4]);
}
