//! How jobs end.

use keyframe_catalog::Job;
use keyframe_model::{JobState, RefusalKind};

use super::*;
use crate::job::{Engine, Limits, Registry};

const LIMITS: Limits = Limits {
    jobs: 4,
    patience: Duration::from_millis(300),
    first_wait: Duration::from_millis(1),
    longest_wait: Duration::from_millis(20),
    report: Duration::from_millis(5),
};

async fn world(trouble: Trouble) -> ToyWorld {
    ToyWorld::new(&Toy { trouble, ..Toy::default() }, false).await
}

fn engine(world: &ToyWorld) -> Engine {
    Engine::new(world.catalog.clone(), Registry::new().with(world.toy.clone()), LIMITS)
}

async fn ended(engine: &Engine, id: JobId) -> Job {
    tokio::time::timeout(Duration::from_secs(30), engine.wait(id)).await.expect("the job is stuck").unwrap()
}

async fn run(world: &ToyWorld) -> Job {
    let engine = engine(world);
    let id = engine.submit::<Toy>("me", (world.vm, world.commits)).await.unwrap();
    let job = ended(&engine, id).await;
    engine.stop().await;
    job
}

#[tokio::test]
async fn a_job_does_its_steps_and_says_what_came_of_it() {
    let world = world(Trouble::None).await;
    let job = run(&world).await;
    assert_eq!(
        (job.state, job.caller.as_str(), job.title.as_str()),
        (JobState::Succeeded, "me", "put 3 boxes for toy")
    );
    assert_eq!(job.result, Some(json!({ "boxes": format!("a-{}", world.vm) })));
    assert_eq!((job.progress.done, job.progress.total), (300, 300));
    assert_eq!(world.toy.shelf.lock().len(), 3);
    assert_eq!(world.vm().await.state, VmState::At { rest: Rest::Running });
}

#[tokio::test]
async fn what_is_unreachable_for_a_while_is_tried_again() {
    let world = world(Trouble::UnreachableTimes(4)).await;
    let job = run(&world).await;
    assert_eq!((job.state, job.error), (JobState::Succeeded, None));
    assert_eq!(world.toy.tries.load(Ordering::SeqCst), 5);
}

#[tokio::test]
async fn what_stays_unreachable_is_given_up_and_undone() {
    let world = world(Trouble::Unreachable).await;
    let job = run(&world).await;
    let error = job.error.unwrap();
    assert_eq!((job.state, error.kind.as_str()), (JobState::Failed, "unreachable"));
    assert_eq!(error.message, "the shelf is out of reach");
    assert!(world.toy.shelf.lock().is_empty());
    assert_eq!(world.vm().await.state, VmState::At { rest: Rest::Stopped });
}

#[tokio::test]
async fn a_step_that_hangs_is_dropped_at_its_deadline() {
    let world = world(Trouble::Hangs).await;
    let job = run(&world).await;
    let error = job.error.unwrap();
    assert_eq!((job.state, error.kind.as_str()), (JobState::Failed, "deadline"));
    assert_eq!(error.message, "put b took longer than 0.05 s");
    assert!(world.toy.shelf.lock().is_empty());
}

#[tokio::test]
async fn what_cannot_be_undone_is_named_and_the_machine_is_in_error() {
    let world = world(Trouble::CannotBeUndone).await;
    let job = run(&world).await;
    assert_eq!((job.state, job.error.unwrap().kind.as_str()), (JobState::Failed, "no-space"));
    assert_eq!(job.left, ["put b: the shelf is out of reach"]);
    let left: Vec<String> = world.toy.shelf.lock().keys().cloned().collect();
    assert_eq!(left, [format!("b-{}", world.vm)], "what could be undone is");
    let VmState::Error { trouble } = world.vm().await.state else { panic!("it is not in error") };
    assert_eq!(trouble.reason, "the shelf is full");
}

#[tokio::test]
async fn one_that_waits_for_its_turn_is_cancelled_at_once() {
    let world = world(Trouble::WaitsForCancel).await;
    let limits = Limits { jobs: 1, ..LIMITS };
    let engine = Engine::new(world.catalog.clone(), Registry::new().with(world.toy.clone()), limits);
    let other = stopped_vm("other");
    let mut tx = world.catalog.write().await.unwrap();
    tx.insert_vm(&other).await.unwrap();
    tx.commit().await.unwrap();
    let first = engine.submit::<Toy>("me", (world.vm, false)).await.unwrap();
    world.toy.reached.notified().await;
    let waiting = engine.submit::<Toy>("me", (other.id, false)).await.unwrap();
    engine.cancel(waiting).await.unwrap();
    assert_eq!(ended(&engine, waiting).await.state, JobState::Cancelled);
    assert!(!world.catalog.read().await.unwrap().job(first).await.unwrap().state.ended());
    engine.cancel(first).await.unwrap();
    ended(&engine, first).await;
    engine.stop().await;
}

/// A host may be away for longer than anybody's patience: whoever cannot go back waits, and nothing is in error.
#[tokio::test]
async fn what_cannot_be_undone_waits_for_its_host() {
    let toy = Toy { trouble: Trouble::LastUnreachableTimes(60), ..Toy::default() };
    let world = ToyWorld::new(&toy, true).await;
    let job = run(&world).await;
    assert_eq!((job.state, job.error), (JobState::Succeeded, None));
    assert_eq!(world.toy.tries.load(Ordering::SeqCst), 62, "one of them is the second step's");
}

