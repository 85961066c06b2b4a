//! The transmission phase's requests: decoding, and the decision what each may do. Pure; every check that a backend may
//! rely on (flags, permission, bounds, alignment, size) is made here and nowhere else.

use crate::backend::ExportInfo;
use crate::error::{Errno, Refusal};
use crate::limits::{MAX_PAYLOAD, MIN_BLOCK};
use crate::wire::{self, Fields, cmd, cmd_flag, transmission_flag};

/// The header of a request ("Request message").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// Command flags.
    pub flags: u16,
    /// Request type.
    pub kind: u16,
    /// The client's name for it, repeated in the reply.
    pub cookie: u64,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u32,
}

/// The bytes are not a request; the stream cannot be resynchronised.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("no request magic")]
pub struct BadMagic;

impl Request {
    /// Length of the header.
    pub const LEN: usize = 28;

    /// Decodes the header at the front of `input`, if it is complete.
    pub fn parse(input: &[u8]) -> Result<Option<Request>, BadMagic> {
        let mut fields = Fields(input);
        let Some(magic) = fields.u32() else { return Ok(None) };
        if magic != wire::REQUEST_MAGIC {
            return Err(BadMagic);
        }
        let request = || {
            let (flags, kind) = (fields.u16()?, fields.u16()?);
            let (cookie, offset, len) = (fields.u64()?, fields.u64()?, fields.u32()?);
            Some(Request { flags, kind, cookie, offset, len })
        };
        Ok({ request }())
    }

    /// Whether it is a read, whose success has a form of its own.
    pub fn is_read(&self) -> bool {
        self.kind == cmd::READ
    }

    /// Bytes of data that follow the header, whatever becomes of the request.
    pub fn payload(&self) -> u32 {
        if self.kind == cmd::WRITE { self.len } else { 0 }
    }
}

/// What was negotiated for one connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Session {
    /// Size of the export in bytes.
    pub size: u64,
    /// Writes are refused.
    pub read_only: bool,
    /// Structured replies are in use.
    pub structured: bool,
    /// `base:allocation` was selected.
    pub block_status: bool,
}

/// What a valid request asks for. Ranges are those of the [`Request`], never empty.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Command {
    /// Send the range.
    Read,
    /// Store the payload.
    Write {
        /// Durable before the reply.
        fua: bool,
    },
    /// Make everything answered so far durable.
    Flush,
    /// Forget the range.
    Trim {
        /// Durable before the reply.
        fua: bool,
    },
    /// Make the range zero.
    WriteZeroes {
        /// Keep it provisioned.
        no_hole: bool,
        /// Durable before the reply.
        fua: bool,
    },
    /// Describe the range.
    BlockStatus {
        /// With a single extent.
        one: bool,
    },
    /// Nothing to do but to say yes.
    Nothing,
    /// Finish what is running, then close.
    Disconnect,
}

impl Session {
    /// "Transmission flags" for an export. `NBD_FLAG_SEND_DF` depends on structured replies.
    pub fn flags(info: &ExportInfo, structured: bool) -> u16 {
        use transmission_flag as flag;
        let mut flags = flag::HAS_FLAGS | flag::SEND_FLUSH | flag::SEND_FUA | flag::SEND_CACHE;
        flags |= if info.read_only {
            flag::READ_ONLY
        } else {
            flag::SEND_TRIM | flag::SEND_WRITE_ZEROES | flag::SEND_FAST_ZERO
        };
        if info.multi_conn {
            flags |= flag::CAN_MULTI_CONN;
        }
        if structured {
            flags |= flag::SEND_DF;
        }
        flags
    }

    /// Decides about a request. Error numbers follow "Error values" and the descriptions in "Request types".
    pub fn admit(&self, request: &Request) -> Result<Command, Refusal> {
        let command = self.command(request)?;
        match command {
            Command::Disconnect => return Ok(command),
            Command::Flush => {
                let plain = request.offset == 0 && request.len == 0;
                return if plain { Ok(command) } else { Err(invalid("flush takes no range")) };
            }
            _ => {}
        }
        let writes = matches!(command, Command::Write { .. } | Command::Trim { .. } | Command::WriteZeroes { .. });
        if writes && self.read_only {
            return Err(Refusal::new(Errno::Perm, "the export is read-only"));
        }
        if matches!(command, Command::Read | Command::Write { .. }) && request.len > MAX_PAYLOAD {
            // "Command flags", NBD_CMD_FLAG_DF: the one case for EOVERFLOW.
            let unfragmented = request.flags & cmd_flag::DF != 0;
            let errno = if unfragmented { Errno::Overflow } else { Errno::Inval };
            return Err(Refusal::new(errno, "the request is longer than the maximum block size"));
        }
        self.check_range(request, command)?;
        if let Command::WriteZeroes { no_hole: true, .. } = command
            && request.flags & cmd_flag::FAST_ZERO != 0
        {
            // Provisioning writes every block, which is no faster than a write.
            return Err(Refusal::new(Errno::NotSup, "provisioned zeroes are not fast"));
        }
        match command {
            Command::BlockStatus { .. } if request.len == 0 => Err(invalid("the range is empty")),
            _ if request.len == 0 => Ok(Command::Nothing),
            _ => Ok(command),
        }
    }

    /// "Command flags": FUA goes with every command, the others with their own.
    fn command(&self, request: &Request) -> Result<Command, Refusal> {
        let fua = request.flags & cmd_flag::FUA != 0;
        let (command, allowed) = match request.kind {
            cmd::READ if self.structured => (Command::Read, cmd_flag::DF),
            cmd::READ => (Command::Read, 0),
            cmd::WRITE => (Command::Write { fua }, 0),
            // The reply could not be sent, so the flags do not matter.
            cmd::DISC => return Ok(Command::Disconnect),
            cmd::FLUSH => (Command::Flush, 0),
            cmd::TRIM => (Command::Trim { fua }, 0),
            // A hint that asks for no effect.
            cmd::CACHE => (Command::Nothing, 0),
            cmd::WRITE_ZEROES => {
                let no_hole = request.flags & cmd_flag::NO_HOLE != 0;
                (Command::WriteZeroes { no_hole, fua }, cmd_flag::NO_HOLE | cmd_flag::FAST_ZERO)
            }
            cmd::BLOCK_STATUS if self.block_status => {
                (Command::BlockStatus { one: request.flags & cmd_flag::REQ_ONE != 0 }, cmd_flag::REQ_ONE)
            }
            cmd::BLOCK_STATUS => return Err(invalid("no metadata context was selected")),
            _ => return Err(invalid("unknown command")),
        };
        if request.flags & !(allowed | cmd_flag::FUA) != 0 {
            return Err(invalid("a command flag does not apply"));
        }
        Ok(command)
    }

    fn check_range(&self, request: &Request, command: Command) -> Result<(), Refusal> {
        let end = request.offset.checked_add(u64::from(request.len));
        if end.is_none_or(|end| end > self.size) {
            let errno = match command {
                Command::Write { .. } | Command::WriteZeroes { .. } => Errno::NoSpc,
                _ => Errno::Inval,
            };
            return Err(Refusal::new(errno, "the range ends beyond the export"));
        }
        let min = u64::from(MIN_BLOCK);
        if !request.offset.is_multiple_of(min) || !request.len.is_multiple_of(MIN_BLOCK) {
            return Err(invalid("the range is not a multiple of the minimum block size"));
        }
        Ok(())
    }
}

const fn invalid(message: &'static str) -> Refusal {
    Refusal::new(Errno::Inval, message)
}
