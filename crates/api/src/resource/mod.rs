//! The endpoints: one file for each kind of thing.

mod about;
mod clones;
mod disks;
mod events;
mod hosts;
mod jobs;
mod search;
mod snapshots;
mod templates;
mod tokens;
mod tree;
mod vms;

use utoipa_axum::router::OpenApiRouter;

pub use about::About;
pub use search::SearchView;
pub use tokens::{TokenCreate, TokenMade, TokenView};

use crate::State;
use crate::document;

/// All of them, with their descriptions.
pub(crate) fn routes() -> OpenApiRouter<State> {
    OpenApiRouter::with_openapi(document::base())
        .merge(about::routes())
        .merge(vms::routes())
        .merge(tree::routes())
        .merge(snapshots::routes())
        .merge(disks::routes())
        .merge(clones::routes())
        .merge(templates::routes())
        .merge(jobs::routes())
        .merge(hosts::routes())
        .merge(search::routes())
        .merge(events::routes())
        .merge(tokens::routes())
}
