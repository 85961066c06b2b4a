//! The handshake phase as a state machine: bytes in, bytes out, and the device that the client settled on.
//!
//! ```text
//! greeting ─▶ Flags ─client flags─▶ Options ─GO, EXPORT_NAME─▶ Step::Ready
//!                │                  │  ▲  └──ABORT, violation──▶ Step::End
//!                └─unknown flag─▶ End  └── Skip (oversized data)
//! ```
//! No I/O and no clock: the connection feeds it and cuts it when it makes no progress. Options are parsed in the
//! receive buffer, so a handshake holds no memory of its own. Protocol mode is NOTLS ("Server-side requirements").

use crate::backend::{Backend, Device, Export, ExportInfo, Peer};
use crate::error::OpenError;
use crate::limits::{MAX_OPTION_DATA, MAX_OPTIONS, MAX_PAYLOAD, MIN_BLOCK, PREFERRED_BLOCK};
use crate::option::{BadOption, info_query, meta_query, reply, text};
use crate::transmission::Session;
use crate::wire::{self, Fields, client_flag, handshake_flag, opt, rep};

const OPTION_HEADER: usize = 16;
const EXPORT_NAME_PADDING: usize = 124;

/// What a handshake wants after having been given bytes.
#[derive(Debug)]
pub enum Step<D> {
    /// More bytes than were given.
    More,
    /// To be called again with the bytes it left; the client has completed a step.
    Again,
    /// The transmission phase begins with the next byte.
    Ready {
        /// The device the client chose.
        device: D,
        /// What was negotiated for it.
        session: Session,
    },
    /// To be closed after its output is sent.
    End,
}

#[derive(Debug)]
enum State {
    Flags,
    Options,
    /// Data of an option that is too long to look at.
    Skip {
        left: usize,
        option: u32,
    },
}

/// One client's handshake.
#[derive(Debug)]
pub struct Handshake {
    state: State,
    no_zeroes: bool,
    structured: bool,
    /// Export for which the client selected `base:allocation`; another export's session does not get it.
    allocation_for: Option<String>,
    options: u32,
    peer: Peer,
}

impl Default for Handshake {
    fn default() -> Handshake {
        Handshake::new()
    }
}

impl Handshake {
    /// A handshake with nobody in particular.
    pub fn new() -> Handshake {
        Handshake::with(Peer::default())
    }

    /// A handshake before the client's first byte; [`GREETING`](Handshake::GREETING) goes out first.
    pub fn with(peer: Peer) -> Handshake {
        Handshake { state: State::Flags, no_zeroes: false, structured: false, allocation_for: None, options: 0, peer }
    }

    /// What the server says first ("Newstyle negotiation").
    pub const GREETING: [u8; 18] = {
        let mut bytes = [0; 18];
        let (init, option) = (wire::INIT_MAGIC.to_be_bytes(), wire::OPTION_MAGIC.to_be_bytes());
        let flags = (handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES).to_be_bytes();
        let mut i = 0;
        while i < 8 {
            bytes[i] = init[i];
            bytes[8 + i] = option[i];
            i += 1;
        }
        bytes[16] = flags[0];
        bytes[17] = flags[1];
        bytes
    };

    /// Looks at `input`, appends replies to `out`, and returns how many bytes of the input are done with.
    pub fn receive<B: Backend>(&mut self, input: &[u8], out: &mut Vec<u8>, backend: &B) -> (usize, Step<B::Device>) {
        match self.state {
            State::Flags => self.client_flags(input),
            State::Options => self.option(input, out, backend),
            State::Skip { left, option } => {
                let skipped = left.min(input.len());
                if skipped < left {
                    self.state = State::Skip { left: left - skipped, option };
                    return (skipped, Step::More);
                }
                self.state = State::Options;
                reply(out, option, rep::ERR_TOO_BIG, &[b"option data too long"]);
                (skipped, Step::Again)
            }
        }
    }

