//! Clients that are slow, broken, too many or gone: the server stays up, serves the others and lets go of devices.

mod common;

use std::net::Shutdown;
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use common::{DISC, FLUSH, Fixture, READ, SIZE, WRITE, exports, handshake, request};
use keyframe_nbd::limits::{HANDSHAKE_TIMEOUT, MAX_PAYLOAD, STALL_TIMEOUT};
use keyframe_nbd::memory::Memory;
use keyframe_nbd::{Config, Listener};

#[test]
fn a_conversation_in_one_piece_and_byte_by_byte() {
    let fixture = Fixture::start();
    let write = [request(WRITE, 1, 512, 512), vec![0xab; 512]].concat();
    let input = [handshake("vm"), write, request(READ, 2, 512, 512), request(FLUSH, 3, 0, 0)].concat();
    for piece in [input.len(), 1, 13] {
        let mut client = fixture.connect();
        client.receive(18);
        for part in input.chunks(piece) {
            client.send(part);
        }
        client.receive(10);
        assert_eq!(client.reply(), (0, 1));
        assert_eq!(client.reply(), (0, 2));
        assert_eq!(client.receive(512), [0xab; 512]);
        assert_eq!(client.reply(), (0, 3));
        client.send(&request(DISC, 4, 0, 0));
        assert_eq!(client.until_closed(), []);
    }
    fixture.idle();
}

#[test]
fn half_messages_then_silence_forever_or_the_end() {
    let fixture = Fixture::start();
    let write = [request(WRITE, 1, 0, 1 << 20), vec![7; 1000]].concat();
    let halves: [&[u8]; 4] = [&[], &request(READ, 1, 0, 512)[..27], &write[..28], &write];
    for half in halves {
        let mut client = fixture.connect().export("vm");
        client.send(half);
        client.stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(client.until_closed(), [], "after {} bytes", half.len());
    }
    for cut in 0..handshake("vm").len() {
        let mut client = fixture.connect();
        client.send(&handshake("vm")[..cut]);
        drop(client);
    }
    fixture.idle();
    let mut client = fixture.connect().export("vm");
    client.send(&request(READ, 9, 0, 4096));
    assert_eq!(client.reply(), (0, 9));
    assert_eq!(client.receive(4096), [0; 4096], "an incomplete write wrote nothing");
}

#[test]
fn wrong_magic_closes_the_connection() {
    let fixture = Fixture::start();
    let mut client = fixture.connect();
    client.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
    client.until_closed();
    let mut client = fixture.connect().export("vm");
    client.send(&[request(READ, 1, 0, 512), vec![0; 64]].concat());
    assert_eq!(client.reply(), (0, 1));
    client.until_closed();
    fixture.idle();
}

#[test]
fn refused_writes_leave_the_stream_in_step() {
    let fixture = Fixture::start();
    let mut client = fixture.connect().export("vm");
    let too_long = MAX_PAYLOAD + 512;
    for (offset, len, error) in [(0, too_long, 22), (SIZE, 4096, 28), (3, 512, 22), (0, 100, 22)] {
        client.send(&request(WRITE, 5, offset, len));
        client.send(&vec![0xee; len as usize]);
        assert_eq!(client.reply(), (error, 5), "write of {len} at {offset}");
    }
    let mut reader = fixture.connect().export("ro");
    reader.send(&[request(WRITE, 6, 0, 512), vec![0; 512]].concat());
    assert_eq!(reader.reply(), (1, 6));
    client.send(&request(READ, 7, 0, 512));
    assert_eq!(client.reply(), (0, 7));
    assert_eq!(client.receive(512), [0; 512]);
}

