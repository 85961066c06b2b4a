//! What answers here.

use axum::Json;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::State;

/// What answers here.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct About {
    /// `keyframe`.
    pub product: String,
    /// The manager's version.
    pub version: String,
}

pub(super) fn routes() -> OpenApiRouter<State> {
    OpenApiRouter::new().routes(routes!(about))
}

/// Say what answers here; needs no token
#[utoipa::path(get, path = "/v1/about", tag = "hosts", operation_id = "about", security(()), responses((status = 200, body = About)))]
async fn about() -> Json<About> {
    Json(About { product: "keyframe".into(), version: env!("CARGO_PKG_VERSION").into() })
}
