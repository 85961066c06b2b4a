//! Every limit of the server in one place. Back-pressure is the absence of a slot or of budget: the socket is not read.

use std::time::Duration;

/// Smallest addressable unit that is advertised and enforced ("Block size constraints").
pub const MIN_BLOCK: u32 = 512;
/// Size and alignment below which requests cost a read-modify-write.
pub const PREFERRED_BLOCK: u32 = 4096;
/// Largest payload of one read or write. The protocol asks servers to bear 32 MiB from any client.
pub const MAX_PAYLOAD: u32 = 32 << 20;

/// Longest string ("Conventions").
pub const MAX_STRING: usize = 4096;
/// Most data of one handshake option; longer ones are skipped and refused.
pub const MAX_OPTION_DATA: usize = 16 << 10;
/// Most options in one handshake.
pub const MAX_OPTIONS: u32 = 256;
/// A handshake that completes no option for this long is cut.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Requests of one connection that are executing or whose reply is not fully sent.
pub const MAX_IN_FLIGHT: usize = 256;
/// Bytes of payload buffers one connection may hold. At least [`MAX_PAYLOAD`].
pub const CONNECTION_BYTES: usize = 64 << 20;
/// Default of [`Config::budget`](crate::Config::budget): bytes of payload buffers that all connections may hold.
pub const SERVER_BYTES: usize = 512 << 20;
/// Default of [`Config::max_connections`](crate::Config::max_connections).
pub const MAX_CONNECTIONS: usize = 1024;
/// Idle buffers that one worker keeps for reuse, in bytes.
pub const POOL_BYTES: usize = 32 << 20;
/// Most extents in one answer to a block status request.
pub const MAX_EXTENTS: usize = 1024;

/// Receive buffer of a connection, beside the budget: a server holds at most this times its connections for them.
pub const INBOX: usize = 64 << 10;
/// What is read ahead of a client that sends large payloads, so that the payloads themselves are received in place.
pub const STREAM_WINDOW: usize = 4 << 10;
/// Payloads from this size on count as large.
pub const LARGE_PAYLOAD: usize = 16 << 10;
/// Receives of one connection before the others of its worker get a turn.
pub const TURN_RECEIVES: usize = 8;
/// Payload that one connection may start before the others get a turn and its finished replies are sent, which also lets
/// the same few buffers, still in the cache, serve the rest of a large batch.
pub const TURN_BYTES: usize = 1 << 20;

/// When others wait for budget, a connection that holds some and whose client has moved no byte for this long is cut.
pub const STALL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may take to read the last replies of a connection that is being closed, without any progress.
pub const LINGER_TIMEOUT: Duration = Duration::from_secs(10);
/// TCP keep-alive: idle time, interval, probes. A dead host lets go of its devices after idle + interval × probes.
pub const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(30), Duration::from_secs(10), 3);
