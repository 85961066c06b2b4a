//! Requests in, answers out, the same way for every call.

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, OriginalUri};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use keyframe_agent_api::{Fault, FaultKind};
use serde::Serialize;

use crate::Result;
use crate::agent::{Agent, panicked};

/// A fault on its way out.
pub(super) struct Refused(pub(super) Fault);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.kind.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(self.0)).into_response()
    }
}

impl From<Fault> for Refused {
    fn from(fault: Fault) -> Refused {
        Refused(fault)
    }
}

fn invalid(text: String) -> Refused {
    Refused(Fault::new(FaultKind::Invalid, text))
}

impl From<JsonRejection> for Refused {
    fn from(rejection: JsonRejection) -> Refused {
        invalid(rejection.body_text())
    }
}

impl From<PathRejection> for Refused {
    fn from(rejection: PathRejection) -> Refused {
        invalid(rejection.body_text())
    }
}

impl From<QueryRejection> for Refused {
    fn from(rejection: QueryRejection) -> Refused {
        invalid(rejection.body_text())
    }
}

/// A body of JSON, whose faults are ours.
#[derive(FromRequest)]
#[from_request(via(Json), rejection(Refused))]
pub(super) struct Body<T>(pub(super) T);

/// Parts of the path.
#[derive(FromRequestParts)]
#[from_request(via(axum::extract::Path), rejection(Refused))]
pub(super) struct Path<T>(pub(super) T);

/// Parts of the query.
#[derive(FromRequestParts)]
#[from_request(via(axum::extract::Query), rejection(Refused))]
pub(super) struct Query<T>(pub(super) T);

/// What a handler returns.
pub(super) type Answer<T> = std::result::Result<Json<T>, Refused>;

/// Runs a call in a thread that may wait. It runs to its end even if the caller goes away.
pub(super) async fn run<T: Serialize + Send + 'static>(
    agent: Arc<Agent>,
    call: &'static str,
    act: impl FnOnce(&Agent) -> Result<T> + Send + 'static,
) -> Answer<T> {
    let since = Instant::now();
    let result = tokio::task::spawn_blocking(move || act(&agent)).await.unwrap_or_else(|_| Err(panicked()));
    let took = since.elapsed();
    match result {
        Ok(value) => {
            tracing::debug!(call, ?took, "done");
            Ok(Json(value))
        }
        Err(fault) => {
            match fault.kind {
                FaultKind::Internal | FaultKind::Corrupt => tracing::error!(call, ?took, kind = ?fault.kind, "{fault}"),
                // Who waits with a deadline asks again, and says it when it is the end.
                FaultKind::Deadline => tracing::debug!(call, ?took, kind = ?fault.kind, "{fault}"),
                _ => tracing::info!(call, ?took, kind = ?fault.kind, "{fault}"),
            }
            Err(Refused(fault))
        }
    }
}

/// For paths and methods that no call has.
pub(super) async fn no_such_call(method: Method, OriginalUri(uri): OriginalUri) -> Refused {
    Refused(Fault::new(FaultKind::NotFound, format!("this agent has no call {method} {}", uri.path())))
}
