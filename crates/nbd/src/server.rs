//! Starting and stopping: one thread that accepts, a fixed number of workers, connections dealt out in turn.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

use crate::backend::Backend;
use crate::error::ServerError;
use crate::limits::{MAX_CONNECTIONS, MAX_PAYLOAD, SERVER_BYTES};
use crate::listener::{Address, Listener};
use crate::worker::{Bell, Mailbox, Worker};

const STOP: u64 = u64::MAX;
/// Out of descriptors or memory: how long to leave clients waiting before the next try.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How a server is run.
#[derive(Clone, Debug)]
pub struct Config {
    /// Threads that serve connections, each with a backend queue of its own.
    pub workers: usize,
    /// Connections beyond this number are closed at once.
    pub max_connections: usize,
    /// Bytes of payload buffers that all connections together may hold. Divided evenly among the workers, each of which
    /// gets at least one largest payload.
    pub budget: usize,
}

impl Default for Config {
    /// One worker for each core.
    fn default() -> Config {
        let workers = thread::available_parallelism().map_or(1, |cores| cores.get());
        Config { workers, max_connections: MAX_CONNECTIONS, budget: SERVER_BYTES }
    }
}

/// A running server. Dropping it stops it as [`Server::stop`] does.
#[derive(Debug)]
pub struct Server {
    addresses: Vec<Address>,
    connections: Arc<AtomicUsize>,
    stop: Arc<OwnedFd>,
    bells: Vec<Bell>,
    /// The acceptor first: it owns the mailboxes, and the workers end after it.
    threads: Vec<(&'static str, JoinHandle<Result<(), ServerError>>)>,
}

impl Server {
    /// Serves `backend` on `listeners` until stopped.
    pub fn start<B: Backend>(backend: B, listeners: Vec<Listener>, config: &Config) -> Result<Server, ServerError> {
        let backend = Arc::new(backend);
        let connections = Arc::new(AtomicUsize::new(0));
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|error| ServerError::Setup { what: "stop signal", source: error.into() })?;
        let mut server = Server {
            addresses: listeners.iter().map(|listener| listener.address().clone()).collect(),
            connections: Arc::clone(&connections),
            stop: Arc::new(stop),
            bells: Vec::new(),
            threads: Vec::new(),
        };
        let workers = config.workers.max(1);
        let budget = (config.budget / workers).max(MAX_PAYLOAD as usize);
        let mut mailboxes = Vec::new();
        for _ in 0..workers {
            let (handle, mailbox) = start_worker(Arc::clone(&backend), budget, Arc::clone(&connections))?;
            server.threads.push(("worker thread", handle));
            let mailbox = mailbox?;
            server.bells.push(mailbox.bell());
            mailboxes.push(mailbox);
        }
        let acceptor = Acceptor {
            epoll: acceptor_epoll(&server.stop, &listeners)
                .map_err(|error| ServerError::Setup { what: "accept loop", source: error.into() })?,
            listeners,
            mailboxes,
            next: 0,
            connections,
            max_connections: config.max_connections,
        };
        let handle = thread::Builder::new()
            .name("nbd-accept".to_owned())
            .spawn(move || acceptor.run())
            .map_err(|source| ServerError::Setup { what: "accept thread", source })?;
        server.threads.insert(0, ("accept thread", handle));
        Ok(server)
    }

    /// Where the server listens, in the order of the listeners.
    pub fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    /// Connections that are open now.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Shuts all connections of a process, which the kernel names. What they have asked for before is still done.
    pub fn hang_up(&self, process: u32) {
        for bell in &self.bells {
            bell.hang_up(process);
        }
    }

