//! One client: what of its input may be processed now, and what becomes of completed requests.
//!
//! ```text
//! Open ──DISC, end of input, violation, stop──▶ Drain ──everything answered and sent──▶ closed
//!   └────────────socket broken, stalled──────▶ Cut ────everything answered───────────▶ closed
//! ```
//! Invariants: a request holds a slot until its reply is with the kernel, and budget for its buffer as long; the device
//! outlives every request on it. A header is looked at again later when there is no slot or budget for it, and until
//! then the socket is not read: that is the only back-pressure.

use std::os::fd::OwnedFd;
use std::time::Instant;

use keyframe_engine::{Done, IoBuf, Op};

use crate::backend::{Backend, Peer};
use crate::error::{Errno, Refusal};
use crate::handshake::{Handshake, Step};
use crate::inbox::{Fill, Inbox};
use crate::lane::{Lane, Pending};
use crate::limits::{
    CONNECTION_BYTES, HANDSHAKE_TIMEOUT, INBOX, LARGE_PAYLOAD, LINGER_TIMEOUT, MAX_EXTENTS, MAX_IN_FLIGHT,
    STALL_TIMEOUT, STREAM_WINDOW, TURN_BYTES, TURN_RECEIVES,
};
use crate::outbox::{Outbox, Sent};
use crate::pool::Pool;
use crate::reply::{DESCRIPTOR, Frame};
use crate::transmission::{Command, Request, Session};

enum Phase<D> {
    Handshake(Handshake),
    Transmission { device: D, session: Session },
}

/// The message that is being received.
enum Receiving {
    Header,
    /// Data of a write that was admitted.
    Payload {
        pending: Pending,
        buf: IoBuf,
        filled: usize,
    },
    /// Data of a write that was refused; the reply follows it, since some clients do not read while they send.
    Skip {
        left: u32,
        reply: Frame,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ending {
    Open,
    Drain,
    Cut,
}

/// Why input waits although there is some.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Wait {
    /// For this client's own requests or replies.
    Own,
    /// For budget that other clients of the worker hold.
    Budget,
    /// For the others' turn only.
    Turn,
}

pub(crate) struct Connection<B: Backend> {
    socket: OwnedFd,
    peer: Peer,
    phase: Phase<B::Device>,
    inbox: Inbox,
    outbox: Outbox,
    receiving: Receiving,
    ending: Ending,
    wait: Option<Wait>,
    in_flight: usize,
    charged: usize,
    /// Payload started in this turn.
    turn: usize,
    /// The last payload was large: keep the next ones out of the inbox.
    streaming: bool,
    readable: bool,
    writable: bool,
    /// An end of input was announced: a short receive does not mean that nothing is left.
    hangup: bool,
    last_progress: Instant,
}

impl<B: Backend> Connection<B> {
    pub(crate) fn new(socket: OwnedFd, peer: Peer, now: Instant) -> Connection<B> {
        let mut outbox = Outbox::new();
        outbox.push(Frame::bytes(Handshake::GREETING.to_vec()));
        Connection {
            socket,
            peer,
            phase: Phase::Handshake(Handshake::with(peer)),
            inbox: Inbox::new(),
            outbox,
            receiving: Receiving::Header,
            ending: Ending::Open,
            wait: None,
            in_flight: 0,
            charged: 0,
            turn: 0,
            streaming: false,
            readable: true,
            writable: true,
            hangup: false,
            last_progress: now,
        }
    }

    pub(crate) fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    pub(crate) fn peer(&self) -> Peer {
        self.peer
    }

    pub(crate) fn on_event(&mut self, readable: bool, writable: bool, hangup: bool) {
        self.readable |= readable || hangup;
        self.writable |= writable;
        self.hangup |= hangup;
    }

    /// Receives and processes until the socket is empty, something has to be waited for, or the turn is over. What was
    /// received last is processed too: a socket that it emptied brings no event for what is left of it here.
    pub(crate) fn pump(&mut self, id: usize, lane: &mut Lane<B::Queue>, backend: &B) {
        self.turn = 0;
        self.process_all(id, lane, backend);
        for _ in 0..TURN_RECEIVES {
            if self.ending != Ending::Open || self.wait.is_some() || !self.readable {
                return;
            }
            self.receive(lane);
            self.process_all(id, lane, backend);
        }
    }

