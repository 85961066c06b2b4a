//! What is refused, in which words, and that nothing has happened then.

use keyframe_model::agent::{Bytes, Generation, Micros, Quiesce, VmId};
use keyframe_model::copy::NicPolicy;
use keyframe_model::{SnapshotKind, Vm};

use super::scenario::clone_of;
use super::site::{Site, call, caller, done, refused, snap, wish};
use crate::request::{
    Apply, Call, Caller, CloneCreate, CloneMemory, CloneSource, DiskResize, DiskSpec, Key, Outcome, PlanView,
    SnapshotCreate, SnapshotDelete, SnapshotUpdate, StopRequest, TemplateCreate, TemplateSource, VmCreate, VmDelete,
    VmUpdate,
};
use crate::{Config, ErrorKind, Manager, reconcile};

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_done_to_a_running_machine_is_refused_before_there_is_a_job() {
    let (site, manager, vm) = Site::with_web(&[1], true).await;
    let before = site.catalog.read().await.unwrap().dump().await.unwrap();
    let clean = SnapshotCreate {
        kind: Some(SnapshotKind::DiskAndMemory),
        quiesce: Quiesce::Required,
        ..SnapshotCreate::default()
    };
    let error = refused(manager.create_snapshot(&call(), vm.id, clean).await);
    let says = "a snapshot of web with memory cannot be quiesced: its file systems would be frozen in the memory; take it \
                without memory, or without quiescing";
    assert_eq!((error.kind, error.message.as_str()), (ErrorKind::Unsupported, says));
    assert_eq!(site.catalog.read().await.unwrap().dump().await.unwrap(), before, "nothing has happened");
    manager.stop().await;
}

/// What they are called is said.
async fn names_and_disks(site: &Site, manager: &Manager, vm: VmId) {
    let mut empty = wish(site, "other", &[], false);
    empty.disks = vec![DiskSpec::default()];
    let error = refused(manager.create_vm(&call(), empty.clone()).await);
    assert_eq!(error.message, "a disk has neither an image nor a size; give it one of them");
    empty.disks[0].name = Some("data".parse().unwrap());
    let error = refused(manager.create_vm(&call(), empty).await);
    assert_eq!(error.message, "disk data has neither an image nor a size; give it one of them");

    let again = SnapshotCreate { name: Some("disk".parse().unwrap()), ..SnapshotCreate::default() };
    let error = refused(manager.create_snapshot(&call(), vm, again).await);
    assert_eq!(error.message, "web has a snapshot named disk already; choose another name");
    assert_eq!(error.kind, ErrorKind::Taken);
}

