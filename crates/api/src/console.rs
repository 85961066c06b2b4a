//! A machine's console: a WebSocket that is only passed on. Who asks is checked here, the frames are the agent's.

use axum::body::Body;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use keyframe_manager::{Console, ErrorKind};
use tokio_util::sync::CancellationToken;

use crate::State;
use crate::problem::Problem;

/// The client's half of a WebSocket handshake (RFC 6455, section 4.1).
pub(crate) struct Handshake {
    /// What the answer's `Sec-WebSocket-Accept` is made of.
    pub(crate) key: String,
    upgrade: OnUpgrade,
}

impl FromRequestParts<State> for Handshake {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &State) -> Result<Handshake, Problem> {
        let says = |name: &str| parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("").to_owned();
        let websocket = says("upgrade").eq_ignore_ascii_case("websocket") && says("sec-websocket-version") == "13";
        let key = says("sec-websocket-key");
        match parts.extensions.remove::<OnUpgrade>() {
            Some(upgrade) if websocket && !key.is_empty() => Ok(Handshake { key, upgrade }),
            _ => {
                let status = StatusCode::UPGRADE_REQUIRED;
                Err(Problem::with_status(ErrorKind::Invalid, status, "not a WebSocket", "open this as a WebSocket"))
            }
        }
    }
}

impl Handshake {
    /// Answers 101, and passes bytes on until one side is done.
    pub(crate) fn join(self, mut console: Console, stop: CancellationToken) -> Result<Response, Problem> {
        let accept = HeaderValue::try_from(&console.accept)
            .map_err(|_| Problem::new(ErrorKind::Internal, "the agent's handshake is not understood"))?;
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
        tokio::spawn(async move {
            let client = match self.upgrade.await {
                Ok(client) => client,
                Err(error) => return tracing::debug!(%error, "a console client went away"),
            };
            let mut client = TokioIo::new(client);
            let copied = tokio::io::copy_bidirectional(&mut client, &mut console.stream);
            // However it ends, both sides learn of it by their connections' end.
            tokio::select! {
                ended = copied => tracing::debug!(?ended, "a console was closed"),
                () = stop.cancelled() => {}
            }
        });
        Ok(response)
    }
}
