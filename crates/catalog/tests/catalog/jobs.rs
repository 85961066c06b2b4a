use keyframe_agent_api::{Generation, JobId, SnapshotId, Timestamp, VmId};
use keyframe_catalog::{ErrorKind, JobFilter, JobStep, Mode, PageOf, Request, Resource, StepState};
use keyframe_model::{JobKind, JobState};
use serde_json::json;

use crate::world::{Place, job, on_both};

on_both! { a_job_lives jobs_are_listed locks_exclude requests_are_remembered }

async fn a_job_lives(place: Place) {
    let mut tx = place.catalog.write().await.unwrap();
    let mut j = job(JobKind::VmStart, &[VmId::new()]);
    tx.insert_job(&j).await.unwrap();
    assert_eq!(tx.job(j.id).await.unwrap(), j);
    let mut old = j.clone();
    (j.state, j.cancel) = (JobState::Running, true);
    tx.update_job(&mut j).await.unwrap();
    assert_eq!((tx.job(j.id).await.unwrap(), j.generation), (j.clone(), Generation(2)));
    assert_eq!(tx.update_job(&mut old).await.unwrap_err().kind, ErrorKind::Stale);
    assert_eq!(tx.job(JobId::new()).await.unwrap_err().kind, ErrorKind::NotFound);
    let mut steps: Vec<JobStep> = (0..3)
        .map(|index| JobStep {
            job: j.id,
            index,
            name: format!("step {index}"),
            state: StepState::Started,
            output: None,
            error: None,
            started: Timestamp(5),
            ended: None,
        })
        .collect();
    for step in steps.iter().rev() {
        tx.put_step(step).await.unwrap();
    }
    (steps[1].state, steps[1].output) = (StepState::Done, Some(json!({ "a": [1] })));
    tx.put_step(&steps[1]).await.unwrap();
    assert_eq!(tx.steps(j.id).await.unwrap(), steps);
    assert_eq!(tx.steps(JobId::new()).await.unwrap(), []);
}

async fn jobs_are_listed(place: Place) {
    let mut tx = place.catalog.write().await.unwrap();
    let both = [VmId::new(), VmId::new()];
    let [a, b] = both;
    let mut all = Vec::new();
    for n in 0..12 {
        let mut j =
            job(if n % 2 == 0 { JobKind::Clone } else { JobKind::VmStop }, if n < 4 { &both } else { &both[1..] });
        if n >= 8 {
            (j.state, j.ended) = (JobState::Succeeded, Some(Timestamp(n)));
        }
        tx.insert_job(&j).await.unwrap();
        all.push(j.id);
    }
    let none = JobFilter::default;
    for (filter, count) in [
        (none(), 12),
        (JobFilter { vm: Some(a), ..none() }, 4),
        (JobFilter { vm: Some(b), open: Some(true), ..none() }, 8),
        (JobFilter { open: Some(false), ..none() }, 4),
        (JobFilter { state: Some(JobState::Succeeded), kind: Some(JobKind::Clone), ..none() }, 2),
        (JobFilter { state: Some(JobState::Undoing), ..none() }, 0),
    ] {
        assert_eq!(tx.jobs(&filter, &PageOf::first(3)).await.unwrap().total, count, "{filter:?}");
    }
    let page = tx.jobs(&none(), &PageOf::first(5)).await.unwrap();
    let next = tx.jobs(&none(), &PageOf { after: page.items.last().map(|j| j.id), limit: 100 }).await.unwrap();
    let seen: Vec<JobId> = page.items.iter().chain(&next.items).map(|j| j.id).collect();
    assert_eq!(seen, all.iter().rev().copied().collect::<Vec<_>>(), "the newest first");
    let unfinished: Vec<JobId> = tx.unfinished_jobs().await.unwrap().iter().map(|j| j.id).collect();
    assert_eq!(unfinished, all[..8]);
    assert_eq!(tx.prune_jobs(Timestamp(11), 2).await.unwrap(), 2);
    assert_eq!(tx.prune_jobs(Timestamp(11), 100).await.unwrap(), 1);
    assert_eq!(tx.jobs(&none(), &PageOf::all()).await.unwrap().total, 9);
}

