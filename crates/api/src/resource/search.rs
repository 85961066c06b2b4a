//! One word, everything that has it.

use keyframe_manager::ErrorKind;
use keyframe_manager::request::{
    PageRequest, SnapshotFilter, SnapshotView, TemplateFilter, TemplateView, VmFilter, VmView,
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::State;
use crate::ask::{Answer, Ask};
use crate::params::Params;
use crate::problem::Problem;

/// What to look for.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Search {
    /// A word in a name, a description or a tag, upper or lower case.
    #[serde(default)]
    text: String,
    /// Most results of each kind; 1 to 1000, by default 100.
    limit: Option<u32>,
}

/// What was found.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct SearchView {
    /// Machines.
    pub vms: Vec<VmView>,
    /// Snapshots.
    pub snapshots: Vec<SnapshotView>,
    /// Templates.
    pub templates: Vec<TemplateView>,
    /// There is more; look in the lists.
    pub more: bool,
}

pub(super) fn routes() -> OpenApiRouter<State> {
    OpenApiRouter::new().routes(routes!(search))
}

/// Find machines, snapshots and templates by a word
#[utoipa::path(get, path = "/v1/search", tag = "search", operation_id = "search", params(Search),
    responses((status = 200, body = SearchView)))]
async fn search(ask: Ask, Params(wish): Params<Search>) -> Answer {
    if wish.text.is_empty() || wish.limit.is_some_and(|limit| !(1..=1000).contains(&limit)) {
        return Err(Problem::new(ErrorKind::Invalid, "give a text to look for, and a limit from 1 to 1000"));
    }
    let text = Some(wish.text);
    let page = PageRequest { after: None, limit: wish.limit };
    let vms = VmFilter { search: text.clone(), ..VmFilter::default() };
    let snapshots = SnapshotFilter { search: text.clone(), ..SnapshotFilter::default() };
    let templates = TemplateFilter { search: text, ..TemplateFilter::default() };
    let vms = ask.manager().list_vms(ask.caller(), &vms, &page).await?;
    let snapshots = ask.manager().list_snapshots(ask.caller(), &snapshots, &page).await?;
    let templates = ask.manager().list_templates(ask.caller(), &templates, &page).await?;
    let more = vms.next.is_some() || snapshots.next.is_some() || templates.next.is_some();
    ask.done(&SearchView { vms: vms.items, snapshots: snapshots.items, templates: templates.items, more })
}