#[tokio::test]
async fn a_long_step_hears_of_a_cancellation() {
    let world = world(Trouble::WaitsForCancel).await;
    let engine = engine(&world);
    let id = engine.submit::<Toy>("me", (world.vm, false)).await.unwrap();
    world.toy.reached.notified().await;
    engine.cancel(id).await.unwrap();
    let job = ended(&engine, id).await;
    assert_eq!((job.state, job.error.unwrap().kind.as_str()), (JobState::Cancelled, "cancelled"));
    assert!(world.toy.shelf.lock().is_empty());
    let refused = engine.cancel(id).await.unwrap_err();
    let says = format!("job {id} (put 3 boxes for toy) has ended already: cancelled");
    assert_eq!((refused.kind, refused.to_string()), (RefusalKind::State.into(), says));
}

#[tokio::test]
async fn past_the_point_of_no_return_nobody_cancels() {
    let world = ToyWorld::new(&Toy { trouble: Trouble::HoldsLast, ..Toy::default() }, true).await;
    let engine = engine(&world);
    let id = engine.submit::<Toy>("me", (world.vm, true)).await.unwrap();
    world.toy.reached.notified().await;
    let refused = engine.cancel(id).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::State);
    assert!(refused.to_string().contains("has begun what cannot be undone"), "{refused}");
    world.toy.release.notify_one();
    assert_eq!(ended(&engine, id).await.state, JobState::Succeeded);
    assert_eq!(world.toy.shelf.lock().len(), 3);
}

#[tokio::test]
async fn progress_is_seen_while_a_step_is_at_work() {
    let world = world(Trouble::WaitsForCancel).await;
    let engine = engine(&world);
    let id = engine.submit::<Toy>("me", (world.vm, false)).await.unwrap();
    let mut changes = world.catalog.changes();
    let seen = async {
        loop {
            let job = world.catalog.read().await.unwrap().job(id).await.unwrap();
            if job.progress.done == 150 {
                return job;
            }
            changes.changed().await.unwrap();
        }
    };
    let job = tokio::time::timeout(Duration::from_secs(30), seen).await.expect("half of the second step is not seen");
    assert_eq!((job.progress.total, job.message.as_str()), (300, "put b"));
    engine.cancel(id).await.unwrap();
    ended(&engine, id).await;
}

#[tokio::test]
async fn a_bug_in_a_step_ends_its_job_and_nothing_else() {
    let world = world(Trouble::Panics).await;
    let job = run(&world).await;
    assert_eq!((job.state, job.error.unwrap().kind.as_str()), (JobState::Failed, "internal"));
    assert_eq!(job.left.len(), 2, "{:?}", job.left);
    assert!(matches!(world.vm().await.state, VmState::Error { .. }));
    let other = ToyWorld::new(&Toy::default(), false).await;
    assert_eq!(run(&other).await.state, JobState::Succeeded);
}

#[tokio::test]
async fn a_job_of_an_unknown_kind_does_not_stay_for_ever() {
    let world = world(Trouble::Hangs).await;
    let first = engine(&world);
    let id = first.submit::<Toy>("me", (world.vm, false)).await.unwrap();
    world.toy.reached.notified().await;
    first.stop().await;
    let older = Engine::new(world.catalog.clone(), Registry::new(), LIMITS);
    assert_eq!(older.recover().await.unwrap(), 1);
    let job = ended(&older, id).await;
    assert_eq!((job.state, job.error.unwrap().kind.as_str()), (JobState::Failed, "unsupported"));
    assert!(matches!(world.vm().await.state, VmState::Error { .. }));
}

#[tokio::test]
async fn one_job_at_a_time_works_on_a_machine() {
    let world = world(Trouble::WaitsForCancel).await;
    let engine = engine(&world);
    let id = engine.submit::<Toy>("me", (world.vm, false)).await.unwrap();
    let refused = engine.submit::<Toy>("me", (world.vm, false)).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Busy);
    assert!(refused.to_string().contains(&id.to_string()), "{refused}");
    engine.cancel(id).await.unwrap();
    ended(&engine, id).await;
    engine.stop().await;
}

#[tokio::test]
async fn a_manager_that_lost_its_catalog_stops_and_the_next_goes_on() {
    let world = world(Trouble::UnreachableTimes(40)).await;
    let patient = Limits { patience: Duration::from_secs(30), ..LIMITS };
    world.catalog.claim("the first", Duration::ZERO).await.unwrap();
    let first = Engine::new(world.catalog.clone(), Registry::new().with(world.toy.clone()), patient);
    let id = first.submit::<Toy>("me", (world.vm, false)).await.unwrap();
    world.toy.reached.notified().await;
    // As if its lock had been lost with its connection.
    world.catalog.release().await;
    let path = world._dir.path().join("catalog.db");
    let second = Catalog::open(path.to_str().unwrap()).await.unwrap();
    second.claim("the second", Duration::ZERO).await.unwrap();
    tokio::time::timeout(Duration::from_secs(30), first.until_fenced()).await.expect("the first is not fenced");
    let engine = Engine::new(second, Registry::new().with(world.toy.clone()), patient);
    assert_eq!(engine.recover().await.unwrap(), 1);
    assert_eq!(ended(&engine, id).await.state, JobState::Succeeded);
}
