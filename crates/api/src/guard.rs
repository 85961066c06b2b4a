//! What every request passes: the authorization table, a deadline, and one line in the log.

use std::time::{Duration, Instant};

use axum::extract::{ConnectInfo, MatchedPath, Request};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use keyframe_manager::ErrorKind;

use crate::State;
use crate::access::{self, Right};
use crate::auth::{self, Peer};
use crate::problem::Problem;
use crate::repeat;

/// Longest time until an answer begins. Above the longest `wait`.
const DEADLINE: Duration = Duration::from_secs(330);

/// Lets through who may, within the deadline.
pub(crate) async fn guard(
    axum::extract::State(state): axum::extract::State<State>,
    mut request: Request,
    next: Next,
) -> Response {
    let began = Instant::now();
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let mut who = String::from("-");
    let response = match admit(&state, &mut request, &mut who).await {
        Ok(()) => tokio::time::timeout(DEADLINE, repeat::once(&state, request, next)).await.unwrap_or_else(|_| {
            Problem::new(ErrorKind::Deadline, "no answer in time; look whether it was done").into_response()
        }),
        Err(problem) => problem.into_response(),
    };
    let (status, took) = (response.status().as_u16(), began.elapsed());
    match method {
        Method::GET | Method::HEAD => tracing::debug!(%method, path, status, who, ?took, "request"),
        _ => tracing::info!(%method, path, status, who, ?took, "request"),
    }
    response
}

async fn admit(state: &State, request: &mut Request, who: &mut String) -> Result<(), Problem> {
    let matched = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    // Outside all routes there is nothing to guard; the fallback answers.
    let Some(matched) = matched else { return Ok(()) };
    let method = request.method();
    let Some(right) = access::right(method, &matched) else {
        let known = access::ENDPOINTS.iter().any(|(_, path, _)| *path == matched);
        return Err(if known { no_method(method) } else { Problem::new(ErrorKind::Forbidden, "not an endpoint") });
    };
    if right == Right::Open {
        return Ok(());
    }
    let peer = request.extensions().get::<ConnectInfo<Peer>>().map(|ConnectInfo(peer)| peer.clone());
    let caller = auth::caller(&state.manager, peer.as_ref(), request.headers()).await?;
    who.clone_from(&caller.name);
    if !right.allows(&caller) {
        return Err(Problem::new(ErrorKind::Forbidden, format!("{} is not an administrator", caller.name)));
    }
    request.extensions_mut().insert(caller);
    Ok(())
}

fn no_method(method: &Method) -> Problem {
    let detail = format!("{method} cannot be done here; see /docs/");
    Problem::with_status(ErrorKind::Invalid, StatusCode::METHOD_NOT_ALLOWED, "no such method here", detail)
}

/// The answer outside all routes.
pub(crate) async fn nowhere() -> Problem {
    Problem::new(ErrorKind::NotFound, "there is nothing at this address; see /docs/")
}
