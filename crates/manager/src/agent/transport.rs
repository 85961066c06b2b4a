//! HTTP to an agent: when to try again, and what a failure means.

use std::time::Duration;

use keyframe_model::agent::{Fault, FaultKind, OpenConsole, VmEvent, VmId, route};
use reqwest::{Method, RequestBuilder, Response, StatusCode, header};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep};

use super::AgentAddress;
use crate::{Error, ErrorKind, Result};

/// The first wait before trying again; it doubles.
const FIRST_WAIT: Duration = Duration::from_millis(20);
/// The longest.
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// The longest line of the stream of events: a status with a machine of all disks and interfaces is far below.
const MAX_EVENT: usize = 1 << 20;

/// A connection to an agent, made anew as often as needed. Cheap to clone.
#[derive(Clone)]
pub struct Agent {
    client: reqwest::Client,
    base: String,
    name: String,
    patience: Duration,
}

/// A guest's serial console: bytes of a WebSocket, both ways.
pub struct Console {
    /// What the agent answered to the caller's key.
    pub accept: String,
    /// The frames.
    pub stream: reqwest::Upgraded,
}

/// What an agent says unasked.
pub struct Events {
    response: Response,
    buffer: Vec<u8>,
}

/// How one attempt failed.
enum Failure {
    /// It may help to try again.
    Later(Error),
    /// It does not.
    Final(Error),
}

impl Agent {
    /// Connects with the first call. Calls without an answer are repeated for so long.
    pub fn new(address: &AgentAddress, patience: Duration) -> Result<Agent> {
        let (client, base) = address.client()?;
        Ok(Agent { client, base, name: address.to_string(), patience })
    }

