//! The agent's calls over HTTP: `keyframe_agent_api::route` says which. One wrapper runs each call in a thread that may
//! wait, and turns faults into answers; the handlers only take the request apart.

mod answer;
mod console;
mod events;
mod instants;
mod serve;
mod vms;
mod volumes;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{get, post, put};

use crate::agent::Agent;

pub use serve::{Serving, Tls, bind, serve};

/// Largest body of a request: a machine with cloud-init data.
const MAX_BODY: usize = 4 << 20;
/// The same for questions about space: 10,000 snapshots of all disks of a machine are named in 126 bytes each.
const MAX_SPACE_BODY: usize = 32 << 20;

/// Everything that can be asked of an agent.
pub fn router(agent: Arc<Agent>) -> Router {
    Router::new()
        .route("/v1/host", get(vms::host))
        .route("/v1/volumes/{array}", get(volumes::list))
        .route("/v1/volumes/{array}/{volume}", get(volumes::get).put(volumes::create).delete(volumes::delete))
        .route("/v1/volumes/{array}/{volume}/cancel", post(volumes::cancel))
        .route("/v1/volumes/{array}/{volume}/progress", get(volumes::progress))
        .route("/v1/volumes/{array}/{volume}/resize", post(volumes::resize))
        .route("/v1/volumes/{array}/{volume}/revert", post(volumes::revert))
        .route("/v1/volumes/{array}/{volume}/snapshots/{snapshot}", axum::routing::delete(volumes::delete_snapshot))
        .route("/v1/space", post(volumes::space).layer(DefaultBodyLimit::max(MAX_SPACE_BODY)))
        .route("/v1/diff", post(volumes::diff))
        .route("/v1/instants/{snapshot}", put(instants::take).get(instants::probe).delete(instants::delete))
        .route("/v1/instants/{snapshot}/cancel", post(instants::cancel))
        .route("/v1/memory/{snapshot}/store", post(instants::store))
        .route("/v1/memory/{snapshot}/drop", post(instants::drop_memory))
        .route("/v1/memory/{snapshot}/compress", post(instants::compress))
        .route("/v1/memory/{snapshot}/verify", post(instants::verify))
        .route("/v1/memory/{snapshot}/progress", get(instants::progress))
        .route("/v1/vms", get(vms::list))
        .route("/v1/vms/{vm}", get(vms::get))
        .route("/v1/vms/{vm}/run", put(vms::run))
        .route("/v1/vms/{vm}/check", post(vms::check))
        .route("/v1/vms/{vm}/give-up", post(vms::give_up))
        .route("/v1/vms/{vm}/stop", post(vms::stop))
        .route("/v1/vms/{vm}/pause", post(vms::pause))
        .route("/v1/vms/{vm}/resume", post(vms::resume))
        .route("/v1/vms/{vm}/reset", post(vms::reset))
        .route("/v1/vms/{vm}/disks/{disk}", put(vms::add_disk))
        .route("/v1/vms/{vm}/disks/{disk}/remove", post(vms::remove_disk))
        .route("/v1/vms/{vm}/disks/{disk}/resized", post(vms::disk_resized))
        .route("/v1/vms/{vm}/link", post(vms::link))
        .route("/v1/vms/{vm}/identity", post(vms::identity))
        .route("/v1/vms/{vm}/remove", post(vms::remove))
        .route("/v1/vms/{vm}/console", get(console::open))
        .route("/v1/events", get(events::stream))
        .fallback(answer::no_such_call)
        .method_not_allowed_fallback(answer::no_such_call)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(agent)
}