    /// Afterwards the input ends in the middle of a message, or [`Connection::wait`] says what it waits for.
    fn process_all(&mut self, id: usize, lane: &mut Lane<B::Queue>, backend: &B) {
        self.wait = None;
        while self.ending == Ending::Open && self.wait.is_none() && self.process(id, lane, backend) {}
    }

    fn receive(&mut self, lane: &mut Lane<B::Queue>) {
        let payload = match &mut self.receiving {
            Receiving::Payload { buf, filled, .. } => &mut buf[*filled..],
            Receiving::Header | Receiving::Skip { .. } => &mut [],
        };
        let window = if self.streaming { STREAM_WINDOW } else { INBOX };
        match self.inbox.fill(&self.socket, payload, window) {
            Fill::Some { payload, drained } => {
                if let Receiving::Payload { filled, .. } = &mut self.receiving {
                    *filled += payload;
                }
                self.readable = !drained || self.hangup;
                if matches!(self.phase, Phase::Transmission { .. }) {
                    self.last_progress = lane.now;
                }
            }
            Fill::Empty => self.readable = false,
            Fill::Eof => self.drain(lane),
            Fill::Broken => self.cut(lane),
        }
    }

    /// Processes one message or part of one; false when more bytes are needed.
    fn process(&mut self, id: usize, lane: &mut Lane<B::Queue>, backend: &B) -> bool {
        if let Phase::Handshake(handshake) = &mut self.phase {
            // One option at a time: a client that does not read its replies gets no more of them.
            if !self.outbox.is_empty() {
                self.wait = Some(Wait::Own);
                return false;
            }
            let mut out = Vec::new();
            let (used, step) = handshake.receive(self.inbox.bytes(), &mut out, backend);
            self.inbox.consume(used);
            if !out.is_empty() {
                self.outbox.push(Frame::bytes(out));
            }
            return self.step(step, lane);
        }
        match std::mem::replace(&mut self.receiving, Receiving::Header) {
            Receiving::Header => self.header(id, lane),
            Receiving::Payload { pending, buf, filled } => self.payload(pending, buf, filled, lane),
            Receiving::Skip { left, reply } => self.skip(left, reply),
        }
    }

    fn step(&mut self, step: Step<B::Device>, lane: &mut Lane<B::Queue>) -> bool {
        match step {
            Step::More => return false,
            Step::Again => self.last_progress = lane.now,
            Step::Ready { device, session } => {
                self.last_progress = lane.now;
                self.phase = Phase::Transmission { device, session };
            }
            Step::End => self.drain(lane),
        }
        true
    }

    fn header(&mut self, id: usize, lane: &mut Lane<B::Queue>) -> bool {
        let Phase::Transmission { session, .. } = &self.phase else { return false };
        let session = *session;
        let request = match Request::parse(self.inbox.bytes()) {
            Ok(Some(request)) => request,
            Ok(None) => return false,
            Err(_) => {
                self.drain(lane);
                return true;
            }
        };
        if self.in_flight + self.outbox.len() >= MAX_IN_FLIGHT {
            self.wait = Some(Wait::Own);
            return false;
        }
        match session.admit(&request) {
            Ok(Command::Disconnect) => self.drain(lane),
            Ok(Command::Nothing) => self.inbox_reply(&request, nothing(&session, &request)),
            Ok(command) => return self.start(id, request, command, lane),
            Err(refusal) => {
                let reply = Frame::error(session.structured, request.cookie, refusal);
                self.inbox_reply(&request, reply);
            }
        }
        true
    }

    /// Answers a request without the backend, after its payload if it has one.
    fn inbox_reply(&mut self, request: &Request, reply: Frame) {
        self.inbox.consume(Request::LEN);
        match request.payload() {
            0 => self.outbox.push(reply),
            left => self.receiving = Receiving::Skip { left, reply },
        }
    }

