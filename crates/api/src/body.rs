//! JSON bodies. None at all is the same as `{}`, so that a wish without particulars needs no body.

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, Request};
use axum::http::{StatusCode, header};
use keyframe_manager::ErrorKind;
use serde::de::DeserializeOwned;

use crate::problem::Problem;

/// Largest body. Cloud-init data is the largest thing anybody sends.
pub(crate) const MAX_BODY: usize = 1 << 20;

/// A request's body as a `T`.
pub(crate) struct Body<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let json = request.headers().get(header::CONTENT_TYPE).is_none_or(|kind| {
            kind.to_str().is_ok_and(|kind| kind.split(';').next().is_some_and(|kind| kind.trim() == "application/json"))
        });
        let bytes = Bytes::from_request(request, state).await.map_err(too_large)?;
        if !json && !bytes.is_empty() {
            let (status, title) = (StatusCode::UNSUPPORTED_MEDIA_TYPE, "not JSON");
            return Err(Problem::with_status(ErrorKind::Invalid, status, title, "bodies are application/json"));
        }
        let text: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
        serde_json::from_slice(text)
            .map(Body)
            .map_err(|error| Problem::new(ErrorKind::Invalid, format!("the body is not understood: {error}")))
    }
}

/// A body that could not be read.
pub(crate) fn too_large(rejection: BytesRejection) -> Problem {
    match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            let detail = format!("a body is at most {MAX_BODY} bytes long");
            Problem::with_status(ErrorKind::Invalid, StatusCode::PAYLOAD_TOO_LARGE, "too large", detail)
        }
        _ => Problem::new(ErrorKind::Invalid, "the body broke off"),
    }
}
