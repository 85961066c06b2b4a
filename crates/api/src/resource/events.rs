//! What changes, as it changes: server-sent events out of the catalog's log, so that nothing is missed between two
//! connections as long as the log reaches back.

use std::convert::Infallible;
use std::time::Duration;

use axum::http::HeaderMap;
use axum::response::IntoResponse;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::StreamExt as _;
use futures_util::stream::{self, Stream};
use keyframe_catalog::EventKind;
use keyframe_manager::{ErrorKind, EventStream};
use keyframe_model::agent::VmId;
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::State;
use crate::ask::{Answer, Ask};
use crate::params::Params;
use crate::problem::Problem;

/// Through proxies that close what is silent.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Which changes.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Wanted {
    /// Begin after this event; from now on when absent. A `Last-Event-ID` header counts more.
    after: Option<i64>,
    /// Of things of this kind only: `vm`, `snapshot`, `template`, `job`, `host`, `token` or `setting`.
    #[param(value_type = Option<String>)]
    kind: Option<EventKind>,
    /// About this machine only.
    vm: Option<VmId>,
}

pub(super) fn routes() -> OpenApiRouter<State> {
    OpenApiRouter::new().routes(routes!(events))
}

/// Watch changes as server-sent events: `id` is the number to go on after, `event` the kind, `data` what changed
#[utoipa::path(get, path = "/v1/events", tag = "events", operation_id = "events",
    params(Wanted, ("Last-Event-ID" = Option<i64>, Header)),
    responses((status = 200, content_type = "text/event-stream", body = String)))]
async fn events(ask: Ask, headers: HeaderMap, Params(wanted): Params<Wanted>) -> Answer {
    let last = match headers.get("last-event-id") {
        None => wanted.after,
        Some(id) => {
            let wrong = || Problem::new(ErrorKind::Invalid, "Last-Event-ID is the number of an event");
            Some(id.to_str().ok().and_then(|id| id.parse().ok()).ok_or_else(wrong)?)
        }
    };
    let changes = ask.manager().events(ask.caller(), last).await?;
    let stream = told(changes, wanted).take_until(ask.state().stop.clone().cancelled_owned());
    Ok(Sse::new(stream).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response())
}

fn told(changes: EventStream, wanted: Wanted) -> impl Stream<Item = Result<Event, Infallible>> {
    stream::unfold(Some((changes, wanted)), |state| async move {
        let (mut changes, wanted) = state?;
        let batch = match changes.next().await {
            Ok(batch) => batch,
            Err(error) => {
                // The client sees the end, and comes back with the last number it has.
                tracing::warn!(%error, "a stream of events ended");
                return None;
            }
        };
        let seen = |event: &keyframe_catalog::Event| {
            wanted.kind.is_none_or(|kind| kind == event.kind) && wanted.vm.is_none_or(|vm| Some(vm) == event.vm)
        };
        let told: Vec<_> = batch.iter().filter(|event| seen(event)).map(|event| Ok(line(event))).collect();
        Some((stream::iter(told), Some((changes, wanted))))
    })
    .flatten()
}

fn line(event: &keyframe_catalog::Event) -> Event {
    let kind = serde_json::to_value(event.kind).ok().and_then(|kind| kind.as_str().map(str::to_owned));
    let told = Event::default().id(event.seq.to_string()).event(kind.unwrap_or_default());
    told.json_data(event).unwrap_or_else(|_| Event::default().comment("an event that cannot be written"))
}