    /// Takes the budget of an admitted request and starts it, or leaves its header for later.
    fn start(&mut self, id: usize, request: Request, command: Command, lane: &mut Lane<B::Queue>) -> bool {
        let len = request.len as usize;
        let charge = match command {
            Command::Read | Command::Write { .. } => Pool::cost(len),
            Command::BlockStatus { .. } => MAX_EXTENTS * DESCRIPTOR,
            _ => 0,
        };
        if self.turn >= TURN_BYTES {
            self.wait = Some(Wait::Turn);
            return false;
        }
        if self.charged + charge > CONNECTION_BYTES {
            self.wait = Some(Wait::Own);
            return false;
        }
        if !lane.charge(charge) {
            self.wait = Some(Wait::Budget);
            return false;
        }
        self.charged += charge;
        self.turn += charge;
        self.in_flight += 1;
        self.inbox.consume(Request::LEN);
        let Request { cookie, offset, len: request_len, .. } = request;
        let pending = Pending { connection: id, cookie, offset, len: request_len, command, charge };
        let bytes = u64::from(request_len);
        let op = match command {
            Command::Write { .. } => {
                self.streaming = len >= LARGE_PAYLOAD;
                self.receiving = Receiving::Payload { pending, buf: lane.pool.take(len), filled: 0 };
                return true;
            }
            Command::Read => Op::Read { offset, buf: lane.pool.take(len) },
            Command::Trim { fua } => Op::Discard { offset, len: bytes, fua },
            Command::WriteZeroes { no_hole, fua } => Op::WriteZeroes { offset, len: bytes, no_hole, fua },
            Command::BlockStatus { one } => Op::Status { offset, len: bytes, max: if one { 1 } else { MAX_EXTENTS } },
            Command::Flush | Command::Nothing | Command::Disconnect => Op::Flush,
        };
        self.submit(pending, op, lane);
        true
    }

    fn payload(&mut self, pending: Pending, mut buf: IoBuf, filled: usize, lane: &mut Lane<B::Queue>) -> bool {
        let filled = filled + self.inbox.copy_to(&mut buf[filled..]);
        if filled < buf.len() {
            self.receiving = Receiving::Payload { pending, buf, filled };
            return false;
        }
        let fua = matches!(pending.command, Command::Write { fua: true });
        let op = Op::Write { offset: pending.offset, buf, fua };
        self.submit(pending, op, lane);
        true
    }

    fn skip(&mut self, left: u32, reply: Frame) -> bool {
        let skipped = self.inbox.bytes().len().min(left as usize);
        self.inbox.consume(skipped);
        match left - skipped as u32 {
            0 => {
                self.outbox.push(reply);
                true
            }
            left => {
                self.receiving = Receiving::Skip { left, reply };
                false
            }
        }
    }

    fn submit(&mut self, pending: Pending, op: Op, lane: &mut Lane<B::Queue>) {
        if let Phase::Transmission { device, .. } = &self.phase {
            lane.submit(device, pending, op);
        }
    }

    /// Turns a completion into a reply.
    pub(crate) fn complete(&mut self, pending: Pending, done: Done, lane: &mut Lane<B::Queue>) {
        self.in_flight -= 1;
        let session = match &self.phase {
            Phase::Transmission { session, .. } if self.ending != Ending::Cut => *session,
            _ => {
                lane.recycle(done.buf);
                return self.release(pending.charge, lane);
            }
        };
        let (frame, spare) = reply(&session, &pending, done);
        lane.recycle(spare);
        let holds = matches!(pending.command, Command::Read | Command::BlockStatus { .. });
        let kept = if holds { pending.charge } else { 0 };
        self.release(pending.charge - kept, lane);
        self.outbox.push(frame.with_charge(kept));
    }

    fn release(&mut self, charge: usize, lane: &mut Lane<B::Queue>) {
        self.charged -= charge;
        lane.release(charge);
    }

    /// Sends what the socket takes.
    pub(crate) fn flush(&mut self, lane: &mut Lane<B::Queue>) {
        if self.outbox.is_empty() || !self.writable || self.ending == Ending::Cut {
            return;
        }
        let charged = &mut self.charged;
        let (sent, moved) = self.outbox.flush(&self.socket, |frame| {
            *charged -= frame.charge;
            lane.release(frame.charge);
            let buf = frame.into_buf();
            lane.recycle(buf);
        });
        if moved && !matches!(self.phase, Phase::Handshake(_)) {
            self.last_progress = lane.now;
        }
        match sent {
            Sent::All => {}
            Sent::Blocked => self.writable = false,
            Sent::Broken => self.cut(lane),
        }
    }

