//! Who asks: the owner of the process through its socket, or whoever holds a token.

use std::net::SocketAddr;

use axum::extract::connect_info::Connected;
use axum::http::{HeaderMap, header};
use axum::serve::IncomingStream;
use keyframe_catalog::TokenHash;
use keyframe_manager::Manager;
use keyframe_manager::request::Caller;
use keyframe_model::agent::Timestamp;
use tokio::net::{TcpListener, UnixListener};
use uuid::Uuid;

use crate::problem::Problem;

/// The other end of a connection.
#[derive(Clone, Debug)]
pub enum Peer {
    /// A process of this host, by the kernel's word; `None` if the kernel did not say whose.
    Local(Option<u32>),
    /// Anybody.
    Remote(SocketAddr),
}

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Peer {
        // Without credentials it is a stranger, who needs a token.
        Peer::Local(stream.io().peer_cred().ok().map(|credentials| credentials.uid()))
    }
}

impl Connected<IncomingStream<'_, TcpListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, TcpListener>) -> Peer {
        Peer::Remote(*stream.remote_addr())
    }
}

/// How old the note of a token's last use may be, in microseconds.
const COARSE: i64 = 60_000_000;

/// How a token is written in a request (RFC 6750, section 2.1).
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let text = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = text.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}

/// Who a request is by. A token counts more than a socket: who shows one wants to be that.
pub(crate) async fn caller(manager: &Manager, peer: Option<&Peer>, headers: &HeaderMap) -> Result<Caller, Problem> {
    if let Some(secret) = bearer(headers) {
        return by_token(manager, secret).await;
    }
    let own = rustix::process::geteuid().as_raw();
    match peer {
        Some(Peer::Local(Some(uid))) if *uid == own || *uid == 0 => Ok(Caller::admin(format!("uid {uid}"))),
        Some(Peer::Local(Some(uid))) => {
            Err(Problem::unauthorized(format!("user {uid} does not own this installation; show a token")))
        }
        Some(Peer::Local(None) | Peer::Remote(_)) | None => {
            Err(Problem::unauthorized("show a token: 'Authorization: Bearer TOKEN'"))
        }
    }
}

async fn by_token(manager: &Manager, secret: &str) -> Result<Caller, Problem> {
    let hash = TokenHash::of(secret);
    let found = manager.catalog().read().await?.token_by_hash(&hash).await?;
    let now = Timestamp::now();
    let Some(token) = found.filter(|token| token.expires.is_none_or(|at| at > now)) else {
        return Err(Problem::unauthorized("the token is not known, or no longer: show another one"));
    };
    // Roughly is enough, and a write for each request would be too much.
    if token.used.is_none_or(|used| used.0 < now.0 - COARSE) {
        // Who may look may look also when nothing can be written down.
        if let Err(e) = touch(manager, token.id, now).await {
            tracing::warn!("note that token {} was used: {e}", token.name);
        }
    }
    Ok(Caller::admin(token.owner.unwrap_or_else(|| format!("token {}", token.name))))
}

async fn touch(manager: &Manager, token: Uuid, at: Timestamp) -> keyframe_catalog::Result<()> {
    let mut catalog = manager.catalog().write().await?;
    catalog.touch_token(token, at).await?;
    catalog.commit().await.map(drop)
}
