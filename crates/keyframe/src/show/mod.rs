//! Results as people and programs read them.

pub(crate) mod lines;
pub(crate) mod table;
pub(crate) mod tree;

use std::io::{self, Write};

use crate::ops::Reply;

/// How much of a result is printed for people.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Detail {
    /// The result is what was asked for.
    All,
    /// The result is worth a line unless --quiet.
    Remark,
    /// It went well, and that is all there is to say.
    Nothing,
}

/// One line of JSON: lists as arrays, everything else as objects.
pub(crate) fn json(reply: &Reply, out: &mut impl Write) -> io::Result<()> {
    match reply {
        Reply::Pool(view) => serde_json::to_writer(&mut *out, view),
        Reply::Stats(view) => serde_json::to_writer(&mut *out, view),
        Reply::Size(view) => serde_json::to_writer(&mut *out, view),
        Reply::Version(view) => serde_json::to_writer(&mut *out, view),
        Reply::Versions(view) => serde_json::to_writer(&mut *out, &view.items),
        Reply::Snapshots(view) => serde_json::to_writer(&mut *out, view),
        Reply::Deleted(view) => serde_json::to_writer(&mut *out, view),
        Reply::Tree(view) => serde_json::to_writer(&mut *out, &view.nodes),
        Reply::Space(view) => serde_json::to_writer(&mut *out, view),
        Reply::Diff(view) => serde_json::to_writer(&mut *out, view),
        Reply::Check(view) => serde_json::to_writer(&mut *out, view),
        Reply::Copy(view) => serde_json::to_writer(&mut *out, view),
    }?;
    writeln!(out)
}

/// Tables and lines.
pub(crate) fn text(reply: &Reply, out: &mut impl Write) -> io::Result<()> {
    match reply {
        Reply::Versions(view) => table::versions(&view.items, out),
        Reply::Space(view) => table::space(view, out),
        Reply::Tree(view) => tree::draw(view, out),
        Reply::Pool(view) => lines::pool(view, out),
        Reply::Stats(view) => lines::stats(view, out),
        Reply::Size(view) => lines::size(view, out),
        Reply::Version(view) => lines::version(view, out),
        Reply::Snapshots(view) => lines::snapshots(view, out),
        Reply::Deleted(view) => lines::deleted(view, out),
        Reply::Diff(view) => lines::diff(view, out),
        Reply::Check(view) => lines::check(view, out),
        Reply::Copy(view) => lines::copy(view, out),
    }
}
