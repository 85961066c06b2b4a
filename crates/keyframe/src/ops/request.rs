//! What can be asked of an open pool.

use std::path::PathBuf;

use keyframe_transfer::{Image, Overlay};
use serde::{Deserialize, Serialize};

/// Most entries in one page of a list; who wants more asks again from the last name.
pub(crate) const PAGE: usize = 1000;

/// One request. As JSON an object whose `op` is the name in kebab case, for example
/// `{"op":"volume-create","name":"web","size":10737418240}`. Sizes are bytes, paths are absolute.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum Request {
    PoolInfo {},
    PoolStats {},
    PoolGrow {
        size: Option<u64>,
    },
    PoolScrub {},
    VolumeCreate {
        name: String,
        size: u64,
    },
    VolumeList {
        after: Option<String>,
        limit: Option<usize>,
    },
    VolumeResize {
        name: String,
        size: u64,
    },
    VolumeDelete {
        name: String,
        #[serde(default)]
        snapshots: bool,
    },
    SnapshotCreate {
        /// Pairs of volume and snapshot name.
        targets: Vec<(String, String)>,
    },
    SnapshotList {
        volume: String,
        after: Option<String>,
        limit: Option<usize>,
    },
    SnapshotDelete {
        target: String,
        #[serde(default)]
        subtree: bool,
        #[serde(default)]
        dry_run: bool,
    },
    Show {
        target: String,
    },
    Rename {
        target: String,
        new: String,
    },
    Clone {
        source: String,
        name: String,
        via: Option<String>,
    },
    Revert {
        volume: String,
        snapshot: String,
        keep: Option<String>,
    },
    Tree {
        volume: String,
        #[serde(default)]
        space: bool,
    },
    Space {
        targets: Vec<String>,
    },
    Diff {
        from: Option<String>,
        to: String,
    },
    Import {
        file: PathBuf,
        volume: String,
        /// `None`: by the header.
        format: Option<Image>,
    },
    Export {
        target: String,
        file: PathBuf,
        format: Image,
        overlay: Option<Overlay>,
    },
}

impl Request {
    /// Whether the request can change the pool.
    pub(crate) fn changes(&self) -> bool {
        match self {
            Request::PoolInfo {}
            | Request::PoolStats {}
            | Request::PoolScrub {}
            | Request::VolumeList { .. }
            | Request::SnapshotList { .. }
            | Request::SnapshotDelete { dry_run: true, .. }
            | Request::Show { .. }
            | Request::Tree { .. }
            | Request::Space { .. }
            | Request::Diff { .. }
            | Request::Export { .. } => false,
            Request::PoolGrow { .. }
            | Request::VolumeCreate { .. }
            | Request::VolumeResize { .. }
            | Request::VolumeDelete { .. }
            | Request::SnapshotCreate { .. }
            | Request::SnapshotDelete { dry_run: false, .. }
            | Request::Rename { .. }
            | Request::Clone { .. }
            | Request::Revert { .. }
            | Request::Import { .. } => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_lines_of_json() {
        let check = |text: &str, expected: Request| {
            assert_eq!(serde_json::from_str::<Request>(text).unwrap(), expected, "{text}");
        };
        check(r#"{"op":"pool-info"}"#, Request::PoolInfo {});
        check(r#"{"op":"pool-grow"}"#, Request::PoolGrow { size: None });
        check(
            r#"{"op":"volume-create","name":"web","size":4096}"#,
            Request::VolumeCreate { name: "web".into(), size: 4096 },
        );
        check(
            r#"{"op":"snapshot-create","targets":[["web","a"],["db","a"]]}"#,
            Request::SnapshotCreate { targets: vec![("web".into(), "a".into()), ("db".into(), "a".into())] },
        );
        check(
            r#"{"op":"snapshot-delete","target":"web@a","dry_run":true}"#,
            Request::SnapshotDelete { target: "web@a".into(), subtree: false, dry_run: true },
        );
    }

    #[test]
    fn what_is_not_a_request_is_refused() {
        for text in [
            "",
            "null",
            "{}",
            r#"{"op":"reboot"}"#,
            r#"{"op":"pool-info","verbose":true}"#,
            r#"{"op":"volume-create","name":"web"}"#,
            r#"{"op":"volume-create","name":"web","size":-1}"#,
            r#"{"op":"volume-create","name":"web","size":"10G"}"#,
        ] {
            assert!(serde_json::from_str::<Request>(text).is_err(), "{text}");
        }
    }
}
