//! Jobs.

use std::io::{self, Write};

use keyframe_manager::request::JobView;
use keyframe_model::JobState;

use super::{fields, moment, or_dash, print, word};

fn progress(job: &JobView) -> String {
    match job.progress.total {
        _ if matches!(job.state, JobState::Failed | JobState::Cancelled) => "-".into(),
        0 => "-".into(),
        total => format!("{} %", u128::from(job.progress.done) * 100 / u128::from(total)),
    }
}

pub(in crate::remote) fn list(jobs: &[JobView], out: &mut impl Write) -> io::Result<()> {
    let row = |job: &JobView| {
        vec![
            job.job.id.to_string(),
            word(job.job.kind),
            word(job.state),
            progress(job),
            job.caller.clone(),
            moment(job.created),
        ]
    };
    print(&["JOB", "KIND", "STATE", "DONE", "BY", "ORDERED (UTC)"], jobs.iter().map(row).collect(), out)
}

pub(in crate::remote) fn show(job: &JobView, out: &mut impl Write) -> io::Result<()> {
    let mut list = vec![
        ("job", job.job.id.to_string()),
        ("title", job.title.clone()),
        ("kind", word(job.job.kind)),
        ("state", word(job.state)),
        ("done", progress(job)),
        ("doing", or_dash(job.step.clone())),
        ("ordered by", job.caller.clone()),
        ("ordered (utc)", moment(job.created)),
    ];
    list.extend(job.ended.map(|at| ("ended (utc)", moment(at))));
    list.extend(job.job.vms.iter().map(|vm| ("vm", vm.to_string())));
    list.extend(job.job.source.map(|vm| ("copies vm", vm.to_string())));
    list.extend(job.instant.iter().flat_map(super::snapshot::report));
    list.extend(job.job.snapshot.map(|snapshot| ("snapshot", snapshot.to_string())));
    list.extend(job.job.template.map(|template| ("template", template.to_string())));
    list.extend(job.error.as_ref().map(|error| ("error", error.message.clone())));
    list.extend(job.notes.iter().map(|note| ("note", note.clone())));
    list.push(("can be cancelled", if job.cancellable { "yes" } else { "no" }.to_owned()));
    fields(&list, out)
}
