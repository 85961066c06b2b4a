//! One worker thread: an epoll loop over its share of the sockets and its own backend queue.
//!
//! A wake-up is a batch: receive from every ready socket, submit, poll the queue once, send to every socket that got
//! replies. Sockets are edge-triggered and remember what they are ready for, so there is no `epoll_ctl` per request; a
//! socket that is not read for want of slots keeps its readiness.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError};
use std::time::{Duration, Instant};

use keyframe_engine::Done;
use rustix::event::epoll::{self, Event, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};

use crate::backend::{Backend, Queue};
use crate::connection::Connection;
use crate::lane::Lane;
use crate::listener::peer_of;

const WAKE: u64 = 0;
const QUEUE: u64 = 1;
/// Tokens from here on are connections.
const FIRST_CONNECTION: u64 = 2;
const EVENTS: usize = 256;
/// How often time limits are looked at while any apply.
const TICK: Duration = Duration::from_millis(500);

/// What other threads want of a worker.
enum Message {
    /// Serve an accepted, non-blocking socket.
    Serve(OwnedFd),
    /// Say what every connection is doing.
    Describe(Sender<Vec<String>>),
    /// Shut the connections of a process.
    HangUp(u32),
    /// Drain and end.
    Stop,
}

/// The accept loop's way to a worker. Dropping it makes the worker drain and end.
pub(crate) struct Mailbox(Bell);

impl Mailbox {
    /// Hands over an accepted, non-blocking socket. A worker that has ended drops it, which closes it.
    pub(crate) fn send(&self, socket: OwnedFd) {
        self.0.send(Message::Serve(socket));
    }

    /// A way to ask the worker that does not keep it alive.
    pub(crate) fn bell(&self) -> Bell {
        self.0.clone()
    }
}

impl Drop for Mailbox {
    fn drop(&mut self) {
        self.0.send(Message::Stop);
    }
}

/// Sends messages to a worker and wakes it.
#[derive(Clone, Debug)]
pub(crate) struct Bell {
    sender: Sender<Message>,
    wake: Arc<OwnedFd>,
}

impl Bell {
    /// Asks what every connection is doing; the answer comes from the worker's loop, or never if that is stuck.
    pub(crate) fn describe(&self) -> Receiver<Vec<String>> {
        let (sender, answer) = std::sync::mpsc::channel();
        self.send(Message::Describe(sender));
        answer
    }

    /// Shuts the connections of a process; what it has asked for before is done.
    pub(crate) fn hang_up(&self, process: u32) {
        self.send(Message::HangUp(process));
    }

    /// A worker that has ended drops the message.
    fn send(&self, message: Message) {
        if self.sender.send(message).is_err() {
            return;
        }
        // The counter cannot overflow: the worker resets it. Nothing else makes this write fail.
        if let Err(error) = rustix::io::write(&self.wake, &1u64.to_ne_bytes()) {
            debug_assert!(false, "wake a worker: {error}");
        }
    }
}

pub(crate) struct Worker<B: Backend> {
    backend: Arc<B>,
    epoll: OwnedFd,
    wake: Arc<OwnedFd>,
    inbound: Receiver<Message>,
    lane: Lane<B::Queue>,
    connections: Vec<Option<Connection<B>>>,
    vacant: Vec<usize>,
    /// Connections to look at in this wake-up, and whether each is among them.
    touched: Vec<usize>,
    is_touched: Vec<bool>,
    done: Vec<Done>,
    /// Connections of the whole server.
    count: Arc<AtomicUsize>,
    /// A time limit may apply to somebody. Found out anew at each tick, so that a wake-up does not look at everybody.
    limited: bool,
    /// Somebody may wait for budget.
    starved: bool,
    stopping: bool,
}