#[test]
fn the_largest_payload_goes_through() {
    let fixture = Fixture::start();
    let mut client = fixture.connect().export("vm");
    let data: Vec<u8> = (0..MAX_PAYLOAD).map(|at| (at / 512 % 251) as u8).collect();
    client.send(&request(WRITE, 1, 512, MAX_PAYLOAD));
    client.send(&data);
    assert_eq!(client.reply(), (0, 1));
    client.send(&request(READ, 2, 512, MAX_PAYLOAD));
    assert_eq!(client.reply(), (0, 2));
    assert!(client.receive(MAX_PAYLOAD as usize) == data);
}

#[test]
fn a_client_that_leaves_with_requests_in_flight() {
    let backend = Memory::new(exports(SIZE)).with_latency(Duration::from_millis(400));
    let fixture = Fixture::with(backend, &Config { workers: 1, ..Config::default() });
    let mut client = fixture.connect().export("vm");
    for cookie in 0..50 {
        client.send(&[request(WRITE, cookie, cookie * 4096, 4096), vec![cookie as u8 + 1; 4096]].concat());
    }
    std::thread::sleep(Duration::from_millis(100));
    drop(client);
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(fixture.backend.attached("vm"), 1, "the device stays until its requests have finished");
    fixture.idle();
    let mut client = fixture.connect().export("vm");
    client.send(&request(READ, 1, 49 * 4096, 4096));
    assert_eq!(client.reply(), (0, 1));
    assert_eq!(client.receive(4096), [50; 4096]);
}

#[test]
fn disconnect_command_answers_what_is_outstanding() {
    let backend = Memory::new(exports(SIZE)).with_latency(Duration::from_millis(100));
    let fixture = Fixture::with(backend, &Config { workers: 1, ..Config::default() });
    let mut client = fixture.connect().export("vm");
    let requests = [request(READ, 1, 0, 512), request(FLUSH, 2, 0, 0), request(DISC, 3, 0, 0)];
    client.send(&requests.concat());
    assert_eq!(client.until_closed().len(), 16 + 512 + 16);
    fixture.idle();
}

#[test]
fn stop_finishes_and_answers_what_is_running() {
    let backend = Memory::new(exports(SIZE)).with_latency(Duration::from_millis(300));
    let fixture = Fixture::with(backend.clone(), &Config { workers: 2, ..Config::default() });
    let mut client = fixture.connect().export("vm");
    let mut idler = fixture.connect();
    idler.receive(18);
    for cookie in 0..20 {
        client.send(&[request(WRITE, cookie, 0, 4096), vec![1; 4096]].concat());
    }
    std::thread::sleep(Duration::from_millis(100));
    let path = fixture.path();
    let begun = Instant::now();
    fixture.server.stop().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(5), "took {:?}", begun.elapsed());
    assert_eq!(backend.attached("vm"), 0);
    assert_eq!(client.until_closed().len(), 20 * 16);
    assert_eq!(idler.until_closed(), []);
    assert!(!path.exists(), "the socket's path is removed");
}

#[test]
fn a_process_is_cut_off_and_what_it_asked_for_before_is_done() {
    let backend = Memory::new(exports(SIZE)).with_latency(Duration::from_millis(300));
    let fixture = Fixture::with(backend, &Config { workers: 2, ..Config::default() });
    let (mut writer, mut idler) = (fixture.connect().export("vm"), fixture.connect().export("vm"));
    for cookie in 0..20 {
        writer.send(&[request(WRITE, cookie, cookie * 4096, 4096), vec![cookie as u8 + 1; 4096]].concat());
    }
    let this = std::process::id();
    fixture.server.hang_up(this + 1);
    idler.send(&request(READ, 1, 0, 512));
    assert_eq!(idler.reply(), (0, 1), "another process was meant");
    idler.receive(512);
    fixture.server.hang_up(this);
    assert_eq!(idler.until_closed(), []);
    writer.until_closed();
    fixture.idle();
    let mut client = fixture.connect().export("vm");
    client.send(&request(READ, 1, 19 * 4096, 4096));
    assert_eq!(client.reply(), (0, 1), "it may come again");
    assert_eq!(client.receive(4096), [20; 4096]);
}

