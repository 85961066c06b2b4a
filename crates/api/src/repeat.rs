//! Calls with an `Idempotency-Key`: one that says the same again is answered with the first one's job.
//!
//! What is compared is what the caller said, before a name is looked up: the thing may be gone by then, or its name may be
//! another's. So the key is looked for before the handler runs, and once more when that has failed, for the same call may have
//! got through in the meantime.

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest as _, FromRequestParts as _, Request};
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use keyframe_manager::request::Caller;

use crate::State;
use crate::ask::{Answer, Ask};
use crate::body::too_large;
use crate::digest::digest;

/// The header.
pub(crate) const KEY: &str = "idempotency-key";

/// What a call with a key says, as a digest.
#[derive(Clone)]
pub(crate) struct Said(pub(crate) String);

/// Answers a repeated call, and lets everything else through.
pub(crate) async fn once(state: &State, request: Request, next: Next) -> Response {
    let known = request.extensions().get::<Caller>().is_some();
    if request.method().is_safe() || !known || !request.headers().contains_key(KEY) {
        return next.run(request).await;
    }
    keyed(state, request, next).await.unwrap_or_else(|problem| problem.into_response())
}

async fn keyed(state: &State, request: Request, next: Next) -> Answer {
    let (mut parts, body) = request.into_parts();
    let body = Bytes::from_request(Request::from_parts(parts.clone(), body), state).await.map_err(too_large)?;
    parts.extensions.insert(Said(said(&parts, &body)));
    let ask = Ask::from_request_parts(&mut parts, state).await?;
    if let Some(job) = ask.manager().repeated(ask.call()).await? {
        return ask.ordered(job).await;
    }
    let response = next.run(Request::from_parts(parts, Body::from(body))).await;
    if response.status().is_success() {
        return Ok(response);
    }
    match ask.manager().repeated(ask.call()).await {
        Ok(Some(job)) => ask.ordered(job).await,
        // The failure is the better answer.
        Ok(None) | Err(_) => Ok(response),
    }
}

/// Method, path, parameters but the time to wait, and body, however its JSON is written.
fn said(parts: &Parts, body: &Bytes) -> String {
    let query = parts.uri.query().unwrap_or("").split('&').filter(|pair| !pair.starts_with("wait="));
    let query: Vec<&str> = query.filter(|pair| !pair.is_empty()).collect();
    let text: &[u8] = if body.is_empty() { b"{}" } else { body };
    let body = match serde_json::from_slice::<serde_json::Value>(text) {
        Ok(value) => value.to_string(),
        Err(_) => String::from_utf8_lossy(text).into_owned(),
    };
    digest(format!("{} {}?{}\n{body}", parts.method, parts.uri.path(), query.join("&")).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_long_to_wait_and_how_json_is_written_make_no_other_call() {
        let say = |method: &str, uri: &str, body: &'static str| {
            let (parts, ()) = Request::builder().method(method).uri(uri).body(()).unwrap().into_parts();
            said(&parts, &Bytes::from_static(body.as_bytes()))
        };
        let first = say("POST", "/v1/vms?wait=1", r#"{"name": "a", "cpus": 2}"#);
        assert_eq!(say("POST", "/v1/vms", r#"{"cpus":2,"name":"a"}"#), first);
        assert_eq!(say("DELETE", "/v1/vms/a", ""), say("DELETE", "/v1/vms/a?wait=60", "{}"));
        for other in [
            say("PATCH", "/v1/vms", r#"{"cpus":2,"name":"a"}"#),
            say("POST", "/v1/vm", r#"{"cpus":2,"name":"a"}"#),
            say("POST", "/v1/vms?dry_run=true", r#"{"cpus":2,"name":"a"}"#),
            say("POST", "/v1/vms", r#"{"cpus":2,"name":"b"}"#),
        ] {
            assert_ne!(other, first);
        }
    }
}
