//! A running server over the memory backend, and a client that speaks bytes.
#![expect(clippy::unwrap_used, reason = "a test helper that fails, fails its test")]
#![expect(dead_code, reason = "every test file compiles this module and uses its own part of it")]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use keyframe_nbd::memory::{Memory, MemoryExport};
use keyframe_nbd::{Address, Backend, Config, Listener, Server};

pub(crate) const SIZE: u64 = 64 << 20;

pub(crate) struct Fixture {
    pub(crate) server: Server,
    pub(crate) backend: Memory,
    pub(crate) directory: tempfile::TempDir,
}

impl Fixture {
    /// Serves `vm` and the read-only `ro` on a Unix socket and on TCP.
    pub(crate) fn start() -> Fixture {
        Fixture::with(Memory::new(exports(SIZE)), &Config { workers: 2, ..Config::default() })
    }

    pub(crate) fn with(backend: Memory, config: &Config) -> Fixture {
        Fixture::serving(backend.clone(), backend, config)
    }

    /// Serves `backend`, which stores in `memory`.
    pub(crate) fn serving(memory: Memory, backend: impl Backend, config: &Config) -> Fixture {
        let directory = tempfile::tempdir().unwrap();
        let listeners = vec![
            Listener::unix(directory.path().join("nbd.sock")).unwrap(),
            Listener::tcp(([127, 0, 0, 1], 0).into()).unwrap(),
        ];
        let server = Server::start(backend, listeners, config).unwrap();
        Fixture { server, backend: memory, directory }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join("nbd.sock")
    }

    /// The export as clients name it: over the Unix socket and over TCP.
    pub(crate) fn uris(&self, export: &str) -> [String; 2] {
        let Address::Tcp(tcp) = &self.server.addresses()[1] else { panic!("the second listener is TCP") };
        [format!("nbd+unix:///{export}?socket={}", self.path().display()), format!("nbd://{tcp}/{export}")]
    }

    pub(crate) fn connect(&self) -> Client {
        Client::new(UnixStream::connect(self.path()).unwrap())
    }

    /// Waits for something that happens soon.
    pub(crate) fn eventually(&self, what: &str, condition: impl Fn(&Fixture) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !condition(self) {
            assert!(Instant::now() < deadline, "never happened: {what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn idle(&self) {
        self.eventually("all connections closed", |fixture| fixture.server.connections() == 0);
        assert_eq!(self.backend.attached("vm"), 0, "devices of closed connections are detached");
    }
}

pub(crate) fn exports(size: u64) -> [MemoryExport; 2] {
    [MemoryExport::new("vm", size), MemoryExport { read_only: true, ..MemoryExport::new("ro", size) }]
}

pub(crate) struct Client {
    pub(crate) stream: UnixStream,
}

impl Client {
    fn new(stream: UnixStream) -> Client {
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(30))).unwrap();
        Client { stream }
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub(crate) fn receive(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// The shortest way to transmission, with simple replies.
    pub(crate) fn export(mut self, name: &str) -> Client {
        self.receive(18);
        self.send(&handshake(name));
        self.receive(10);
        self
    }

    /// Error number and cookie of the next simple reply.
    pub(crate) fn reply(&mut self) -> (u32, u64) {
        let bytes = self.receive(16);
        assert_eq!(bytes[..4], [0x67, 0x44, 0x66, 0x98], "simple reply magic");
        let error = u32::from_be_bytes(bytes[4..8].try_into().unwrap());
        (error, u64::from_be_bytes(bytes[8..].try_into().unwrap()))
    }

    /// Whether nothing arrives for a while.
    pub(crate) fn is_silent(&mut self) -> bool {
        self.stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let silent = self.stream.read(&mut [0]).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
        self.stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        silent
    }

    /// Reads until the server closes; what came before. A reset counts as closed.
    pub(crate) fn until_closed(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self.stream.read_to_end(&mut bytes) {
            Ok(_) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => bytes,
            Err(error) => panic!("the server did not close: {error}"),
        }
    }
}

/// Client flags with NO_ZEROES, and NBD_OPT_EXPORT_NAME.
pub(crate) fn handshake(name: &str) -> Vec<u8> {
    let len = (name.len() as u32).to_be_bytes();
    [&[0, 0, 0, 3], &b"IHAVEOPT"[..], &[0, 0, 0, 1], &len, name.as_bytes()].concat()
}

pub(crate) const READ: u16 = 0;
pub(crate) const WRITE: u16 = 1;
pub(crate) const DISC: u16 = 2;
pub(crate) const FLUSH: u16 = 3;
pub(crate) const TRIM: u16 = 4;
pub(crate) const WRITE_ZEROES: u16 = 6;

pub(crate) fn request(kind: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let [kind_high, kind_low] = kind.to_be_bytes();
    let head = [0x25, 0x60, 0x95, 0x13, 0, 0, kind_high, kind_low];
    [&head[..], &cookie.to_be_bytes(), &offset.to_be_bytes(), &len.to_be_bytes()].concat()
}
