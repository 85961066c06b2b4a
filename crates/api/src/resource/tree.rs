//! A machine's snapshots as a tree.

use keyframe_manager::request::TreeView;
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::State;
use crate::ask::{Answer, Ask};
use crate::params::{Params, Path};

/// Whether to reckon space.
#[derive(Clone, Copy, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct WithSpace {
    /// Say what each snapshot takes; takes longer.
    #[serde(default)]
    pub(super) space: bool,
}

pub(super) fn routes() -> OpenApiRouter<State> {
    OpenApiRouter::new().routes(routes!(tree))
}

/// Show a machine's snapshots as a tree
#[utoipa::path(get, path = "/v1/vms/{vm}/tree", tag = "snapshots", operation_id = "snapshot_tree",
    params(("vm" = String, Path), WithSpace), responses((status = 200, body = TreeView)))]
async fn tree(ask: Ask, Path(vm): Path<String>, Params(wish): Params<WithSpace>) -> Answer {
    let vm = ask.vm(&vm).await?;
    ask.done(&ask.manager().tree(ask.caller(), vm, wish.space).await?)
}
