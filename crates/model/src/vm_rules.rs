//! Which activity a machine allows in which state, and what it leads to.

use crate::agent::PauseReason;
use crate::vm::{Activity, Rest, Trouble, Vm, VmEvent, VmState};
use crate::{Refusal, RefusalKind};

impl Activity {
    /// Each of them.
    pub const ALL: [Activity; 11] = [
        Activity::Creating,
        Activity::Starting,
        Activity::Stopping,
        Activity::Pausing,
        Activity::Resuming,
        Activity::Resetting,
        Activity::Snapshotting,
        Activity::Applying,
        Activity::Cloning,
        Activity::Reconfiguring,
        Activity::Deleting,
    ];

    /// What is being done, as in "web-1 is *being started*".
    pub const fn participle(self) -> &'static str {
        match self {
            Activity::Creating => "being created",
            Activity::Starting => "being started",
            Activity::Stopping => "being stopped",
            Activity::Pausing => "being paused",
            Activity::Resuming => "being resumed",
            Activity::Resetting => "being reset",
            Activity::Snapshotting => "being snapshotted",
            Activity::Applying => "being taken to a snapshot",
            Activity::Cloning => "being cloned",
            Activity::Reconfiguring => "being reconfigured",
            Activity::Deleting => "being deleted",
        }
    }

    /// The same as a wish, as in "cannot *start* web-1".
    pub const fn verb(self) -> &'static str {
        match self {
            Activity::Creating => "create",
            Activity::Starting => "start",
            Activity::Stopping => "stop",
            Activity::Pausing => "pause",
            Activity::Resuming => "resume",
            Activity::Resetting => "reset",
            Activity::Snapshotting => "snapshot",
            Activity::Applying => "apply a snapshot to",
            Activity::Cloning => "clone",
            Activity::Reconfiguring => "change",
            Activity::Deleting => "delete",
        }
    }

    /// Whether it needs the machine's snapshots and list of disks to stay what they are. Snapshots are deleted beside whatever
    /// does not, and beside nothing else.
    pub const fn holds_tree(self) -> bool {
        match self {
            Activity::Starting | Activity::Stopping | Activity::Pausing | Activity::Resuming | Activity::Resetting => {
                false
            }
            Activity::Creating
            | Activity::Snapshotting
            | Activity::Applying
            | Activity::Cloning
            | Activity::Reconfiguring
            | Activity::Deleting => true,
        }
    }

    /// Whether half of it leaves disks of different instants, or not all of them.
    pub const fn spoils(self) -> bool {
        match self {
            Activity::Creating | Activity::Applying | Activity::Deleting => true,
            Activity::Starting
            | Activity::Stopping
            | Activity::Pausing
            | Activity::Resuming
            | Activity::Resetting
            | Activity::Snapshotting
            | Activity::Cloning
            | Activity::Reconfiguring => false,
        }
    }

    /// Why a machine at rest does not allow it, with the way out.
    fn objection(self, rest: Rest) -> Option<&'static str> {
        match (self, rest) {
            (Activity::Creating, _) => Some("it exists"),
            (Activity::Starting, Rest::Running) => Some("it is running"),
            (Activity::Starting, Rest::Paused { .. }) => Some("it is paused; resume it"),
            (Activity::Stopping, Rest::Stopped) => Some("it is stopped"),
            (Activity::Pausing, Rest::Stopped) => Some("it is stopped; start it first"),
            (Activity::Pausing, Rest::Paused { .. }) => Some("it is paused"),
            (Activity::Resuming, Rest::Stopped) => Some("it is stopped; start it"),
            (Activity::Resuming, Rest::Running) => Some("it is running"),
            (Activity::Resetting, Rest::Stopped) => Some("it is stopped; start it"),
            (Activity::Starting, Rest::Stopped)
            | (Activity::Stopping | Activity::Pausing | Activity::Resetting, Rest::Running)
            | (Activity::Stopping | Activity::Resuming | Activity::Resetting, Rest::Paused { .. })
            | (
                Activity::Snapshotting
                | Activity::Applying
                | Activity::Cloning
                | Activity::Reconfiguring
                | Activity::Deleting,
                Rest::Stopped | Rest::Running | Rest::Paused { .. },
            ) => None,
        }
    }
}

impl Trouble {
    /// What gets a machine out of it, for people.
    pub const fn ways_out(&self) -> &'static str {
        if self.spoilt {
            "apply a snapshot to it, or delete it"
        } else {
            "stop it, apply a snapshot to it, or delete it"
        }
    }
}