async fn locks_exclude(place: Place) {
    let mut tx = place.catalog.write().await.unwrap();
    let (vm, source) = (Resource::Vm(VmId::new()), Resource::Snapshot(SnapshotId::new()));
    let (a, b) = (job(JobKind::Clone, &[]), job(JobKind::Clone, &[]));
    // Locks may be taken before the job's own row is there.
    tx.lock(a.id, &[(source, Mode::Shared), (vm, Mode::Exclusive)]).await.unwrap();
    tx.insert_job(&a).await.unwrap();
    tx.insert_job(&b).await.unwrap();
    tx.lock(b.id, &[(source, Mode::Shared)]).await.unwrap();
    let busy = tx.lock(b.id, &[(vm, Mode::Shared)]).await.unwrap_err();
    assert_eq!(
        (busy.kind, busy.to_string()),
        (ErrorKind::Busy, format!("{vm} is being used by job {}; wait for it", a.id))
    );
    let shared = tx.in_the_way(&[(vm, Mode::Shared), (source, Mode::Shared)]).await.unwrap();
    assert_eq!(shared.iter().map(|(job, e)| (*job, e.to_string())).collect::<Vec<_>>(), [(a.id, busy.to_string())]);
    let mut alone = tx.in_the_way(&[(vm, Mode::Exclusive), (source, Mode::Exclusive)]).await.unwrap();
    alone.sort_by_key(|(job, _)| *job != a.id);
    assert_eq!(alone.iter().map(|(job, _)| *job).collect::<Vec<_>>(), [a.id, b.id], "each once");
    assert_eq!(tx.lock(b.id, &[(source, Mode::Exclusive)]).await.unwrap_err().kind, ErrorKind::Busy);
    tx.lock(a.id, &[(vm, Mode::Shared)]).await.unwrap();
    assert_eq!(tx.holders(vm).await.unwrap(), [(a.id, Mode::Exclusive)], "the stronger stays");
    tx.unlock_these(b.id, &[vm]).await.unwrap();
    assert_eq!(tx.holders(vm).await.unwrap(), [(a.id, Mode::Exclusive)], "that of another stays");
    tx.unlock_these(a.id, &[vm, Resource::Vm(VmId::new())]).await.unwrap();
    assert_eq!(tx.holders(vm).await.unwrap(), []);
    assert_eq!(tx.holders(source).await.unwrap().len(), 2, "the others stay");
    tx.unlock(a.id).await.unwrap();
    tx.lock(b.id, &[(source, Mode::Exclusive), (vm, Mode::Shared)]).await.unwrap();
    assert_eq!(tx.holders(source).await.unwrap(), [(b.id, Mode::Exclusive)]);
    let tree = VmId::new();
    tx.lock(b.id, &[(Resource::Tree(tree), Mode::Exclusive)]).await.unwrap();
    assert_eq!(tx.held_trees().await.unwrap(), [tree].into());
    assert_eq!(tx.holders(Resource::Vm(tree)).await.unwrap(), [], "its process is another matter");
    tx.commit().await.unwrap();
    let mut tx = place.catalog.write().await.unwrap();
    tx.lock(JobId::new(), &[(Resource::Vm(VmId::new()), Mode::Shared)]).await.unwrap();
    assert_eq!(tx.commit().await.unwrap_err().kind, ErrorKind::NotFound, "a lock without a job");
}

async fn requests_are_remembered(place: Place) {
    let mut tx = place.catalog.write().await.unwrap();
    let request =
        |key: &str, at| Request { key: key.into(), fingerprint: "f".into(), job: JobId::new(), at: Timestamp(at) };
    let (a, b) = (request("a", 1), request("b", 2));
    tx.remember_request(&a).await.unwrap();
    tx.remember_request(&b).await.unwrap();
    assert_eq!(tx.request("a").await.unwrap(), Some(a.clone()));
    assert_eq!(tx.request("c").await.unwrap(), None);
    assert_eq!(tx.prune_requests(Timestamp(2)).await.unwrap(), 1);
    assert_eq!(tx.request("a").await.unwrap(), None);
    assert_eq!(tx.remember_request(&b).await.unwrap_err().kind, ErrorKind::Taken);
}
