//! Isolated networks: the machines of one network on this host, and nobody else.
//!
//! QEMU connects each interface to a Unix socket and sends frames, each after its length (four bytes, big endian; QEMU's
//! `stream` network backend). The hub passes every frame to all the others. It is a helper that outlives the agent; QEMU
//! connects again by itself should the hub be replaced. Each port has a queue and somebody who empties it; a frame for which
//! there is no room in it is lost, as in a switch, so that a machine which reads nothing keeps no other waiting.

use std::fs;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use keyframe_agent_api::{Fault, FaultKind, Machine, NicConnection};
use parking_lot::Mutex;

use super::{Shared, helper, net};
use crate::Result;
use crate::say::say;

/// The largest frame QEMU sends: 64 KiB and a header or two.
const LONGEST: usize = 68 << 10;
/// Frames that wait for a machine, besides what its socket holds.
const QUEUE: usize = 256;
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

/// Where a machine is plugged in.
struct Port {
    number: u64,
    queue: SyncSender<Arc<[u8]>>,
    /// Frames for which there was no room.
    lost: AtomicU64,
}

type Ports = Mutex<Vec<Arc<Port>>>;

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
    let connected = Arc::clone(&ports);
    std::thread::spawn(move || {
        for (number, stream) in (0..).zip(listener.incoming()) {
            if let Err(e) = stream.and_then(|stream| plug(number, stream, &ports)) {
                say(format_args!("port {number}: {e}"));
            }
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

/// Serves one more port, by two threads of its own.
fn plug(number: u64, stream: UnixStream, ports: &Arc<Ports>) -> io::Result<()> {
    let (queue, frames) = sync_channel(QUEUE);
    let port = Arc::new(Port { number, queue, lost: AtomicU64::new(0) });
    let (out, ports) = (stream.try_clone()?, Arc::clone(ports));
    ports.lock().push(Arc::clone(&port));
    std::thread::spawn(move || deliver(out, &frames));
    std::thread::spawn(move || {
        if let Err(e) = pass(number, &stream, &ports) {
            say(format_args!("port {number}: {e}"));
        }
        ports.lock().retain(|other| other.number != number);
        let lost = port.lost.load(Ordering::Relaxed);
        if lost > 0 {
            say(format_args!("port {number}: {lost} frames were lost, for which its machine had no room"));
        }
        // Whoever delivers may wait for room; both may fail only because the other side is gone.
        stream.shutdown(Shutdown::Both).unwrap_or(());
    });
    Ok(())
}

/// Whole frames, one after the other, at the machine's own pace.
fn deliver(mut to: UnixStream, frames: &Receiver<Arc<[u8]>>) {
    while let Ok(frame) = frames.recv() {
        if to.write_all(&frame).is_err() {
            // Its reader sees the same.
            return;
        }
    }
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
        let whole: Arc<[u8]> = frame[..4 + length].into();
        for port in ports.lock().iter().filter(|port| port.number != number) {
            if port.queue.try_send(Arc::clone(&whole)).is_err() {
                port.lost.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);
    /// As large as guests send; none of them fits a socket's buffer at once.
    const LARGE: usize = 64 << 10;

    fn connect(socket: &Path) -> UnixStream {
        let until = Instant::now() + PATIENCE;
        loop {
            match UnixStream::connect(socket) {
                Ok(stream) => {
                    stream.set_read_timeout(Some(PATIENCE)).unwrap();
                    stream.set_write_timeout(Some(PATIENCE)).unwrap();
                    return stream;
                }
                Err(e) => assert!(Instant::now() < until, "there is no hub: {e}"),
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn send(mut port: &UnixStream, number: u32, length: usize) {
        let head = [(length as u32).to_be_bytes(), number.to_be_bytes()].concat();
        port.write_all(&[head, vec![7; length - 4]].concat()).expect("the hub reads");
    }

    fn receive(mut port: &UnixStream) -> io::Result<u32> {
        let mut head = [0; 8];
        port.read_exact(&mut head)?;
        let length = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let mut rest = vec![0; length - 4];
        port.read_exact(&mut rest)?;
        assert!(rest.iter().all(|byte| *byte == 7), "frames are mixed");
        Ok(u32::from_be_bytes([head[4], head[5], head[6], head[7]]))
    }

    #[test]
    fn a_machine_that_reads_nothing_keeps_nobody_waiting_and_later_reads_whole_frames() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("hub");
        let path = socket.clone();
        // It ends with the folder.
        std::thread::spawn(move || run(&path));
        let (sender, reader, deaf) = (connect(&socket), connect(&socket), connect(&socket));
        // All three are plugged in when each has been heard by another.
        send(&deaf, 0, 60);
        assert_eq!((receive(&sender).unwrap(), receive(&reader).unwrap()), (0, 0));
        const FRAMES: u32 = 600;
        for number in 1..=FRAMES {
            send(&sender, number, LARGE);
            assert_eq!(receive(&reader).expect("it is kept waiting"), number);
        }
        // What there was room for comes whole and in order; a frame more says that nothing follows.
        let mut heard = Vec::new();
        while heard.len() < QUEUE {
            heard.push(receive(&deaf).unwrap());
        }
        assert!(heard.is_sorted_by(|a, b| a < b), "{heard:?}");
        assert!(heard.len() < FRAMES as usize);
        send(&sender, FRAMES + 1, 60);
        let last = std::iter::from_fn(|| receive(&deaf).ok()).take(FRAMES as usize).find(|number| *number > FRAMES);
        assert_eq!(last, Some(FRAMES + 1), "it hears nothing more");
    }
}
