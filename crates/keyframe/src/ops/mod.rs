//! The one seam between what a user asks and the engine: a request, a handler over an open pool, a reply. The command line
//! calls the handler directly (offline); the server calls it for each line of its control socket (online). Requests and
//! replies are the control protocol and the `--json` output at once.

mod delete;
mod failure;
mod handle;
mod inspect;
mod reply;
mod request;

pub(crate) use failure::{Failure, is_invalid};
pub(crate) use handle::{Context, Sink, handle};
pub(crate) use keyframe_transfer::{Copied, Image, Overlay};
pub(crate) use reply::{
    CheckView, DeletedView, DiffTotals, Event, Kind, PoolStats, PoolView, Range, Reply, ServerStats, SizeView,
    SnapshotsView, SpacesView, TreeRow, TreeView, VersionView, VersionsView, human,
};
pub(crate) use request::{PAGE, Request};