    /// One line for each open connection, for people who wonder why a client hangs: what it is busy with, what it waits
    /// for, and who owes the next byte. A worker that does not answer within `patience` has a line too.
    pub fn describe(&self, patience: Duration) -> Vec<String> {
        let asked: Vec<_> = self.bells.iter().map(Bell::describe).collect();
        let deadline = Instant::now() + patience;
        let mut lines = Vec::new();
        for (worker, answer) in asked.iter().enumerate() {
            match answer.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(answer) => lines.extend(answer.iter().map(|line| format!("worker {worker}: {line}"))),
                Err(_) => lines.push(format!("worker {worker} does not answer")),
            }
        }
        lines
    }

    /// Takes no more connections and requests, finishes and answers what is running, closes everything, and waits for
    /// that. Clients that do not read their last replies are given
    /// [`LINGER_TIMEOUT`](crate::limits::LINGER_TIMEOUT).
    pub fn stop(mut self) -> Result<(), ServerError> {
        self.shut_down()
    }

    fn shut_down(&mut self) -> Result<(), ServerError> {
        if let Err(error) = rustix::io::write(&self.stop, &1u64.to_ne_bytes()) {
            return Err(ServerError::Setup { what: "stop signal", source: error.into() });
        }
        let mut outcome = Ok(());
        for (what, handle) in self.threads.drain(..) {
            let result = handle.join().unwrap_or(Err(ServerError::Panicked { what }));
            outcome = outcome.and(result);
        }
        outcome
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Whoever wants to know how it went calls `stop`.
        self.shut_down().unwrap_or(());
    }
}

type Started = (JoinHandle<Result<(), ServerError>>, Result<Mailbox, ServerError>);

/// The worker makes its queue in its own thread and reports before it serves.
fn start_worker<B: Backend>(
    backend: Arc<B>,
    budget: usize,
    connections: Arc<AtomicUsize>,
) -> Result<Started, ServerError> {
    let (sender, started) = mpsc::channel();
    let body = move || {
        let worker = match Worker::new(backend, budget, connections) {
            Ok((worker, mailbox)) => {
                let sent = sender.send(Ok(mailbox));
                sent.is_ok().then_some(worker)
            }
            Err(source) => {
                // The caller waits for exactly this message, so it cannot fail.
                sender.send(Err(ServerError::Setup { what: "worker's queue", source })).unwrap_or(());
                None
            }
        };
        match worker {
            Some(worker) => worker.run().map_err(|source| ServerError::Thread { what: "worker thread", source }),
            None => Ok(()),
        }
    };
    let handle = thread::Builder::new()
        .name("nbd-worker".to_owned())
        .spawn(body)
        .map_err(|source| ServerError::Setup { what: "worker thread", source })?;
    let mailbox = started.recv().unwrap_or(Err(ServerError::Panicked { what: "worker thread" }));
    Ok((handle, mailbox))
}

fn acceptor_epoll(stop: &OwnedFd, listeners: &[Listener]) -> rustix::io::Result<OwnedFd> {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(&epoll, stop, EventData::new_u64(STOP), EventFlags::IN)?;
    for (index, listener) in listeners.iter().enumerate() {
        epoll::add(&epoll, listener.as_fd(), EventData::new_u64(index as u64), EventFlags::IN)?;
    }
    Ok(epoll)
}

struct Acceptor {
    epoll: OwnedFd,
    listeners: Vec<Listener>,
    mailboxes: Vec<Mailbox>,
    next: usize,
    connections: Arc<AtomicUsize>,
    max_connections: usize,
}

impl Acceptor {
    /// Accepts until the stop signal. Returning drops the mailboxes, which stops the workers.
    fn run(mut self) -> Result<(), ServerError> {
        let mut events = Vec::with_capacity(self.listeners.len() + 1);
        loop {
            events.clear();
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(ServerError::Thread { what: "accept thread", source: error.into() }),
            }
            for event in &events {
                match event.data.u64() {
                    STOP => return Ok(()),
                    index => self.accept(index as usize),
                }
            }
        }
    }

    /// One client per event, so that no listener starves another.
    fn accept(&mut self, index: usize) {
        match self.listeners[index].accept() {
            Ok(socket) => self.deal(socket),
            Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => thread::sleep(ACCEPT_PAUSE),
            // The client was gone before it was accepted, or nothing was there.
            Err(_) => {}
        }
    }

    fn deal(&mut self, socket: OwnedFd) {
        if self.connections.fetch_add(1, Ordering::Relaxed) >= self.max_connections {
            self.connections.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        self.mailboxes[self.next].send(socket);
        self.next = (self.next + 1) % self.mailboxes.len();
    }
}
