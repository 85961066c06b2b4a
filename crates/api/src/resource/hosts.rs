//! Hosts.

use keyframe_manager::request::HostView;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::State;
use crate::ask::{Answer, Ask};
use crate::params::Path;

pub(super) fn routes() -> OpenApiRouter<State> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(show))
}

/// List hosts
#[utoipa::path(get, path = "/v1/hosts", tag = "hosts", operation_id = "list_hosts",
    responses((status = 200, body = Vec<HostView>)))]
async fn list(ask: Ask) -> Answer {
    ask.done(&ask.manager().list_hosts(ask.caller()).await?)
}

/// Show a host
#[utoipa::path(get, path = "/v1/hosts/{host}", tag = "hosts", operation_id = "show_host",
    params(("host" = String, Path)), responses((status = 200, body = HostView)))]
async fn show(ask: Ask, Path(host): Path<String>) -> Answer {
    ask.done(&ask.manager().host(ask.caller(), &host).await?)
}
