//! The control socket: one thread accepts, one thread for each connection handles its requests in order.

use std::collections::HashMap;
use std::io::{BufReader, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use keyframe_agent::say::say;
use keyframe_engine::Pool;
use parking_lot::Mutex;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fs::Mode;

use crate::ops::{self, Event, Failure, Request, ServerStats};
use crate::socket;
use crate::wire::{self, Line, MAX_REQUEST, Received};

/// Connections beyond this number are told so and closed.
const MAX_CONNECTIONS: usize = 64;
/// Progress is reported at most this often.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// The bound socket; dropping it removes its path.
pub(super) struct Socket {
    listener: UnixListener,
    path: PathBuf,
}

impl Socket {
    /// Binds with mode 0600. A socket that a killed server left is replaced; one that answers is not, nor is any other file.
    pub(super) fn bind(path: &Path) -> Result<Socket> {
        let bound = Self::bind_private(path).or_else(|error| match error.kind() {
            std::io::ErrorKind::AddrInUse if is_stale(path) => {
                std::fs::remove_file(path)?;
                Self::bind_private(path)
            }
            _ => Err(error),
        });
        let listener = bound.with_context(|| format!("cannot listen on {}", path.display()))?;
        listener.set_nonblocking(true).context("set up the control socket")?;
        Ok(Socket { listener, path: path.to_owned() })
    }

    /// The umask closes the moment between making the socket and setting its mode.
    fn bind_private(path: &Path) -> std::io::Result<UnixListener> {
        let mask = rustix::process::umask(Mode::from_raw_mode(0o177));
        let listener = socket::bind(path);
        rustix::process::umask(mask);
        let listener = listener?;
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o600))?;
        Ok(listener)
    }
}

/// Any other file refuses connections too, and is none of ours to remove.
fn is_stale(path: &Path) -> bool {
    let is_socket = path.symlink_metadata().is_ok_and(|found| found.file_type().is_socket());
    is_socket && matches!(socket::connect(path), Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused)
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Somebody may have removed it already.
        std::fs::remove_file(&self.path).unwrap_or(());
    }
}

/// What all connections share.
struct Shared {
    pool: Pool,
    stats: Box<dyn Fn() -> ServerStats + Send + Sync>,
    stopping: AtomicBool,
    wake: OwnedFd,
    open: Mutex<HashMap<u64, UnixStream>>,
}

/// The running control side of a server.
pub(super) struct Control {
    shared: Arc<Shared>,
    acceptor: JoinHandle<Result<()>>,
}

impl Control {
    pub(super) fn start(
        socket: Socket,
        pool: Pool,
        stats: Box<dyn Fn() -> ServerStats + Send + Sync>,
    ) -> Result<Control> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).context("make a stop signal")?;
        let shared = Shared { pool, stats, stopping: AtomicBool::new(false), wake, open: Mutex::default() };
        let shared = Arc::new(shared);
        let for_acceptor = Arc::clone(&shared);
        let acceptor = std::thread::Builder::new()
            .name("control".into())
            .spawn(move || accept(&socket, &for_acceptor))
            .context("start the control thread")?;
        Ok(Control { shared, acceptor })
    }

    /// Takes no more requests, gives up those that report progress, and waits for the rest.
    pub(super) fn stop(self) -> Result<()> {
        self.shared.stopping.store(true, Ordering::SeqCst);
        rustix::io::write(&self.shared.wake, &1u64.to_ne_bytes()).context("wake the control thread")?;
        match self.acceptor.join() {
            Ok(result) => result,
            Err(_) => bail!("the control thread panicked"),
        }
    }
}

fn accept(socket: &Socket, shared: &Arc<Shared>) -> Result<()> {
    let mut threads: Vec<JoinHandle<()>> = Vec::new();
    for number in 0.. {
        let mut waiting = [
            PollFd::new(&socket.listener, PollFlags::IN),
            PollFd::from_borrowed_fd(shared.wake.as_fd(), PollFlags::IN),
        ];
        match poll(&mut waiting, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("wait for control connections"),
        }
        if shared.stopping.load(Ordering::SeqCst) {
            break;
        }
        threads.retain(|thread| !thread.is_finished());
        match socket.listener.accept() {
            Ok((stream, _)) => threads.extend(welcome(stream, number, shared)),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => {
                say(format_args!("keyframe: cannot accept a control connection: {error}"));
                std::thread::sleep(PROGRESS_EVERY);
            }
        }
    }
    for stream in shared.open.lock().values() {
        // Fails only for a client that is gone.
        stream.shutdown(Shutdown::Both).unwrap_or(());
    }
    let panicked = threads.into_iter().filter_map(|thread| thread.join().err()).count();
    if panicked == 0 { Ok(()) } else { bail!("{panicked} control connections panicked") }
}

/// Registers a connection and starts its thread.
fn welcome(stream: UnixStream, number: u64, shared: &Arc<Shared>) -> Option<JoinHandle<()>> {
    let registered = stream.set_nonblocking(false).and_then(|()| stream.try_clone());
    let result = registered.and_then(|second| {
        let mut open = shared.open.lock();
        if open.len() >= MAX_CONNECTIONS {
            return refuse_connection(&stream).map(|()| None);
        }
        open.insert(number, second);
        drop(open);
        let shared = Arc::clone(shared);
        let thread = std::thread::Builder::new().name("control-client".into());
        thread
            .spawn(move || {
                // An error here is a client that went away, which is its right.
                converse(&stream, &shared).unwrap_or(());
                shared.open.lock().remove(&number);
            })
            .map(Some)
    });
    result.unwrap_or_else(|error| {
        shared.open.lock().remove(&number);
        say(format_args!("keyframe: cannot serve a control connection: {error}"));
        None
    })
}

fn refuse_connection(mut stream: &UnixStream) -> std::io::Result<()> {
    let failure =
        Failure { kind: "failed".into(), message: format!("{MAX_CONNECTIONS} clients are connected already") };
    stream.write_all(&wire::line(&Line::Error(failure))?)
}

/// Requests in, answers out, until the client or the server is done.
fn converse(stream: &UnixStream, shared: &Shared) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut writer = stream;
    loop {
        let answer = match wire::receive(&mut reader)? {
            Received::End => return Ok(()),
            Received::TooLong => {
                let failure = Failure::bad_request(format!("a request is at most {MAX_REQUEST} bytes long"));
                return writer.write_all(&wire::line(&Line::Error(failure))?);
            }
            Received::Line(line) => match serde_json::from_slice(&line) {
                Ok(request) => answer(request, shared, writer),
                Err(error) => Line::Error(Failure::bad_request(format!("not a request: {error}"))),
            },
        };
        writer.write_all(&wire::line(&answer)?)?;
    }
}

fn answer(request: Request, shared: &Shared, mut writer: &UnixStream) -> Line {
    let context = ops::Context { pool: &shared.pool, server: Some(&*shared.stats) };
    let mut reported: Option<Instant> = None;
    let mut sink = |event: Event| {
        if shared.stopping.load(Ordering::SeqCst) {
            bail!("the server is stopping");
        }
        if let Event::Progress { done, total } = event
            && done < total
            && reported.is_some_and(|last| last.elapsed() < PROGRESS_EVERY)
        {
            return Ok(());
        }
        reported = Some(Instant::now());
        Ok(writer.write_all(&wire::line(&Line::from(event))?)?)
    };
    match ops::handle(&context, request, &mut sink) {
        Ok(reply) => Line::Result(reply),
        Err(error) => Line::Error(Failure::from(&error)),
    }
}