    /// Takes no more input; what was submitted is finished and answered.
    pub(crate) fn drain(&mut self, lane: &mut Lane<B::Queue>) {
        if self.ending == Ending::Open {
            self.ending = Ending::Drain;
            self.last_progress = lane.now;
            self.abandon_payload(lane);
        }
    }

    /// A handshake is not worth finishing when the server stops.
    pub(crate) fn stop(&mut self, lane: &mut Lane<B::Queue>) {
        match self.phase {
            Phase::Handshake(_) => self.cut(lane),
            Phase::Transmission { .. } => self.drain(lane),
        }
    }

    fn cut(&mut self, lane: &mut Lane<B::Queue>) {
        self.ending = Ending::Cut;
        self.abandon_payload(lane);
        while let Some(frame) = self.outbox.pop() {
            self.release(frame.charge, lane);
            lane.recycle(frame.into_buf());
        }
    }

    fn abandon_payload(&mut self, lane: &mut Lane<B::Queue>) {
        if let Receiving::Payload { pending, buf, .. } = std::mem::replace(&mut self.receiving, Receiving::Header) {
            self.in_flight -= 1;
            self.release(pending.charge, lane);
            lane.pool.put(buf);
        }
    }

    /// Cuts a client that exceeds its time. `starved`: somebody waits for budget.
    pub(crate) fn check_deadline(&mut self, starved: bool, lane: &mut Lane<B::Queue>) {
        let idle = lane.now.saturating_duration_since(self.last_progress);
        let receiving = usize::from(matches!(self.receiving, Receiving::Payload { .. }));
        let only_client_can_move = self.in_flight == receiving;
        let overdue = match (&self.phase, self.ending) {
            (_, Ending::Cut) => false,
            (_, Ending::Drain) => only_client_can_move && idle >= LINGER_TIMEOUT,
            (Phase::Handshake(_), Ending::Open) => idle >= HANDSHAKE_TIMEOUT,
            (Phase::Transmission { .. }, Ending::Open) => {
                starved && self.charged > 0 && only_client_can_move && idle >= STALL_TIMEOUT
            }
        };
        if overdue {
            self.cut(lane);
        }
    }

    /// Whether time limits apply, so that the worker has to look now and then.
    pub(crate) fn has_deadline(&self) -> bool {
        self.ending != Ending::Open || matches!(self.phase, Phase::Handshake(_))
    }

    /// Input can be processed without an event.
    pub(crate) fn wants_turn(&self) -> bool {
        self.ending == Ending::Open
            && match self.wait {
                None => self.readable,
                Some(Wait::Own) => match self.phase {
                    Phase::Handshake(_) => self.outbox.is_empty(),
                    Phase::Transmission { .. } => self.has_own_room(),
                },
                Some(Wait::Budget) => false,
                Some(Wait::Turn) => true,
            }
    }

    /// Enough to make a try worthwhile: a try that fails costs little, one per finished reply a lot.
    fn has_own_room(&self) -> bool {
        self.in_flight + self.outbox.len() < MAX_IN_FLIGHT && self.charged <= CONNECTION_BYTES / 2
    }

    pub(crate) fn waits_for_budget(&self) -> bool {
        self.ending == Ending::Open && self.wait == Some(Wait::Budget)
    }

    /// For people: what it is doing and who has to move.
    pub(crate) fn describe(&self, now: Instant) -> String {
        let phase = match self.phase {
            Phase::Handshake(_) => "handshake",
            Phase::Transmission { .. } => "transmission",
        };
        let message = match &self.receiving {
            Receiving::Header => String::new(),
            Receiving::Payload { buf, filled, .. } => format!(", {filled} of a payload of {}", buf.len()),
            Receiving::Skip { left, .. } => format!(", {left} of a refused payload to come"),
        };
        format!(
            "{phase}, {:?}, waits for {:?}, {} in flight, {} replies unsent, {} bytes received and not processed{message}, \
             readable {}, writable {}, last progress {:?} ago",
            self.ending,
            self.wait,
            self.in_flight,
            self.outbox.len(),
            self.inbox.bytes().len(),
            self.readable,
            self.writable,
            now.saturating_duration_since(self.last_progress),
        )
    }

