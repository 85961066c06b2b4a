//! Failures as they leave: problem details (RFC 9457) with one more member, `kind`. The one table from kinds to statuses.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use keyframe_manager::{Error, ErrorKind};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Why a request failed. Nothing was changed, unless `kind` says that this is not known (`unreachable`, `internal`).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// Names the kind of failure: `urn:keyframe:problem:KIND`.
    #[serde(rename = "type")]
    pub kind_uri: String,
    /// The kind, for people.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// The thing by its name, the reason, and the way out where there is one.
    pub detail: String,
    /// For programs.
    pub kind: ErrorKind,
}

/// When it may be worth to try again, in seconds, after what was needed was waited for in vain.
const RETRY_AFTER: &str = "5";

/// The status and title of each kind.
pub(crate) const fn meaning(kind: ErrorKind) -> (StatusCode, &'static str) {
    match kind {
        ErrorKind::Invalid => (StatusCode::BAD_REQUEST, "the request makes no sense"),
        ErrorKind::Forbidden => (StatusCode::FORBIDDEN, "not allowed"),
        ErrorKind::NotFound => (StatusCode::NOT_FOUND, "not there"),
        ErrorKind::Taken => (StatusCode::CONFLICT, "taken already"),
        ErrorKind::State => (StatusCode::CONFLICT, "not in this state"),
        ErrorKind::Busy => (StatusCode::CONFLICT, "something else is being done to it"),
        ErrorKind::Locked => (StatusCode::LOCKED, "locked"),
        ErrorKind::Stale => (StatusCode::PRECONDITION_FAILED, "it has changed since"),
        ErrorKind::Limit => (StatusCode::CONFLICT, "a limit is reached"),
        ErrorKind::Unsupported => (StatusCode::UNPROCESSABLE_ENTITY, "cannot be done here"),
        ErrorKind::NoSpace => (StatusCode::INSUFFICIENT_STORAGE, "no space"),
        ErrorKind::Deadline => (StatusCode::GATEWAY_TIMEOUT, "took too long"),
        ErrorKind::Guest => (StatusCode::BAD_GATEWAY, "the guest did not do it"),
        ErrorKind::Corrupt => (StatusCode::INTERNAL_SERVER_ERROR, "stored data is damaged"),
        ErrorKind::Unreachable => (StatusCode::SERVICE_UNAVAILABLE, "something it needs cannot be reached"),
        ErrorKind::Cancelled => (StatusCode::CONFLICT, "cancelled"),
        ErrorKind::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "something failed that should not"),
    }
}

impl Problem {
    /// A failure of this kind.
    pub fn new(kind: ErrorKind, detail: impl Into<String>) -> Problem {
        let (status, title) = meaning(kind);
        Problem::with_status(kind, status, title, detail)
    }

    /// For the few failures of HTTP itself, which have statuses of their own.
    pub(crate) fn with_status(kind: ErrorKind, status: StatusCode, title: &str, detail: impl Into<String>) -> Problem {
        let name = serde_json::to_value(kind).ok().and_then(|kind| kind.as_str().map(str::to_owned));
        Problem {
            kind_uri: format!("urn:keyframe:problem:{}", name.unwrap_or_default()),
            title: title.to_owned(),
            status: status.as_u16(),
            detail: detail.into(),
            kind,
        }
    }

    /// Nobody has proved who asks.
    pub(crate) fn unauthorized(detail: impl Into<String>) -> Problem {
        Problem::with_status(ErrorKind::Forbidden, StatusCode::UNAUTHORIZED, "not authenticated", detail)
    }
}

impl From<Error> for Problem {
    /// Logs what does not leave the process.
    fn from(error: Error) -> Problem {
        if matches!(error.kind, ErrorKind::Internal | ErrorKind::Corrupt) {
            tracing::error!(kind = ?error.kind, cause = chain(&error), "{error}");
        }
        Problem::new(error.kind, error.message)
    }
}

impl From<keyframe_catalog::Error> for Problem {
    fn from(error: keyframe_catalog::Error) -> Problem {
        Error::from(error).into()
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut causes = Vec::new();
    let mut next = error.source();
    while let Some(cause) = next {
        causes.push(cause.to_string());
        next = cause.source();
    }
    causes.join(": ")
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(&self)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_status_of_failure() {
        for kind in ErrorKind::ALL {
            let (status, title) = meaning(kind);
            assert!(status.is_client_error() || status.is_server_error(), "{kind:?}");
            assert!(!title.is_empty(), "{kind:?}");
        }
    }

    #[test]
    fn a_problem_names_the_thing_and_keeps_its_causes() {
        let mut error = Error::new(ErrorKind::Internal, "cannot start web-1");
        error.source = Some("secret path".into());
        let shown = serde_json::to_value(Problem::from(error)).unwrap();
        let expected = serde_json::json!({
            "type": "urn:keyframe:problem:internal", "title": "something failed that should not", "status": 500,
            "detail": "cannot start web-1", "kind": "internal"
        });
        assert_eq!(shown, expected);
    }
}