#[tokio::test(flavor = "multi_thread")]
async fn words() {
    let (site, manager, vm) = Site::with_web(&[1], false).await;
    let disk = snap(&manager, vm.id, "disk", SnapshotKind::Disk).await;
    let before = site.catalog.read().await.unwrap().dump().await.unwrap();

    let memory = SnapshotCreate { kind: Some(SnapshotKind::DiskAndMemory), ..SnapshotCreate::default() };
    let error = refused(manager.create_snapshot(&call(), vm.id, memory).await);
    assert_eq!(error.message, "web is stopped, so it has no memory; snapshot its disks only, or start it");
    assert_eq!(error.kind, ErrorKind::State);

    let error = refused(manager.pause_vm(&call(), vm.id).await);
    assert_eq!(error.message, "cannot pause web: it is stopped; start it first");

    let fork = clone_of(CloneSource::Snapshot { snapshot: disk }, "fork", CloneMemory::Yes);
    let error = refused(manager.clone_vm(&call(), fork).await);
    assert_eq!(error.message, "snapshot disk has no memory; clone it without");

    let many = CloneCreate { count: Some(2), ..clone_of(CloneSource::Vm { vm: vm.id }, "x", CloneMemory::No) };
    let error = refused(manager.clone_vm(&call(), many).await);
    assert_eq!(error.message, "the name 'x' is for one only; put {n} where the number is to be");

    let error = refused(manager.create_vm(&call(), wish(&site, "web", &[1], false)).await);
    assert_eq!(error.kind, ErrorKind::Taken);

    names_and_disks(&site, &manager, vm.id).await;

    let smaller = DiskResize { size: Bytes(4096), shrink: false };
    let error = refused(manager.resize_disk(&call(), vm.id, vm.hardware.disks[0].id, smaller).await);
    let says = "disk disk0 of web has 65536 bytes, and 4096 are less; what lies beyond would be lost, so say that you mean it \
         (shrink)";
    assert_eq!(error.message, says);

    let eternal = SnapshotCreate { deadline: Some(Micros(86_400_000_000)), ..SnapshotCreate::default() };
    let error = refused(manager.create_snapshot(&call(), vm.id, eternal).await);
    assert_eq!(
        error.message,
        "the deadline of a snapshot is 10 ms to 60 s: writes of the guest may be held for so long"
    );

    let mut copy = clone_of(CloneSource::Vm { vm: vm.id }, "x", CloneMemory::No);
    copy.nics = Some(NicPolicy::Vlan { vlan: 5 });
    let error = refused(manager.clone_vm(&call(), copy).await);
    let says =
        "no network interface of web is on a bridge, so a copy cannot be in VLAN 5; disconnect it, or isolate it";
    assert_eq!(error.message, says);

    let error = manager.events(&caller(), Some(999_999)).await.err().unwrap();
    assert_eq!(error.kind, ErrorKind::NotFound, "{error}");

    let stale = Call { expected: Some(Generation(1)), ..call() };
    let error = refused(manager.start_vm(&stale, vm.id, Default::default()).await);
    assert_eq!(error.kind, ErrorKind::Stale);

    let guest = Call::by(Caller { name: "guest".to_owned(), admin: false });
    let error = refused(manager.delete_vm(&guest, vm.id, VmDelete::default()).await);
    assert_eq!((error.kind, error.message.as_str()), (ErrorKind::Forbidden, "guest may not do that"));

    let error = refused(manager.find_vm(&caller(), "nobody").await);
    let nobody = "machine nobody is not there; `keyframe vm list` shows what is";
    assert_eq!((error.kind, error.message.as_str()), (ErrorKind::NotFound, nobody));
    let id = VmId::new().to_string();
    let error = refused(manager.find_vm(&caller(), &id).await);
    assert_eq!(error.message, nobody.replace("nobody", &id));
    let error = refused(manager.find_snapshot(&caller(), Some(vm.id), "nothing").await);
    let nothing = format!("snapshot nothing of {} is not there; `keyframe snapshot list {0}` shows what is", vm.name);
    assert_eq!((error.kind, error.message), (ErrorKind::NotFound, nothing));
    assert_eq!(site.catalog.read().await.unwrap().dump().await.unwrap(), before, "nothing has happened");
    manager.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_look_like_identifiers_are_refused() {
    let (site, manager, vm) = Site::with_web(&[1], false).await;
    let name = vm.id.to_string();
    let check = |error: crate::Error| {
        assert_eq!(error.kind, ErrorKind::Invalid);
        assert!(error.message.contains("looks like an identifier"), "{}", error.message);
    };
    check(refused(manager.create_vm(&call(), wish(&site, &name, &[1], false)).await));
    let update = VmUpdate { name: Some(name.parse().unwrap()), ..VmUpdate::default() };
    check(refused(manager.update_vm(&call(), vm.id, update).await));
    let clone = clone_of(CloneSource::Vm { vm: vm.id }, &name, CloneMemory::No);
    check(refused(manager.clone_vm(&call(), clone).await));
    let wish = SnapshotCreate { name: Some(name.parse().unwrap()), ..SnapshotCreate::default() };
    check(refused(manager.create_snapshot(&call(), vm.id, wish).await));
    let snapshot = snap(&manager, vm.id, "s", SnapshotKind::Disk).await;
    let update = SnapshotUpdate { name: Some(name.parse().unwrap()), ..SnapshotUpdate::default() };
    check(refused(manager.update_snapshot(&call(), snapshot, update).await));
    let apply = Apply { keep_name: Some(name.parse().unwrap()), ..Apply::default() };
    check(refused(manager.apply_snapshot(&call(), snapshot, apply.clone()).await));
    check(refused(manager.revert_vm(&call(), vm.id, apply).await));
    manager.stop().await;
}

/// Of machines, snapshots, copies and templates alike.
#[tokio::test(flavor = "multi_thread")]
async fn descriptions_are_text_and_not_too_long() {
    let (site, manager, vm) = Site::with_web(&[1], false).await;
    let snapshot = snap(&manager, vm.id, "s", SnapshotKind::Disk).await;
    let before = site.catalog.read().await.unwrap().dump().await.unwrap();
    let long = "x".repeat(4097);
    for (text, says) in [
        (long.as_str(), "a description has at most 4096 bytes"),
        (
            "red: \u{1b}[31m",
            "a description has no '\\u{1b}' in it; of control characters only line breaks and tabs are allowed",
        ),
        ("\0", "a description has no '\\0' in it; of control characters only line breaks and tabs are allowed"),
    ] {
        let text = || text.to_owned();
        let made = VmCreate { description: text(), ..wish(&site, "other", &[1], false) };
        let mut refusals = vec![refused(manager.create_vm(&call(), made).await)];
        let changed = VmUpdate { description: Some(text()), ..VmUpdate::default() };
        refusals.push(refused(manager.update_vm(&call(), vm.id, changed).await));
        let taken = SnapshotCreate { description: text(), ..SnapshotCreate::default() };
        refusals.push(refused(manager.create_snapshot(&call(), vm.id, taken).await));
        let changed = SnapshotUpdate { description: Some(text()), ..SnapshotUpdate::default() };
        refusals.push(refused(manager.update_snapshot(&call(), snapshot, changed).await));
        let source = CloneSource::Vm { vm: vm.id };
        let copied = CloneCreate { description: text(), ..clone_of(source, "x", CloneMemory::No) };
        refusals.push(refused(manager.clone_vm(&call(), copied).await));
        let name = "golden".parse().unwrap();
        let frozen = TemplateCreate { name, description: text(), source: TemplateSource::Vm { vm: vm.id } };
        refusals.push(refused(manager.create_template(&call(), frozen).await));
        refusals.iter().for_each(|error| assert_eq!(error.message, says));
    }
    assert_eq!(site.catalog.read().await.unwrap().dump().await.unwrap(), before, "nothing has happened");
    let lines = VmUpdate { description: Some("first\n\tsecond: ü".to_owned()), ..VmUpdate::default() };
    manager.update_vm(&call(), vm.id, lines).await.unwrap();
    manager.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_machine_is_not_changed_or_deleted_by_accident() {
    let (_site, manager, Vm { id: vm, .. }) = Site::with_web(&[1], true).await;
    let error = refused(manager.delete_vm(&call(), vm, VmDelete::default()).await);
    assert_eq!(error.message, "cannot delete web: it is running; stop it first, or force it");
    let error = refused(manager.update_vm(&call(), vm, VmUpdate { cpus: Some(2), ..VmUpdate::default() }).await);
    assert_eq!(
        error.message,
        "cannot change web: it is not stopped; stop it first, while it runs only cables can be plugged"
    );
    manager.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_memory_leaves_the_disks_usable() {
    let (site, manager, Vm { id: vm, .. }) = Site::with_web(&[1], true).await;
    let snapshot = snap(&manager, vm, "s", SnapshotKind::DiskAndMemory).await;
    for entry in std::fs::read_dir(site.path("memory")).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    let error = refused(manager.apply_snapshot(&call(), snapshot, Apply::default()).await);
    let says = "cannot apply s with its memory: its memory image is lost; its disks can be applied without memory \
                 (--without-memory)";
    assert_eq!(error.message, says);
    let without = Apply { without_memory: true, ..Apply::default() };
    super::site::apply(&manager, snapshot, without).await;
    manager.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_operations_at_once() {
    let (site, manager, Vm { id: vm, .. }) = Site::with_web(&[1], true).await;
    site.with_agent(|agent| agent.array("fake").faults().slow(std::time::Duration::from_millis(300)));
    let first = manager.create_snapshot(&call(), vm, SnapshotCreate::default()).await.unwrap();
    let error = refused(manager.create_snapshot(&call(), vm, SnapshotCreate::default()).await);
    assert_eq!(error.kind, ErrorKind::Busy);
    assert_eq!(error.message, format!("cannot snapshot web: it is being snapshotted; wait for job {}", first.id));
    let error = refused(manager.delete_snapshots(&call(), vm, false).await);
    assert_eq!(error.kind, ErrorKind::Busy, "{error}");
    done(&manager, first.id).await;
    manager.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_wish_twice_is_one_job() {
    let site = Site::new(false).await;
    let manager = site.manager().await;
    let keyed = |said: &str| Call { key: Some(Key { word: "k1".to_owned(), said: said.to_owned() }), ..call() };
    let first = keyed("make web");
    let (one, two) = tokio::join!(
        manager.create_vm(&first, wish(&site, "web", &[1], false)),
        manager.create_vm(&first, wish(&site, "web", &[1], false))
    );
    let (one, two) = (one.unwrap(), two.unwrap());
    // The job goes on meanwhile, so the views of it differ.
    assert_eq!(one.id, two.id, "both at once");
    assert_eq!(manager.create_vm(&first, wish(&site, "web", &[1], false)).await.unwrap().id, one.id);
    assert_eq!(manager.repeated(&first).await.unwrap().map(|job| job.id), Some(one.id));
    let other = keyed("make other");
    assert_eq!(manager.repeated(&other).await.unwrap(), None);
    let error = refused(manager.create_vm(&other, wish(&site, "other", &[1], false)).await);
    assert_eq!(error.kind, ErrorKind::Taken);
    done(&manager, one.id).await;
    manager.stop().await;
}

/// What takes room is refused while the catalog has none to spare; what gives some back is not.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_new_is_made_on_a_full_disk() {
    let (site, manager, Vm { id: vm, .. }) = Site::with_web(&[1], true).await;
    let snapshot = snap(&manager, vm, "s", SnapshotKind::Disk).await;
    manager.stop().await;
    // No disk has that much room to keep.
    let manager = Manager::start(Config { reserve: Bytes(1 << 60), ..site.config() }).await.unwrap();
    let mut events = manager.events(&caller(), None).await.unwrap();
    let mut told = false;
    reconcile::tell_of_room(&manager, &mut told).await.unwrap();
    let says = "the disk that the catalog is on is full, so nothing new can be made: delete snapshots with memory or \
                machines, or make room there";
    assert!(told);
    while !events.next().await.unwrap().iter().any(|event| event.text.as_deref() == Some(says)) {}
    assert!(manager.host(&caller(), "local").await.unwrap().notices.iter().any(|notice| notice == says));
    for error in [
        refused(manager.create_snapshot(&call(), vm, SnapshotCreate::default()).await),
        refused(manager.create_vm(&call(), wish(&site, "new", &[1], false)).await),
    ] {
        assert_eq!((error.kind, error.message.as_str()), (ErrorKind::NoSpace, says));
    }
    let dry = Apply { dry_run: true, ..Apply::default() };
    let Outcome::Done(PlanView::Apply(plan)) = manager.apply_snapshot(&call(), snapshot, dry).await.unwrap() else {
        panic!("a dry run changes nothing");
    };
    assert_eq!(plan.obstacles, [says]);
    let deleted = manager.delete_snapshot(&call(), snapshot, SnapshotDelete::default()).await.unwrap();
    done(&manager, super::site::job(deleted)).await;
    let hard = StopRequest { hard: true, ..StopRequest::default() };
    done(&manager, manager.stop_vm(&call(), vm, hard).await.unwrap().id).await;
    manager.stop().await;
}
