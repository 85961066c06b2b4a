//! Every state and every event of machines, snapshots, templates and jobs, printed and compared with what somebody has
//! looked at. `KEYFRAME_WRITE_GOLDEN=1` writes the tables anew.

use std::fmt::Write as _;
use std::path::Path;

use crate::common::{job, snapshot, stopped, template, vm};
use keyframe_model::agent::PauseReason;
use keyframe_model::{
    Activity, JobEvent, JobState, Refusal, Rest, SnapshotEvent, SnapshotState, TemplateEvent, TemplateState, Trouble,
    VmEvent, VmState,
};

/// Compares a table with the golden file of that name.
fn check(name: &str, table: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("KEYFRAME_WRITE_GOLDEN").is_some() {
        std::fs::write(&path, table).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(golden == table, "{name} differs from what somebody has looked at; it is now:\n{table}");
}

fn line(table: &mut String, state: &str, event: &str, after: Result<String, Refusal>) {
    let after = match after {
        Ok(state) => state,
        Err(Refusal { kind, message }) => format!("refused ({kind:?}): {message}"),
    };
    writeln!(table, "{state:24} | {event:24} | {after}").unwrap();
}

fn rests() -> Vec<Rest> {
    let mut all = vec![Rest::Stopped, Rest::Running];
    let reasons = [PauseReason::Asked, PauseReason::NoSpace, PauseReason::IoError, PauseReason::Crashed];
    all.extend(reasons.map(|reason| Rest::Paused { reason }));
    all
}

/// Machines in error: one whose disks are whole, and one whose disks are not.
fn troubles() -> [Trouble; 2] {
    [("no answer", false), ("a disk is lost", true)]
        .map(|(reason, spoilt)| Trouble { reason: reason.to_owned(), spoilt })
}

fn trouble(trouble: &Trouble) -> String {
    format!("{}: {}", if trouble.spoilt { "spoilt" } else { "error" }, trouble.reason)
}

fn vm_state(state: &VmState) -> String {
    match state {
        VmState::At { rest } => rest.to_string(),
        VmState::Busy { error: Some(error), activity, .. } => format!("{activity:?} from {}", trouble(error)),
        VmState::Busy { from, activity, .. } => {
            format!("{activity:?} from {}", from.map_or("nothing".to_owned(), |rest| rest.to_string()))
        }
        VmState::Error { trouble: error } => trouble(error),
        VmState::Gone => "gone".to_owned(),
    }
}

#[test]
fn a_machine() {
    let mut states: Vec<VmState> = rests().into_iter().map(|rest| VmState::At { rest }).collect();
    for activity in Activity::ALL {
        let from = (activity != Activity::Creating).then_some(Rest::Running);
        states.push(VmState::Busy { from, error: None, activity, job: job() });
    }
    for trouble in troubles() {
        for activity in [Activity::Stopping, Activity::Applying, Activity::Deleting] {
            let (from, error) = (Some(Rest::Stopped), Some(trouble.clone()));
            states.push(VmState::Busy { from, error, activity, job: job() });
        }
        states.push(VmState::Error { trouble });
    }
    states.push(VmState::Gone);
    let mut events: Vec<(String, VmEvent)> = Vec::new();
    for activity in Activity::ALL {
        events.push((format!("begin {activity:?}"), VmEvent::Begin { activity, job: job() }));
    }
    for rest in rests() {
        events.push((format!("finished: {rest}"), VmEvent::Finished(rest)));
        events.push((format!("observed: {rest}"), VmEvent::Observed(rest)));
    }
    events.push(("undone".to_owned(), VmEvent::Undone));
    events.push(("broke".to_owned(), VmEvent::Broke("it broke".to_owned())));
    events.push(("deleted".to_owned(), VmEvent::Deleted));
    let mut table = String::new();
    for state in &states {
        for (name, event) in &events {
            let after = vm(state.clone(), Vec::new()).after(event).map(|state| vm_state(&state));
            line(&mut table, &vm_state(state), name, after);
        }
    }
    check("vm.txt", &table);
}

#[test]
fn a_machine_whose_snapshots_are_deleted() {
    let states = rests().into_iter().map(|rest| VmState::At { rest });
    let errors = troubles().map(|trouble| VmState::Error { trouble });
    let mut table = String::new();
    for state in states.chain(errors).chain([VmState::Gone]) {
        for (deleting, word) in [(false, "nothing else"), (true, "deleting snapshots")] {
            let allowed = vm(state.clone(), Vec::new()).allowed(deleting);
            let words: Vec<String> = allowed.iter().map(|activity| format!("{activity:?}")).collect();
            let words = if words.is_empty() { "none".to_owned() } else { words.join(", ") };
            line(&mut table, &vm_state(&state), word, Ok(words));
        }
    }
    check("allowed.txt", &table);
}

/// What a job needs at its end: whatever it did, the machine comes to rest.
#[test]
fn a_busy_machine_always_comes_to_rest() {
    for activity in Activity::ALL {
        for from in [None, Some(Rest::Stopped), Some(Rest::Running)] {
            let busy = vm(VmState::Busy { from, error: None, activity, job: job() }, Vec::new());
            for event in [VmEvent::Finished(Rest::Stopped), VmEvent::Undone, VmEvent::Broke("why".to_owned())] {
                let after = busy.after(&event).unwrap();
                assert!(!matches!(after, VmState::Busy { .. }), "{activity:?} from {from:?}, {event:?}: {after:?}");
            }
        }
    }
}

/// Disks of two instants never come to run: from a machine whose disks are spoilt nothing leads to a start but an apply.
#[test]
fn spoilt_disks_are_not_started() {
    for activity in Activity::ALL {
        let busy = VmState::Busy { from: Some(Rest::Running), error: None, activity, job: job() };
        let broken = vm(busy, Vec::new()).after(&VmEvent::Broke("a disk is lost".to_owned())).unwrap();
        let VmState::Error { trouble } = &broken else { panic!("{activity:?} leads to {broken:?}") };
        assert_eq!(trouble.spoilt, activity.spoils());
        let begun = vm(broken.clone(), Vec::new());
        for next in Activity::ALL.into_iter().filter(|next| begun.allows(*next).is_ok()) {
            let busy = vm(begun.after(&VmEvent::Begin { activity: next, job: job() }).unwrap(), Vec::new());
            assert_eq!(busy.after(&VmEvent::Undone).unwrap(), broken, "{next:?} is undone");
            let VmState::Error { trouble: later } = busy.after(&VmEvent::Broke("again".to_owned())).unwrap() else {
                panic!("{next:?} breaks")
            };
            assert!(later.spoilt >= trouble.spoilt);
            let done = busy.after(&VmEvent::Finished(Rest::Stopped)).unwrap();
            let stays = next != Activity::Applying && trouble.spoilt;
            assert_eq!(done, if stays { broken.clone() } else { stopped() }, "{next:?} is done");
        }
    }
}

/// A refusal names the machine.
#[test]
fn refusals_name_the_machine() {
    for rest in rests() {
        for activity in Activity::ALL {
            if let Err(refusal) = vm(VmState::At { rest }, Vec::new()).allows(activity) {
                assert!(refusal.message.contains("web-1"), "{}", refusal.message);
            }
        }
    }
    let busy = VmState::Busy { from: Some(Rest::Running), error: None, activity: Activity::Snapshotting, job: job() };
    let refusal = vm(busy, Vec::new()).allows(Activity::Starting).unwrap_err();
    let expected = "cannot start web-1: it is being snapshotted; wait for job 00000000-0000-0000-0000-00000000010b";
    assert_eq!(refusal.message, expected);
    assert!(vm(stopped(), Vec::new()).allowed(false).contains(&Activity::Starting));
}

#[test]
fn a_snapshot() {
    let states = [
        ("creating", SnapshotState::Creating { job: job() }),
        ("ready", SnapshotState::Ready),
        ("deleting", SnapshotState::Deleting { job: job() }),
        ("error", SnapshotState::Error { reason: "why".to_owned() }),
    ];
    let events = [
        ("taken", SnapshotEvent::Taken),
        ("broke", SnapshotEvent::Broke("it broke".to_owned())),
        ("begin to delete", SnapshotEvent::BeginDelete(job())),
        ("not deleted after all", SnapshotEvent::DeleteUndone),
    ];
    let name = |state: SnapshotState| match state {
        SnapshotState::Creating { .. } => "creating".to_owned(),
        SnapshotState::Ready => "ready".to_owned(),
        SnapshotState::Deleting { .. } => "deleting".to_owned(),
        SnapshotState::Error { reason } => format!("error: {reason}"),
    };
    let mut table = String::new();
    for locked in [false, true] {
        for (state, value) in &states {
            for (event, happens) in &events {
                let mut snapshot = snapshot(1, value.clone(), Vec::new());
                snapshot.locked = locked;
                let state = if locked { format!("{state}, locked") } else { (*state).to_owned() };
                line(&mut table, &state, event, snapshot.after(happens).map(name));
            }
        }
    }
    check("snapshot.txt", &table);
}

#[test]
fn a_template() {
    let states = [
        ("creating", TemplateState::Creating { job: job() }),
        ("ready", TemplateState::Ready),
        ("deleting", TemplateState::Deleting { job: job() }),
        ("error", TemplateState::Error { reason: "why".to_owned() }),
    ];
    let events = [
        ("made", TemplateEvent::Made),
        ("broke", TemplateEvent::Broke("it broke".to_owned())),
        ("begin to delete", TemplateEvent::BeginDelete(job())),
        ("not deleted after all", TemplateEvent::DeleteUndone),
    ];
    let name = |state: TemplateState| match state {
        TemplateState::Creating { .. } => "creating".to_owned(),
        TemplateState::Ready => "ready".to_owned(),
        TemplateState::Deleting { .. } => "deleting".to_owned(),
        TemplateState::Error { reason } => format!("error: {reason}"),
    };
    let mut table = String::new();
    for (state, value) in &states {
        for (event, happens) in &events {
            line(&mut table, state, event, template(value.clone()).after(happens).map(name));
        }
    }
    check("template.txt", &table);
}

#[test]
fn a_job() {
    let states = [
        JobState::Queued,
        JobState::Running,
        JobState::Undoing,
        JobState::Succeeded,
        JobState::Failed,
        JobState::Cancelled,
    ];
    let events = [
        JobEvent::Start,
        JobEvent::Done,
        JobEvent::StepFailed,
        JobEvent::Cancel,
        JobEvent::UndoneFailed,
        JobEvent::UndoneCancelled,
    ];
    let mut table = String::new();
    for state in states {
        for event in events {
            let after = state.after(event).map(|state| format!("{state:?}"));
            line(&mut table, &format!("{state:?}"), &format!("{event:?}"), after);
        }
    }
    check("job.txt", &table);
}
