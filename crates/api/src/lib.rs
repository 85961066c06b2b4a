//! The REST interface `/v1`: requests are read, use cases of the manager called, answers written. No rule is decided here.
//!
//! - One file of `resource` for each kind of thing. A handler reads, calls and answers through `ask::Ask`, nothing else.
//! - Every endpoint stands in the table of `access`; one that does not is refused, whoever asks.
//! - Every failure leaves as `application/problem+json` with the manager's sentence; causes stay in the log.
//! - The description (OpenAPI 3.1) is made of the same functions that answer: `/v1/openapi.json`, to read at `/docs/`.

mod access;
mod ask;
mod auth;
mod body;
mod console;
mod digest;
mod document;
mod guard;
mod params;
mod problem;
mod repeat;
mod resource;
mod serve;
pub mod token;

pub use auth::Peer;
pub use document::document;
pub use problem::Problem;
pub use resource::{About, SearchView, TokenCreate, TokenMade, TokenView};
pub use serve::{Listen, Server, router};

/// What all handlers share.
#[derive(Clone)]
pub(crate) struct State {
    pub(crate) manager: std::sync::Arc<keyframe_manager::Manager>,
    /// Ends the streams that would go on for ever.
    pub(crate) stop: tokio_util::sync::CancellationToken,
}
