//! What a catalog of an earlier version holds is read by this one.

use keyframe_agent_api::{Bytes, Timestamp};
use keyframe_model::{Finding, Snapshot, Verification};
use serde_json::{Value, json};

/// As it was stored before verifications were kept.
const SNAPSHOT: &str = include_str!("../golden/snapshot.json");

#[test]
fn a_snapshot_that_was_stored_before_verifications_were_kept_is_read() {
    let stored: Value = serde_json::from_str(SNAPSHOT).unwrap();
    let snapshot: Snapshot = serde_json::from_str(SNAPSHOT).unwrap();
    assert_eq!((snapshot.name.as_str(), &snapshot.verification), ("start", &None));
    let memory = snapshot.report.as_ref().and_then(|report| report.memory.as_ref()).map(|memory| memory.memory);
    assert_eq!((memory, snapshot.usable().is_ok()), (Some(Bytes::mib(128)), true));
    assert_eq!(
        serde_json::to_value(&snapshot).unwrap(),
        stored,
        "it is stored otherwise when nothing of it has changed"
    );
}

#[test]
fn what_was_found_in_a_snapshot_is_read() {
    let check = |found: Value, finding: Finding| {
        let mut stored: Value = serde_json::from_str(SNAPSHOT).unwrap();
        stored["verification"] = found;
        let snapshot: Snapshot = serde_json::from_value(stored.clone()).unwrap();
        assert_eq!(snapshot.verification, Some(Verification { at: Timestamp(7), finding }));
        assert_eq!(serde_json::to_value(&snapshot).unwrap(), stored);
    };
    check(json!({ "at": 7, "finding": "whole" }), Finding::Whole);
    let damaged = json!({ "at": 7, "finding": "damaged", "reason": "a disk is lost" });
    check(damaged, Finding::Damaged { reason: "a disk is lost".into() });
}
