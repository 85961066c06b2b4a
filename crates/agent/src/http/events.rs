//! The stream of events. It begins with the status of every machine that runs, so that a listener misses nothing between
//! asking and listening; a listener that falls behind is told the same again.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;

use axum::extract::State;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::Stream;
use futures_util::stream::unfold;
use keyframe_agent_api::VmEvent;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use super::answer::Refused;
use crate::agent::Agent;

struct Listener {
    agent: Arc<Agent>,
    events: Receiver<VmEvent>,
    /// To be told before anything else.
    first: VecDeque<VmEvent>,
}

pub(super) async fn stream(
    State(agent): State<Arc<Agent>>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Refused> {
    // Listening first: a change between the two is told twice rather than never.
    let events = agent.events();
    let first = present(&agent).await?;
    let listener = Listener { agent, events, first };
    let events = unfold(listener, |mut listener| async move {
        let event = next(&mut listener).await?;
        Some((Ok(encode(&event)), listener))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::default()))
}

async fn present(agent: &Arc<Agent>) -> Result<VecDeque<VmEvent>, Refused> {
    let answer = super::answer::run(Arc::clone(agent), "listen", |agent| agent.machines.list()).await?;
    Ok(answer.0.into_iter().map(|status| VmEvent::Changed(Box::new(status))).collect())
}

/// `None` when the agent ends.
async fn next(listener: &mut Listener) -> Option<VmEvent> {
    loop {
        if let Some(event) = listener.first.pop_front() {
            return Some(event);
        }
        let received = tokio::select! {
            received = listener.events.recv() => received,
            () = listener.agent.stopping().cancelled() => return None,
        };
        match received {
            Ok(event) => return Some(event),
            Err(RecvError::Lagged(_)) => listener.first = present(&listener.agent).await.ok()?,
            Err(RecvError::Closed) => return None,
        }
    }
}

fn encode(event: &VmEvent) -> Event {
    Event::default().json_data(event).unwrap_or_else(|error| Event::default().comment(error.to_string()))
}
