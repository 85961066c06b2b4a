//! The kinds of jobs as they are ordered, each with the machine that it finds.

/// What a guest that obeys can tell of a job's end. Those who kill machines do not ask.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Proof {
    /// Nothing.
    None,
    /// `made` goes by its own name.
    Name,
    /// `guest` has one disk less, or as many as before.
    Disks,
    /// The file systems in `guest@new` are clean.
    Clean,
    /// What the memory and the disk of `guest` hold is of the snapshot, or of before.
    Marks,
}

/// One kind of job.
pub(crate) struct Play {
    pub(crate) kind: &'static str,
    /// As many as the job reports.
    pub(crate) steps: usize,
    /// `web`, a small machine without a system, or `guest`, one with a system that obeys.
    pub(crate) machine: &'static str,
    /// How the machine is before: `error`, or what its power is.
    pub(crate) power: &'static str,
    /// What comes before the order, each time.
    pub(crate) first: &'static [&'static [&'static str]],
    pub(crate) order: &'static [&'static str],
    /// It leaves the machine's process alone.
    pub(crate) keeps: bool,
    pub(crate) proof: Proof,
}

const fn play(kind: &'static str, steps: usize, power: &'static str, order: &'static [&'static str]) -> Play {
    Play { kind, steps, machine: "web", power, first: &[], order, keeps: true, proof: Proof::None }
}

/// One with a guest that obeys, which runs.
const fn obeyed(kind: &'static str, steps: usize, proof: Proof, order: &'static [&'static str]) -> Play {
    Play { machine: "guest", proof, ..play(kind, steps, "running", order) }
}

const MORE: &[&str] = &["disk", "attach", "web", "size=8M,name=more"];
pub(crate) const LESS: &[&str] = &["disk", "detach", "web", "more"];
const IMAGED: &[&str] =
    &["vm", "create", "made", "--memory", "32M", "--image", QCOW2, "--disk", RAW_DISK, "--nic", "none", "--start"];
/// Where images lie is known when they are made.
const QCOW2: &str = "IMAGES.qcow2";
const RAW_DISK: &str = "image=IMAGES.raw,name=raw";
const MADE: &[&str] = &["vm", "create", "made", "--memory", "32M", "--disk", "8M", "--nic", "none", "--start"];
const KEEPING: &[&str] = &["snapshot", "apply", "web@start", "--keep-memory", "--keep-name", "new"];
const DISCARDING: &[&str] = &["snapshot", "apply", "web@start", "--discard-current"];

pub(crate) const PLAYS: &[Play] = &[
    play("vm-create", 2, "running", MADE),
    Play { keeps: false, ..play("vm-start", 1, "stopped", &["vm", "start", "web"]) },
    Play { keeps: false, ..play("vm-stop", 1, "running", &["vm", "stop", "web", "--hard"]) },
    // It has no system that would obey; so its plug is pulled in the end.
    Play { keeps: false, ..play("vm-stop", 1, "running", &["vm", "stop", "web", "--deadline", "1s"]) },
    play("vm-pause", 1, "running", &["vm", "pause", "web"]),
    play("vm-resume", 1, "paused", &["vm", "resume", "web"]),
    play("vm-reset", 1, "running", &["vm", "reset", "web"]),
    Play {
        first: &[&["nic", "plug", "web", "0"]],
        ..play("vm-configure", 1, "running", &["nic", "unplug", "web", "0"])
    },
    Play {
        first: &[MADE, &["snapshot", "create", "made@one", "--memory"]],
        ..play("vm-delete", 4, "running", &["vm", "delete", "made", "--force"])
    },
    play("vm-create", 2, "running", IMAGED),
    play("disk-attach", 2, "running", MORE),
    play("disk-attach", 1, "stopped", MORE),
    Play { first: &[MORE], ..play("disk-detach", 1, "stopped", LESS) },
    // Only a system lets go of a disk while it runs.
    Play {
        first: &[&["disk", "attach", "guest", "size=8M,name=more"]],
        ..obeyed("disk-detach", 2, Proof::Disks, &["disk", "detach", "guest", "more"])
    },
    Play { first: &[MORE], ..play("disk-resize", 1, "running", &["disk", "resize", "web", "more", "16M"]) },
    play("snapshot-create", 1, "running", &["snapshot", "create", "web@new", "--memory"]),
    obeyed("snapshot-create", 1, Proof::Clean, &["snapshot", "create", "guest@new", "--quiesce", "required"]),
    // The disk is in no snapshot, so it goes with the state that is given up.
    Play { first: &[MORE], keeps: false, ..play("snapshot-apply", 9, "running", DISCARDING) },
    Play {
        keeps: false,
        ..obeyed(
            "snapshot-apply",
            8,
            Proof::Marks,
            &["snapshot", "apply", "guest@start", "--keep-memory", "--keep-name", "new"],
        )
    },
    // What is given up is no process.
    play("snapshot-apply", 4, "stopped", &["snapshot", "apply", "web@start", "--keep-name", "new"]),
    Play { keeps: false, ..play("snapshot-apply", 7, "paused", KEEPING) },
    Play {
        keeps: false,
        ..play("snapshot-apply", 5, "error", &["snapshot", "apply", "web@start", "--keep-name", "new"])
    },
    Play { first: &[MORE], keeps: false, ..play("snapshot-apply", 5, "error", DISCARDING) },
    Play {
        first: &[&["snapshot", "create", "web@new", "--memory"]],
        ..play("snapshot-compress", 1, "running", &["snapshot", "compress", "web@new"])
    },
    play("snapshot-verify", 1, "running", &["snapshot", "verify", "web@start"]),
    // Its disk is in nothing else.
    Play {
        first: &[MORE, &["snapshot", "create", "web@new"], LESS],
        ..play("snapshot-delete", 2, "stopped", &["snapshot", "delete", "web@new"])
    },
    Play {
        first: &[MORE, &["snapshot", "create", "web@new"], LESS, &["snapshot", "create", "web@below"]],
        ..play("snapshot-delete", 2, "stopped", &["snapshot", "delete", "web@new", "--subtree"])
    },
    // Its guests are told who they are, by their agents.
    obeyed("clone", 5, Proof::Name, &["clone", "guest", "--memory", "--name", "made"]),
    obeyed("clone", 3, Proof::Name, &["clone", "guest@start", "--memory", "--name", "made"]),
    play("clone", 2, "running", &["clone", "web@start", "--name", "made", "--start"]),
    play("template-create", 4, "stopped", &["template", "create", "web", "--name", "mold"]),
    Play {
        first: &[&["template", "create", "web", "--name", "mold"]],
        ..play("template-delete", 3, "stopped", &["template", "delete", "mold"])
    },
];
