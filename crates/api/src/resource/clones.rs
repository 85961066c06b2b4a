//! Clones and forks.

use keyframe_manager::request::{CloneCreate, JobView};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::State;
use crate::ask::{Answer, Ask};
use crate::body::Body;
use crate::params::{Params, Wait};

pub(super) fn routes() -> OpenApiRouter<State> {
    OpenApiRouter::new().routes(routes!(create))
}

/// Make machines of a snapshot, a template or another machine, thinly; with memory they go on where it was
#[utoipa::path(post, path = "/v1/clones", tag = "clones", operation_id = "create_clones", params(Wait),
    request_body = CloneCreate, responses((status = 202, body = JobView)))]
async fn create(ask: Ask, _: Params<Wait>, Body(wish): Body<CloneCreate>) -> Answer {
    ask.ordered(ask.manager().clone_vm(ask.call(), wish).await?).await
}