impl Vm {
    /// Whether the activity may begin now. What depends on more than the state is checked by whoever begins it.
    pub fn allows(&self, activity: Activity) -> Result<(), Refusal> {
        let refuse =
            |kind, why: String| Err(Refusal::new(kind, format!("cannot {} {}: {why}", activity.verb(), self.name)));
        match &self.state {
            VmState::At { rest } => match activity.objection(*rest) {
                None => Ok(()),
                Some(why) => refuse(RefusalKind::State, why.to_owned()),
            },
            VmState::Busy { activity: other, job, .. } => {
                refuse(RefusalKind::Busy, format!("it is {}; wait for job {job}", other.participle()))
            }
            VmState::Error { trouble } => match activity {
                Activity::Applying | Activity::Deleting | Activity::Stopping => Ok(()),
                Activity::Creating
                | Activity::Starting
                | Activity::Pausing
                | Activity::Resuming
                | Activity::Resetting
                | Activity::Snapshotting
                | Activity::Cloning
                | Activity::Reconfiguring => {
                    refuse(RefusalKind::State, format!("it is in error ({}); {}", trouble.reason, trouble.ways_out()))
                }
            },
            VmState::Gone => refuse(RefusalKind::State, "it is deleted".to_owned()),
        }
    }

    /// All that may begin now; `deleting` says whether snapshots of it are being deleted.
    pub fn allowed(&self, deleting: bool) -> Vec<Activity> {
        let may = |activity: &Activity| self.allows(*activity).is_ok() && !(deleting && activity.holds_tree());
        Activity::ALL.into_iter().filter(may).collect()
    }

    /// The state after the event.
    pub fn after(&self, event: &VmEvent) -> Result<VmState, Refusal> {
        let unexpected = |what: &str| {
            Err(Refusal::new(RefusalKind::State, format!("{} cannot have {what} now: it is {}", self.name, self.state)))
        };
        match (event, &self.state) {
            (VmEvent::Begin { activity, job }, state) => {
                self.allows(*activity)?;
                let (from, error) = match state {
                    VmState::At { rest } => (Some(*rest), None),
                    // Whatever still runs of a broken machine is stopped by what may begin.
                    VmState::Error { trouble } => (Some(Rest::Stopped), Some(trouble.clone())),
                    VmState::Busy { .. } | VmState::Gone => (None, None),
                };
                Ok(VmState::Busy { from, error, activity: *activity, job: *job })
            }
            // Its process is ended; its disks are what they were.
            (VmEvent::Finished(_), VmState::Busy { error: Some(trouble), activity, .. })
                if trouble.spoilt && *activity != Activity::Applying =>
            {
                Ok(VmState::Error { trouble: trouble.clone() })
            }
            (VmEvent::Finished(rest), VmState::Busy { .. }) => Ok(VmState::At { rest: *rest }),
            (VmEvent::Undone, VmState::Busy { error: Some(trouble), .. }) => {
                Ok(VmState::Error { trouble: trouble.clone() })
            }
            (VmEvent::Undone, VmState::Busy { from: Some(rest), .. }) => Ok(VmState::At { rest: *rest }),
            (VmEvent::Undone, VmState::Busy { from: None, .. }) => Ok(VmState::Gone),
            (VmEvent::Broke(reason), VmState::Busy { activity, error, .. }) => {
                let spoilt = activity.spoils() || error.as_ref().is_some_and(|before| before.spoilt);
                Ok(VmState::Error { trouble: Trouble { reason: reason.clone(), spoilt } })
            }
            (VmEvent::Deleted, VmState::Busy { activity: Activity::Deleting, .. }) => Ok(VmState::Gone),
            (VmEvent::Observed(rest), VmState::At { .. }) => Ok(VmState::At { rest: *rest }),
            // A job knows better what it is doing; a broken machine stays broken; a deleted one deleted.
            (VmEvent::Observed(_), state @ (VmState::Busy { .. } | VmState::Error { .. } | VmState::Gone)) => {
                Ok(state.clone())
            }
            (
                VmEvent::Finished(_) | VmEvent::Undone | VmEvent::Broke(_),
                VmState::At { .. } | VmState::Error { .. } | VmState::Gone,
            ) => unexpected("a job ended"),
            (VmEvent::Deleted, VmState::At { .. } | VmState::Busy { .. } | VmState::Error { .. } | VmState::Gone) => {
                unexpected("been deleted")
            }
        }
    }
}

impl std::fmt::Display for VmState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            VmState::At { rest } => rest.fmt(f),
            VmState::Busy { activity, .. } => f.write_str(activity.participle()),
            VmState::Error { .. } => f.write_str("in error"),
            VmState::Gone => f.write_str("deleted"),
        }
    }
}

impl std::fmt::Display for Rest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Rest::Stopped => "stopped",
            Rest::Running => "running",
            Rest::Paused { reason: PauseReason::Asked } => "paused",
            Rest::Paused { reason: PauseReason::NoSpace } => "paused: no space",
            Rest::Paused { reason: PauseReason::IoError } => "paused: disk error",
            Rest::Paused { reason: PauseReason::Crashed } => "paused: crashed",
        })
    }
}