    /// Nothing is left to do; dropping it closes the socket and detaches the device.
    pub(crate) fn is_finished(&self) -> bool {
        match self.ending {
            Ending::Open => false,
            Ending::Drain => self.in_flight == 0 && self.outbox.is_empty(),
            Ending::Cut => self.in_flight == 0,
        }
    }
}

fn nothing(session: &Session, request: &Request) -> Frame {
    if request.is_read() { Frame::empty_read(session.structured, request.cookie) } else { Frame::done(request.cookie) }
}

/// The reply to a completion, and the buffer if the reply does not carry it.
fn reply(session: &Session, pending: &Pending, done: Done) -> (Frame, Option<IoBuf>) {
    const BROKEN: Refusal = Refusal::new(Errno::Io, "the backend gave no valid answer");
    let refuse = |refusal| Frame::error(session.structured, pending.cookie, refusal);
    if let Err(error) = done.result {
        return (refuse(error.kind().into()), done.buf);
    }
    match pending.command {
        Command::Read => match done.buf {
            Some(buf) if buf.len() == pending.len as usize => {
                (Frame::data(session.structured, pending.cookie, pending.offset, buf), None)
            }
            buf => (refuse(BROKEN), buf),
        },
        Command::BlockStatus { one } => {
            let Pending { cookie, offset, len, .. } = *pending;
            let frame = Frame::block_status(cookie, offset, len, one, &done.extents);
            (frame.unwrap_or_else(|| refuse(BROKEN)), done.buf)
        }
        _ => (Frame::done(pending.cookie), done.buf),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use super::*;
    use crate::backend::Queue;
    use crate::memory::{Memory, MemoryExport};

    /// Does what the worker does after an event, until the connection wants no more turns.
    fn serve(connection: &mut Connection<Memory>, lane: &mut Lane<crate::memory::MemoryQueue>, backend: &Memory) {
        connection.on_event(true, true, false);
        let mut done = Vec::new();
        loop {
            connection.pump(0, lane, backend);
            lane.queue.poll(&mut done);
            for done in done.drain(..) {
                let pending = lane.finish(done.token).unwrap();
                connection.complete(pending, done, lane);
            }
            connection.flush(lane);
            if !connection.wants_turn() {
                break;
            }
        }
    }

    fn writes(count: usize, len: usize) -> Vec<u8> {
        let header = |cookie: u64| {
            let fields = [&[0x25, 0x60, 0x95, 0x13, 0, 0, 0, 1], &cookie.to_be_bytes()[..], &[0; 8]];
            [&fields.concat()[..], &(len as u32).to_be_bytes()].concat()
        };
        (0..count as u64).flat_map(|cookie| [header(cookie), vec![7; len]].concat()).collect()
    }

    /// The socket reports each arrival once, so nothing may be left over when it has been read empty, at whichever
    /// receive of a turn that happens.
    #[test]
    fn whatever_was_received_is_processed_without_another_event() {
        let backend = Memory::new([MemoryExport::new("vm", 1 << 20)]);
        let mut lane = Lane::new(backend.queue().unwrap(), CONNECTION_BYTES);
        let (mut client, server) = UnixStream::pair().unwrap();
        client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        client.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
        rustix::net::sockopt::set_socket_send_buffer_size(&client, 1 << 20).unwrap();
        server.set_nonblocking(true).unwrap();
        let mut connection = Connection::new(server.into(), Peer::default(), lane.now);
        client.write_all(b"\0\0\0\x03IHAVEOPT\0\0\0\x01\0\0\0\x02vm").unwrap();
        serve(&mut connection, &mut lane, &backend);
        client.read_exact(&mut [0; 28]).unwrap();
        // From the first large payload on, each receive ends shortly after a payload: a batch of n takes about n receives.
        for count in 1..=TURN_RECEIVES + 1 {
            client.write_all(&writes(count, LARGE_PAYLOAD)).unwrap();
            serve(&mut connection, &mut lane, &backend);
            let answered = client.read_exact(&mut vec![0; count * 16]).is_ok();
            assert!(answered, "a batch of {count} is not answered: {} bytes left", connection.inbox.bytes().len());
        }
    }
}
