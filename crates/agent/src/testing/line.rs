//! The line between a test agent and those who call it, on which calls and answers are lost.

use std::io;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use futures_util::stream;
use parking_lot::Mutex;

/// What does not arrive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lost {
    /// The call: it has no effect.
    Call,
    /// The answer: the call has had its effect.
    Answer,
}

#[derive(Default)]
struct Traffic {
    calls: Vec<String>,
    /// The call, how many of its kind are to come until it is lost, and how many of any kind are lost right after it.
    plan: Option<(String, usize, Lost, usize)>,
    /// So many calls more do not arrive.
    away: usize,
}

/// A line; clones are the same. Calls go by method and path as the agent's router has them.
#[derive(Clone, Default)]
pub struct Line(Arc<Mutex<Traffic>>);

impl Line {
    /// The `nth` call of that kind from now on is lost, or its answer is; 1 is the next. So is the call of each of the `more`
    /// that follow, whatever they are.
    pub fn lose(&self, call: &str, nth: usize, lost: Lost, more: usize) {
        self.0.lock().plan = Some((call.to_owned(), nth.max(1), lost, more));
    }

    /// The calls so far, in order.
    pub fn calls(&self) -> Vec<String> {
        self.0.lock().calls.clone()
    }

    fn arrives(&self, call: String) -> Option<Lost> {
        let mut traffic = self.0.lock();
        let lost = if traffic.away > 0 {
            traffic.away -= 1;
            Some(Lost::Call)
        } else {
            match traffic.plan.take() {
                Some((of, 1, lost, more)) if of == call => {
                    traffic.away = more;
                    Some(lost)
                }
                Some((of, left, lost, more)) => {
                    let left = left - usize::from(of == call);
                    traffic.plan = Some((of, left, lost, more));
                    None
                }
                None => None,
            }
        };
        traffic.calls.push(call);
        lost
    }
}

/// Stands before every call.
pub(super) async fn pass(State(line): State<Line>, path: Option<MatchedPath>, call: Request, next: Next) -> Response {
    let path = path.as_ref().map_or("*", MatchedPath::as_str);
    match line.arrives(format!("{} {path}", call.method())) {
        None => next.run(call).await,
        Some(Lost::Call) => broken(),
        Some(Lost::Answer) => {
            next.run(call).await;
            broken()
        }
    }
}

/// An answer whose connection breaks before there is anything in it.
fn broken() -> Response {
    let lost: io::Result<&[u8]> = Err(io::ErrorKind::ConnectionReset.into());
    Response::new(Body::from_stream(stream::iter([lost])))
}