    /// Where it is, for people.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.answer(Method::GET, path, None::<&()>).await
    }

    pub(super) async fn put<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        self.answer(Method::PUT, path, Some(body)).await
    }

    pub(super) async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        self.answer(Method::POST, path, Some(body)).await
    }

    pub(super) async fn order(&self, path: &str, body: &impl Serialize) -> Result<()> {
        self.persist(Method::POST, path, Some(body)).await.map(drop)
    }

    pub(super) async fn order_put(&self, path: &str, body: &impl Serialize) -> Result<()> {
        self.persist(Method::PUT, path, Some(body)).await.map(drop)
    }

    pub(super) async fn delete(&self, path: &str) -> Result<()> {
        self.persist(Method::DELETE, path, None::<&()>).await.map(drop)
    }

    async fn answer<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T> {
        let bytes = self.persist(method, path, body).await?;
        serde_json::from_slice(&bytes).map_err(|e| Error {
            kind: ErrorKind::Internal,
            message: format!("the agent at {} gave an answer to {path} that makes no sense", self.name),
            source: Some(Box::new(e)),
        })
    }

    /// Repeats a call until it has an answer or patience is over.
    async fn persist(&self, method: Method, path: &str, body: Option<&impl Serialize>) -> Result<Vec<u8>> {
        let give_up = Instant::now() + self.patience;
        let mut wait = FIRST_WAIT;
        loop {
            let request = self.client.request(method.clone(), format!("{}{path}", self.base));
            let request = match body {
                Some(body) => request.json(body),
                None => request,
            };
            let error = match self.attempt(request).await {
                Ok(bytes) => return Ok(bytes),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Later(error)) => error,
            };
            if Instant::now() + wait > give_up {
                return Err(error);
            }
            sleep(wait).await;
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }

    async fn attempt(&self, request: RequestBuilder) -> std::result::Result<Vec<u8>, Failure> {
        let response = request.send().await.map_err(|e| Failure::Later(self.unreachable(e)))?;
        let status = response.status();
        let bytes = response.bytes().await.map_err(|e| Failure::Later(self.unreachable(e)))?;
        if status.is_success() {
            return Ok(bytes.into());
        }
        let fault = fault(status, &bytes);
        Err(match fault.kind {
            FaultKind::Busy | FaultKind::Unreachable => Failure::Later(fault.into()),
            FaultKind::Invalid
            | FaultKind::NotFound
            | FaultKind::Exists
            | FaultKind::Conflict
            | FaultKind::Stale
            | FaultKind::Unsupported
            | FaultKind::NoSpace
            | FaultKind::Deadline
            | FaultKind::Guest
            | FaultKind::Corrupt
            | FaultKind::Internal => Failure::Final(fault.into()),
        })
    }

    fn unreachable(&self, source: reqwest::Error) -> Error {
        let mut cause: &dyn std::error::Error = &source;
        while let Some(deeper) = cause.source() {
            cause = deeper;
        }
        let message = format!("the agent at {} cannot be reached ({cause}); start it, or look at its log", self.name);
        Error { kind: ErrorKind::Unreachable, message, source: Some(Box::new(source)) }
    }

    /// Opens a guest's console for a WebSocket client with that key; takes it over from whoever has it if forced.
    pub async fn console(&self, vm: VmId, key: &str, force: bool) -> Result<Console> {
        let request = self.client.get(format!("{}{}", self.base, route::console(vm, OpenConsole { force })));
        let request = request
            .header(header::CONNECTION, "upgrade")
            .header(header::UPGRADE, "websocket")
            .header(header::SEC_WEBSOCKET_VERSION, "13")
            .header(header::SEC_WEBSOCKET_KEY, key);
        let response = request.send().await.map_err(|e| self.unreachable(e))?;
        let status = response.status();
        if status != StatusCode::SWITCHING_PROTOCOLS {
            let bytes = response.bytes().await.map_err(|e| self.unreachable(e))?;
            return Err(fault(status, &bytes).into());
        }
        let accept = response.headers().get(header::SEC_WEBSOCKET_ACCEPT).and_then(|value| value.to_str().ok());
        let accept = accept.unwrap_or_default().to_owned();
        let stream = response.upgrade().await.map_err(|e| self.unreachable(e))?;
        Ok(Console { accept, stream })
    }

    /// Listens to what the agent says unasked.
    pub async fn events(&self) -> Result<Events> {
        let request = self.client.get(format!("{}{}", self.base, route::EVENTS));
        let response = request.send().await.map_err(|e| self.unreachable(e))?;
        if !response.status().is_success() {
            let status = response.status();
            let bytes = response.bytes().await.map_err(|e| self.unreachable(e))?;
            return Err(fault(status, &bytes).into());
        }
        Ok(Events { response, buffer: Vec::new() })
    }
}

impl Events {
    /// The next event; `None` when the agent has closed the stream.
    pub async fn next(&mut self) -> Result<Option<VmEvent>> {
        loop {
            while let Some(end) = self.buffer.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                // Of the stream's fields (WHATWG HTML, section 9.2.6) the agent uses only single lines of data.
                let Some(data) = line.strip_prefix(b"data:") else { continue };
                match serde_json::from_slice(data) {
                    Ok(event) => return Ok(Some(event)),
                    Err(e) => tracing::warn!(error = %e, "the agent sent an event that makes no sense"),
                }
            }
            if self.buffer.len() > MAX_EVENT {
                return Err(Error::new(ErrorKind::Internal, "the agent sent an event without an end"));
            }
            match self.response.chunk().await {
                Ok(Some(chunk)) => self.buffer.extend_from_slice(&chunk),
                Ok(None) => return Ok(None),
                Err(e) => {
                    let message = "the agent's stream of events broke off".to_owned();
                    return Err(Error { kind: ErrorKind::Unreachable, message, source: Some(Box::new(e)) });
                }
            }
        }
    }
}

/// What the agent said, or something like it if it did not say it in its way.
fn fault(status: StatusCode, body: &[u8]) -> Fault {
    serde_json::from_slice(body).unwrap_or_else(|_| {
        let kind = if status.is_server_error() { FaultKind::Internal } else { FaultKind::Invalid };
        Fault::new(kind, format!("the agent answered {status}"))
    })
}
