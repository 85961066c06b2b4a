//! A machine's serial console over a web socket: bytes both ways until one side ends.

use std::path::PathBuf;
use std::sync::Arc;

use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{FromRequestParts, Request, State};
use axum::response::{IntoResponse, Response};
use keyframe_agent_api::{Fault, FaultKind, VmId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::answer::{Path, Refused};
use crate::agent::Agent;

/// Bytes read from a console at once.
const PIECE: usize = 16 << 10;

pub(super) async fn open(
    State(agent): State<Arc<Agent>>,
    Path(vm): Path<VmId>,
    request: Request,
) -> Result<Response, Refused> {
    let (mut parts, _) = request.into_parts();
    let upgrade = WebSocketUpgrade::from_request_parts(&mut parts, &()).await.map_err(|rejection| {
        Refused(Fault::new(FaultKind::Invalid, format!("a console is a web socket: {}", rejection.body_text())))
    })?;
    let found = tokio::task::spawn_blocking(move || agent.console(vm)).await;
    let path = found.unwrap_or_else(|_| Err(crate::agent::panicked()))?;
    let console = connect(&path, vm).await?;
    Ok(upgrade.on_upgrade(move |socket| relay(socket, console)).into_response())
}

async fn connect(path: &PathBuf, vm: VmId) -> Result<UnixStream, Refused> {
    UnixStream::connect(path).await.map_err(|error| {
        let why = format!("cannot open the console of machine {vm}: {error}; somebody else may be reading it");
        Refused(Fault::new(FaultKind::Busy, why))
    })
}

/// Ends when either side does; a failure on one is the end of both.
async fn relay(mut socket: WebSocket, mut console: UnixStream) {
    let mut buffer = vec![0; PIECE];
    loop {
        let alive = tokio::select! {
            read = console.read(&mut buffer) => match read {
                Ok(0) | Err(_) => false,
                Ok(len) => socket.send(Message::Binary(buffer[..len].to_vec().into())).await.is_ok(),
            },
            message = socket.recv() => match message {
                Some(Ok(Message::Binary(bytes))) => console.write_all(&bytes).await.is_ok(),
                Some(Ok(Message::Text(text))) => console.write_all(text.as_bytes()).await.is_ok(),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => true,
                Some(Ok(Message::Close(_)) | Err(_)) | None => false,
            },
        };
        if !alive {
            return;
        }
    }
}