impl<B: Backend> Worker<B> {
    /// To be called in the worker's thread: the queue never leaves it.
    pub(crate) fn new(backend: Arc<B>, budget: usize, count: Arc<AtomicUsize>) -> io::Result<(Worker<B>, Mailbox)> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        epoll::add(&epoll, &wake, EventData::new_u64(WAKE), EventFlags::IN)?;
        let queue = backend.queue()?;
        epoll::add(&epoll, queue.event_fd(), EventData::new_u64(QUEUE), EventFlags::IN)?;
        let (sender, inbound) = std::sync::mpsc::channel();
        let mailbox = Mailbox(Bell { sender, wake: Arc::clone(&wake) });
        let worker = Worker {
            backend,
            epoll,
            wake,
            inbound,
            lane: Lane::new(queue, budget),
            connections: Vec::new(),
            vacant: Vec::new(),
            touched: Vec::new(),
            is_touched: Vec::new(),
            done: Vec::new(),
            count,
            limited: false,
            starved: false,
            stopping: false,
        };
        Ok((worker, mailbox))
    }

    /// Serves until the mailbox is dropped and every connection has drained.
    pub(crate) fn run(mut self) -> io::Result<()> {
        let mut events = Vec::with_capacity(EVENTS);
        let mut next_tick = Instant::now() + TICK;
        while !(self.stopping && self.vacant.len() == self.connections.len()) {
            let timeout = self.timeout();
            self.wait(&mut events, timeout)?;
            self.lane.now = Instant::now();
            let (mut woken, mut poll) = (false, false);
            for event in &events {
                let (data, flags) = (event.data.u64(), event.flags);
                match data {
                    WAKE => woken = true,
                    QUEUE => poll = true,
                    _ => self.on_event((data - FIRST_CONNECTION) as usize, flags),
                }
            }
            self.turn(poll);
            // New connections come after the events: an index is not reused while old events name it.
            if woken {
                self.read_mailbox()?;
            }
            if self.lane.now >= next_tick {
                next_tick = self.lane.now + TICK;
                self.check_deadlines();
            }
        }
        Ok(())
    }

    fn wait(&self, events: &mut Vec<Event>, timeout: Option<Duration>) -> io::Result<()> {
        events.clear();
        let timeout = timeout
            .map(|timeout| Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: i64::from(timeout.subsec_nanos()) });
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(events), timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// No wait with work left over, short ones while time limits apply, else until something happens.
    fn timeout(&self) -> Option<Duration> {
        if !self.touched.is_empty() {
            return Some(Duration::ZERO);
        }
        (self.limited || self.starved).then_some(TICK)
    }

    fn on_event(&mut self, id: usize, flags: EventFlags) {
        if let Some(Some(connection)) = self.connections.get_mut(id) {
            let failed = flags.intersects(EventFlags::ERR | EventFlags::HUP);
            connection.on_event(
                flags.contains(EventFlags::IN),
                flags.contains(EventFlags::OUT) || failed,
                flags.contains(EventFlags::RDHUP) || failed,
            );
            self.touch(id);
        }
    }

    fn touch(&mut self, id: usize) {
        if !std::mem::replace(&mut self.is_touched[id], true) {
            self.touched.push(id);
        }
    }

    /// One batch. Leaves in `touched` who has more to do at once.
    fn turn(&mut self, poll: bool) {
        let receiving = self.touched.len();
        for at in 0..receiving {
            let id = self.touched[at];
            if let Some(connection) = &mut self.connections[id] {
                connection.pump(id, &mut self.lane, &*self.backend);
            }
        }
        if poll || self.lane.staged {
            self.lane.staged = false;
            self.collect();
        }
        let mut touched = std::mem::take(&mut self.touched);
        touched.retain(|&id| self.send(id));
        self.touched = touched;
        if self.starved && self.lane.take_released() {
            self.starved = false;
            for id in 0..self.connections.len() {
                if self.connections[id].as_ref().is_some_and(Connection::waits_for_budget) {
                    self.starved = true;
                    self.touch(id);
                }
            }
        }
    }

    fn collect(&mut self) {
        let mut done = std::mem::take(&mut self.done);
        self.lane.queue.poll(&mut done);
        for done in done.drain(..) {
            let Some(pending) = self.lane.finish(done.token) else {
                debug_assert!(false, "completion of the unknown token {:#x}", done.token);
                continue;
            };
            let id = pending.connection;
            if let Some(connection) = &mut self.connections[id] {
                connection.complete(pending, done, &mut self.lane);
                self.touch(id);
            }
        }
        self.done = done;
    }

    /// Sends a connection's replies and closes it if that was all; whether it wants another turn at once.
    fn send(&mut self, id: usize) -> bool {
        self.is_touched[id] = false;
        let Some(connection) = &mut self.connections[id] else { return false };
        connection.flush(&mut self.lane);
        if connection.is_finished() {
            self.close(id);
            return false;
        }
        self.limited |= connection.has_deadline();
        self.starved |= connection.waits_for_budget();
        let again = connection.wants_turn();
        self.is_touched[id] = again;
        again
    }

    fn close(&mut self, id: usize) {
        // Closing the socket takes it out of the epoll set: there are no duplicates of it.
        self.connections[id] = None;
        self.vacant.push(id);
        self.count.fetch_sub(1, Ordering::Relaxed);
    }

    fn read_mailbox(&mut self) -> io::Result<()> {
        let mut counter = [0; 8];
        match rustix::io::read(&self.wake, &mut counter[..]) {
            Ok(_) | Err(rustix::io::Errno::AGAIN) => {}
            Err(error) => return Err(error.into()),
        }
        loop {
            match self.inbound.try_recv() {
                Ok(Message::Serve(socket)) => self.adopt(socket),
                // Whoever asked may have lost patience.
                Ok(Message::Describe(answer)) => answer.send(self.describe()).unwrap_or(()),
                Ok(Message::HangUp(process)) => self.hang_up(process),
                Ok(Message::Stop) | Err(TryRecvError::Disconnected) => {
                    self.stop();
                    return Ok(());
                }
                Err(TryRecvError::Empty) => return Ok(()),
            }
        }
    }

    fn hang_up(&self, process: u32) {
        for connection in self.connections.iter().flatten().filter(|other| other.peer().process == Some(process)) {
            // The epoll loop hears of it as of any other end.
            if let Err(error) = rustix::net::shutdown(connection.socket(), rustix::net::Shutdown::Both) {
                debug_assert!(error == rustix::io::Errno::NOTCONN, "shut a connection: {error}");
            }
        }
    }

    fn adopt(&mut self, socket: OwnedFd) {
        let peer = peer_of(&socket);
        let id = self.vacant.pop().unwrap_or_else(|| {
            self.connections.push(None);
            self.is_touched.push(false);
            self.connections.len() - 1
        });
        let connection = Connection::new(socket, peer, self.lane.now);
        let data = EventData::new_u64(id as u64 + FIRST_CONNECTION);
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        let added = epoll::add(&self.epoll, connection.socket().as_fd(), data, flags);
        self.connections[id] = Some(connection);
        match added {
            Ok(()) => self.touch(id),
            // Out of kernel memory or watches: the client sees a closed connection and may try again.
            Err(_) => self.close(id),
        }
    }

    fn describe(&self) -> Vec<String> {
        self.connections.iter().flatten().map(|connection| connection.describe(self.lane.now)).collect()
    }

    fn stop(&mut self) {
        self.stopping = true;
        for id in 0..self.connections.len() {
            if let Some(connection) = &mut self.connections[id] {
                connection.stop(&mut self.lane);
                self.touch(id);
            }
        }
    }

    fn check_deadlines(&mut self) {
        self.starved = self.connections.iter().flatten().any(Connection::waits_for_budget);
        self.limited = self.connections.iter().flatten().any(Connection::has_deadline);
        for id in 0..self.connections.len() {
            if let Some(connection) = &mut self.connections[id] {
                connection.check_deadline(self.starved, &mut self.lane);
                if connection.is_finished() {
                    self.touch(id);
                }
            }
        }
    }
}