    /// "Client flags": unknown ones end the session. Clients without fixed newstyle are served all the same.
    fn client_flags<D>(&mut self, input: &[u8]) -> (usize, Step<D>) {
        let Some(flags) = Fields(input).u32() else { return (0, Step::More) };
        if flags & !(client_flag::FIXED_NEWSTYLE | client_flag::NO_ZEROES) != 0 {
            return (4, Step::End);
        }
        self.no_zeroes = flags & client_flag::NO_ZEROES != 0;
        self.state = State::Options;
        (4, Step::Again)
    }

    fn option<B: Backend>(&mut self, input: &[u8], out: &mut Vec<u8>, backend: &B) -> (usize, Step<B::Device>) {
        let mut fields = Fields(input);
        let (Some(magic), Some(option), Some(len)) = (fields.u64(), fields.u32(), fields.u32()) else {
            return (0, Step::More);
        };
        let len = len as usize;
        if magic != wire::OPTION_MAGIC || self.options == MAX_OPTIONS {
            return (OPTION_HEADER, Step::End);
        }
        if len > MAX_OPTION_DATA {
            self.options += 1;
            // EXPORT_NAME has no error reply, so the session ends.
            if option == opt::EXPORT_NAME {
                return (OPTION_HEADER, Step::End);
            }
            self.state = State::Skip { left: len, option };
            return (OPTION_HEADER, Step::Again);
        }
        let Some(data) = fields.bytes(len) else { return (0, Step::More) };
        self.options += 1;
        (OPTION_HEADER + len, self.dispatch(option, data, out, backend))
    }

    fn dispatch<B: Backend>(&mut self, option: u32, data: &[u8], out: &mut Vec<u8>, backend: &B) -> Step<B::Device> {
        match option {
            opt::EXPORT_NAME => return self.export_name(data, out, backend),
            opt::ABORT => {
                reply(out, option, rep::ACK, &[]);
                return Step::End;
            }
            opt::LIST if data.is_empty() => list(out, &backend.list()),
            opt::STRUCTURED_REPLY if data.is_empty() => {
                self.structured = true;
                reply(out, option, rep::ACK, &[]);
            }
            opt::LIST | opt::STRUCTURED_REPLY => reply(out, option, rep::ERR_INVALID, &[b"option takes no data"]),
            opt::INFO => self.info(data, out, backend),
            opt::GO => return self.go(data, out, backend),
            opt::LIST_META_CONTEXT => self.list_meta_context(data, out),
            opt::SET_META_CONTEXT => self.set_meta_context(data, out),
            _ => reply(out, option, rep::ERR_UNSUP, &[]),
        }
        Step::Again
    }

    /// `NBD_OPT_EXPORT_NAME`: no errors can be told, the session ends instead.
    fn export_name<B: Backend>(&self, data: &[u8], out: &mut Vec<u8>, backend: &B) -> Step<B::Device> {
        let Ok(name) = text(data) else { return Step::End };
        let Ok(device) = backend.open(name, self.peer) else { return Step::End };
        let session = self.session(name, &device);
        out.extend_from_slice(&device.size().to_be_bytes());
        out.extend_from_slice(&Session::flags(&ExportInfo::of(&device), self.structured).to_be_bytes());
        if !self.no_zeroes {
            out.extend_from_slice(&[0; EXPORT_NAME_PADDING]);
        }
        Step::Ready { device, session }
    }

    fn info<B: Backend>(&self, data: &[u8], out: &mut Vec<u8>, backend: &B) {
        let query = match info_query(data) {
            Ok(query) => query,
            Err(bad) => return refuse(out, opt::INFO, bad),
        };
        match backend.inspect(query.name) {
            Ok(info) => self.describe(opt::INFO, &query, &info, out),
            Err(error) => unavailable(out, opt::INFO, error),
        }
    }

    fn go<B: Backend>(&self, data: &[u8], out: &mut Vec<u8>, backend: &B) -> Step<B::Device> {
        let query = match info_query(data) {
            Ok(query) => query,
            Err(bad) => {
                refuse(out, opt::GO, bad);
                return Step::Again;
            }
        };
        match backend.open(query.name, self.peer) {
            Ok(device) => {
                self.describe(opt::GO, &query, &ExportInfo::of(&device), out);
                Step::Ready { session: self.session(query.name, &device), device }
            }
            Err(error) => {
                unavailable(out, opt::GO, error);
                Step::Again
            }
        }
    }

