//! Isolated networks: the machines of one network on this host, and nobody else.
//!
//! QEMU connects each interface to a Unix socket and sends frames, each after its length (four bytes, big endian; QEMU's
//! `stream` network backend). The hub passes every frame to all the others. It is a helper that outlives the agent; QEMU
//! connects again by itself should the hub be replaced. A frame that a slow machine has no room for is lost, as on a wire.

use std::fs;
use std::io::{self, Read};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use keyframe_agent_api::{Fault, FaultKind, Machine, NicConnection};
use parking_lot::Mutex;
use rustix::net::{SendFlags, send};

use super::{Shared, helper, net};
use crate::Result;

/// The largest frame QEMU sends: 64 KiB and a header or two.
const LONGEST: usize = 68 << 10;
/// How often the hub looks whether it is still wanted.
const LOOK: Duration = Duration::from_secs(5);
/// A hub that nobody has used for so long ends; the next machine starts another.
const IDLE: Duration = Duration::from_secs(600);

/// Sees to it that each isolated network of the machine has its hub.
pub(super) fn ensure_all(shared: &Shared, machine: &Machine) -> Result<()> {
    let networks = shared.networks();
    for nic in &machine.nics {
        if let NicConnection::Isolated { network } = &nic.connection {
            let trouble =
                |e: io::Error| Fault::new(FaultKind::Internal, format!("network {network}: start its hub: {e}"));
            fs::create_dir_all(&networks).map_err(trouble)?;
            let socket = net::hub_socket(&networks, network);
            if UnixStream::connect(&socket).is_err() {
                let arguments = [socket.as_os_str().to_owned()];
                helper::spawn(&shared.config, "hub", arguments, &networks.join("hub.log")).map_err(trouble)?;
            }
        }
    }
    Ok(())
}

/// The ports by number, to write to.
type Ports = Mutex<Vec<(u64, Arc<UnixStream>)>>;

/// Runs a hub until its socket is taken away, or nobody has used it for long. Where one runs already, there is nothing to do.
pub(super) fn run(socket: &Path) -> io::Result<()> {
    let lock = fs::File::options().create(true).append(true).open(socket.with_extension("lock"))?;
    if rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
        return Ok(());
    }
    super::place::remove_file(socket);
    let listener = UnixListener::bind(socket)?;
    let watched = socket.to_owned();
    let ports = Arc::new(Ports::default());
    let next = AtomicU64::new(0);
    let connected = Arc::clone(&ports);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream.map(Arc::new) else { continue };
            let number = next.fetch_add(1, Ordering::Relaxed);
            ports.lock().push((number, Arc::clone(&stream)));
            let ports = Arc::clone(&ports);
            std::thread::spawn(move || {
                if let Err(e) = pass(number, &stream, &ports) {
                    eprintln!("port {number}: {e}");
                }
                ports.lock().retain(|(other, _)| *other != number);
            });
        }
    });
    let mut used = Instant::now();
    while watched.exists() && used.elapsed() < IDLE {
        std::thread::sleep(LOOK);
        if !connected.lock().is_empty() {
            used = Instant::now();
        }
    }
    // Before the lock goes: whoever comes next makes a socket of its own.
    super::place::remove_file(&watched);
    Ok(())
}

fn pass(number: u64, mut from: &UnixStream, ports: &Ports) -> io::Result<()> {
    let mut frame = vec![0; 4 + LONGEST];
    loop {
        match from.read_exact(&mut frame[..4]) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            done => done?,
        }
        let length = u32::from_be_bytes([frame[0], frame[1], frame[2], frame[3]]) as usize;
        if length > LONGEST {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a frame of {length} bytes")));
        }
        from.read_exact(&mut frame[4..4 + length])?;
        for (_, port) in ports.lock().iter().filter(|(other, _)| *other != number) {
            send_whole(port, &frame[..4 + length]);
        }
    }
}

/// Sends a frame or nothing of it; one that has begun is finished, for the stream has no other place to begin anew.
fn send_whole(port: &UnixStream, frame: &[u8]) {
    let mut sent = match send(port, frame, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
        Ok(n) => n,
        // No room, or no machine any more.
        Err(_) => return,
    };
    while sent < frame.len() {
        match send(port, &frame[sent..], SendFlags::NOSIGNAL) {
            Ok(n) => sent += n,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return,
        }
    }
}