#[test]
fn many_connections() {
    let fixture =
        Fixture::with(Memory::new(exports(SIZE)), &Config { workers: 2, max_connections: 300, ..Config::default() });
    let mut clients: Vec<_> = (0..300).map(|_| fixture.connect().export("vm")).collect();
    assert_eq!(fixture.server.connections(), 300);
    assert_eq!(fixture.connect().until_closed(), [], "one too many");
    for (at, client) in clients.iter_mut().enumerate() {
        client.send(&[request(WRITE, 1, at as u64 * 512, 512), vec![at as u8; 512]].concat());
    }
    for (at, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.reply(), (0, 1));
        client.send(&request(READ, 2, at as u64 * 512, 512));
    }
    for (at, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.reply(), (0, 2));
        assert_eq!(client.receive(512), [at as u8; 512]);
    }
    drop(clients);
    fixture.idle();
    fixture.connect().export("vm");
}

#[test]
fn requests_beyond_the_slots_wait_their_turn() {
    let fixture = Fixture::start();
    let mut client = fixture.connect().export("vm");
    let requests: Vec<u8> = (0..5000).flat_map(|cookie| request(READ, cookie, cookie % 1000 * 4096, 4096)).collect();
    client.send(&requests);
    std::thread::sleep(Duration::from_millis(200));
    for cookie in 0..5000 {
        assert_eq!(client.reply(), (0, cookie));
        assert_eq!(client.receive(4096), [0; 4096]);
    }
}

#[test]
fn a_silent_handshake_is_cut() {
    let fixture = Fixture::start();
    let begun = Instant::now();
    let mut silent = fixture.connect();
    let mut dripping = fixture.connect();
    // One byte of an option per second is no progress either.
    dripping.send(&handshake("vm")[..4]);
    for byte in &handshake("vm")[4..16] {
        dripping.send(&[*byte]);
        std::thread::sleep(Duration::from_millis(500));
    }
    assert_eq!(silent.until_closed().len(), 18);
    assert_eq!(dripping.until_closed().len(), 18);
    let took = begun.elapsed();
    assert!((HANDSHAKE_TIMEOUT..HANDSHAKE_TIMEOUT * 2).contains(&took), "took {took:?}");
    fixture.idle();
}

#[test]
fn a_client_that_does_not_read_blocks_the_budget_for_a_while_only() {
    // The budget of the one worker is two of the largest payloads.
    let config = Config { workers: 1, budget: 2 * MAX_PAYLOAD as usize, ..Config::default() };
    let fixture = Fixture::with(Memory::new(exports(SIZE)), &config);
    let mut hog = fixture.connect().export("vm");
    hog.send(&[request(READ, 1, 0, MAX_PAYLOAD), request(READ, 2, 0, MAX_PAYLOAD)].concat());
    std::thread::sleep(Duration::from_millis(300));
    let mut victim = fixture.connect().export("vm");
    let begun = Instant::now();
    victim.send(&request(FLUSH, 1, 0, 0));
    assert_eq!(victim.reply(), (0, 1));
    assert!(begun.elapsed() < Duration::from_secs(1), "what needs no memory is not held up");
    victim.send(&request(READ, 2, 0, 4096));
    assert_eq!(victim.reply(), (0, 2));
    let took = begun.elapsed();
    assert!(took < STALL_TIMEOUT * 2, "took {took:?}");
    drop(hog);
    drop(victim);
    fixture.idle();
}

#[test]
fn a_stale_path_is_replaced_and_a_live_one_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("nbd.sock");
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let live = Listener::unix(&path).unwrap();
    let error = Listener::unix(&path).unwrap_err();
    assert_eq!(error.to_string(), format!("listen on {}", path.display()));
    drop(live);
    assert!(!path.exists());
    std::fs::write(&path, "not a socket").unwrap();
    Listener::unix(&path).unwrap_err();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "not a socket");
}