    /// The block size goes out unasked: a client that ignores it gets clean errors for what is outside of it.
    fn describe(&self, option: u32, query: &crate::option::InfoQuery<'_>, info: &ExportInfo, out: &mut Vec<u8>) {
        let kind = |kind: u16| kind.to_be_bytes();
        let flags = Session::flags(info, self.structured).to_be_bytes();
        reply(out, option, rep::INFO, &[&kind(wire::info::EXPORT), &info.size.to_be_bytes(), &flags]);
        if query.wants_name {
            reply(out, option, rep::INFO, &[&kind(wire::info::NAME), query.name.as_bytes()]);
        }
        if query.wants_description && !info.description.is_empty() {
            reply(out, option, rep::INFO, &[&kind(wire::info::DESCRIPTION), info.description.as_bytes()]);
        }
        let sizes = [MIN_BLOCK.to_be_bytes(), PREFERRED_BLOCK.to_be_bytes(), MAX_PAYLOAD.to_be_bytes()];
        reply(out, option, rep::INFO, &[&kind(wire::info::BLOCK_SIZE), &sizes[0], &sizes[1], &sizes[2]]);
        reply(out, option, rep::ACK, &[]);
    }

    fn list_meta_context(&self, data: &[u8], out: &mut Vec<u8>) {
        let option = opt::LIST_META_CONTEXT;
        match self.meta_query(data) {
            Err(bad) => refuse(out, option, bad),
            Ok(query) => {
                if query.empty || query.exact || query.wildcard {
                    meta_context(out, option, 0);
                }
                reply(out, option, rep::ACK, &[]);
            }
        }
    }

    /// Replaces the selection even when it fails. The wildcard selects nothing ("The `base:` metadata namespace").
    fn set_meta_context(&mut self, data: &[u8], out: &mut Vec<u8>) {
        let option = opt::SET_META_CONTEXT;
        self.allocation_for = None;
        match self.meta_query(data) {
            Err(bad) => refuse(out, option, bad),
            Ok(query) => {
                if query.exact {
                    self.allocation_for = Some(query.name.to_owned());
                    meta_context(out, option, wire::BASE_ALLOCATION_ID);
                }
                reply(out, option, rep::ACK, &[]);
            }
        }
    }

    /// Meta contexts need structured replies first.
    fn meta_query<'a>(&self, data: &'a [u8]) -> Result<crate::option::MetaQuery<'a>, BadOption> {
        if self.structured { meta_query(data) } else { Err(BadOption::Malformed) }
    }

    fn session(&self, name: &str, device: &impl Device) -> Session {
        Session {
            size: device.size(),
            read_only: device.read_only(),
            structured: self.structured,
            block_status: self.allocation_for.as_deref() == Some(name),
        }
    }
}

fn list(out: &mut Vec<u8>, exports: &[Export]) {
    for export in exports {
        let len = (export.name.len() as u32).to_be_bytes();
        reply(out, opt::LIST, rep::SERVER, &[&len, export.name.as_bytes(), export.description.as_bytes()]);
    }
    reply(out, opt::LIST, rep::ACK, &[]);
}

fn meta_context(out: &mut Vec<u8>, option: u32, id: u32) {
    reply(out, option, rep::META_CONTEXT, &[&id.to_be_bytes(), wire::BASE_ALLOCATION.as_bytes()]);
}

fn refuse(out: &mut Vec<u8>, option: u32, bad: BadOption) {
    match bad {
        BadOption::Malformed => reply(out, option, rep::ERR_INVALID, &[b"malformed option"]),
        BadOption::TooLong => reply(out, option, rep::ERR_TOO_BIG, &[b"string longer than 4096 bytes"]),
    }
}

fn unavailable(out: &mut Vec<u8>, option: u32, error: OpenError) {
    let kind = match error {
        OpenError::Unknown => rep::ERR_UNKNOWN,
        OpenError::Busy | OpenError::Failed => rep::ERR_POLICY,
    };
    reply(out, option, kind, &[error.to_string().as_bytes()]);
}
