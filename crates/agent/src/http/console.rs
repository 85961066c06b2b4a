//! A machine's serial console over a web socket: bytes both ways until one side ends, or another session takes over.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use axum::extract::{FromRequestParts, Request, State};
use axum::response::{IntoResponse, Response};
use keyframe_agent_api::{Fault, FaultKind, OpenConsole, VmId, route};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::answer::{Path, Query, Refused};
use crate::agent::Agent;
use crate::consoles::Session;

/// Bytes read from a console at once.
const PIECE: usize = 16 << 10;
/// How long whoever loses its console may take to hear of it.
const FAREWELL: Duration = Duration::from_secs(1);

pub(super) async fn open(
    State(agent): State<Arc<Agent>>,
    Path(vm): Path<VmId>,
    Query(wish): Query<OpenConsole>,
    request: Request,
) -> Result<Response, Refused> {
    let (mut parts, _) = request.into_parts();
    let upgrade = WebSocketUpgrade::from_request_parts(&mut parts, &()).await.map_err(|rejection| {
        Refused(Fault::new(FaultKind::Invalid, format!("a console is a web socket: {}", rejection.body_text())))
    })?;
    let found = tokio::task::spawn_blocking(move || agent.console(vm, wish.force)).await;
    let (path, session) = found.unwrap_or_else(|_| Err(crate::agent::panicked()))?;
    let console = connect(&path, vm).await?;
    Ok(upgrade.on_upgrade(move |socket| hold(socket, console, session)).into_response())
}

async fn connect(path: &PathBuf, vm: VmId) -> Result<UnixStream, Refused> {
    UnixStream::connect(path).await.map_err(|error| {
        Refused(Fault::new(FaultKind::Internal, format!("cannot open the console of machine {vm}: {error}")))
    })
}

/// Relays until the session is over, and tells one that was overruled why.
async fn hold(mut socket: WebSocket, console: UnixStream, session: Session) {
    tokio::select! {
        () = relay(&mut socket, console) => {}
        () = session.lost() => {
            let frame = CloseFrame { code: route::TAKEN_OVER, reason: "another session took over".into() };
            let told = tokio::time::timeout(FAREWELL, socket.send(Message::Close(Some(frame)))).await;
            // One that does not even hear this ends with its connection.
            tracing::debug!(?told, "a console was taken over");
        }
    }
}

/// Ends when either side does; a failure on one is the end of both.
async fn relay(socket: &mut WebSocket, mut console: UnixStream) {
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
