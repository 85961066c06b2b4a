//! The life of a machine, from one end to the other.

use keyframe_agent::hypervisor::fake::{Mood, When};
use keyframe_model::agent::{NicConnection, Power, VmId};
use keyframe_model::copy::NicPolicy;
use keyframe_model::{Rest, SnapshotKind, Vm, VmState};

use super::site::{Site, apply, call, called, caller, done, job, make, snap, wish};
use crate::Manager;
use crate::request::{
    Apply, CloneCreate, CloneMemory, CloneSource, JobFilter, PageRequest, SnapshotDelete, SnapshotFilter, StopRequest,
    TemplateCreate, TemplateSource, VmDelete, VmFilter,
};

pub(super) fn clone_of(source: CloneSource, name: &str, memory: CloneMemory) -> CloneCreate {
    CloneCreate {
        source,
        name: name.to_owned(),
        count: None,
        first: None,
        description: String::new(),
        memory,
        nics: None,
        start: false,
        keep_identity: false,
    }
}

async fn state(manager: &Manager, vm: VmId) -> VmState {
    manager.vm(&caller(), vm).await.unwrap().vm.state
}

fn at(rest: Rest) -> VmState {
    VmState::At { rest }
}

#[tokio::test(flavor = "multi_thread")]
async fn from_image_to_fork_and_back() {
    let site = Site::new(true).await;
    let manager = site.manager().await;
    let vm = make(&manager, wish(&site, "web", &[1, 2], true)).await.vm;
    assert_eq!(vm.state, at(Rest::Running));
    assert_eq!(vm.hardware.disks.len(), 2);
    assert_eq!(vm.hardware.disks[0].size, super::site::DISK);

    site.fake.step(vm.id, 10).unwrap();
    let first = snap(&manager, vm.id, "first", SnapshotKind::DiskAndMemory).await;
    let then = site.fake.machine(vm.id).unwrap().guest;
    site.fake.step(vm.id, 25).unwrap();
    site.fake.check(vm.id).unwrap();
    let disks = snap(&manager, vm.id, "disks", SnapshotKind::Disk).await;
    site.fake.step(vm.id, 5).unwrap();

    // Back to the memory: the guest goes on where it was, with the disks of that instant.
    apply(&manager, first, Apply::default()).await;
    assert_eq!(state(&manager, vm.id).await, at(Rest::Running));
    let back = site.fake.machine(vm.id).unwrap().guest;
    assert!(back.count <= then.count, "{back:?} is not before {then:?}");
    site.fake.check(vm.id).unwrap();
    let tree = manager.tree(&caller(), vm.id, true).await.unwrap();
    assert_eq!(tree.current, Some(first));
    let shown = manager.vm(&caller(), vm.id).await.unwrap().current_name;
    assert_eq!(shown.map(|name| name.to_string()).as_deref(), Some("first"));
    let names: Vec<(String, u32)> = tree.nodes.iter().map(|node| (node.name.to_string(), node.depth)).collect();
    assert_eq!(names, [("first".to_owned(), 0), ("disks".to_owned(), 1), ("before-first-1".to_owned(), 2)]);

    // Back to disks only: it stops.
    apply(&manager, disks, Apply { discard_current: true, ..Apply::default() }).await;
    assert_eq!(state(&manager, vm.id).await, at(Rest::Stopped));
    for disk in &vm.hardware.disks {
        assert_eq!(site.content(&disk.volume, None), site.content(&disk.volume, Some(disks)));
    }

    // A fork of the memory, which is another machine.
    let fork = clone_of(CloneSource::Snapshot { snapshot: first }, "fork", CloneMemory::Yes);
    let made = manager.clone_vm(&call(), fork).await.unwrap();
    done(&manager, made.id).await;
    let fork = manager.vm(&caller(), made.vms[0]).await.unwrap().vm;
    assert_eq!(fork.state, at(Rest::Running));
    site.fake.check(fork.id).unwrap();
    assert_ne!(fork.hardware.generation_id, vm.hardware.generation_id);
    assert_ne!(fork.hardware.nics[0].mac, vm.hardware.nics[0].mac);
    assert!(!fork.hardware.nics[0].link_up, "a fork is disconnected unless somebody says otherwise");

    // The source goes; the fork stays whole.
    let gone = manager.delete_vm(&call(), vm.id, VmDelete::default()).await.unwrap();
    done(&manager, job(gone)).await;
    site.fake.step(fork.id, 7).unwrap();
    site.fake.check(fork.id).unwrap();
    let left = manager.list_vms(&caller(), &VmFilter::default(), &PageRequest::default()).await.unwrap().items;
    assert_eq!(left.iter().map(|view| view.vm.name.as_str()).collect::<Vec<_>>(), ["fork"]);
    let gone = manager.delete_vm(&call(), fork.id, VmDelete { force: true, ..VmDelete::default() }).await.unwrap();
    done(&manager, job(gone)).await;
    let left = site.look().await;
    assert_eq!(left["volumes"], serde_json::json!([]), "nothing is left behind");
    assert_eq!((&left["memory"], &left["vms"]), (&serde_json::json!([]), &serde_json::json!([])));
    manager.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_machine_is_forked_and_runs_on() {
    let site = Site::new(true).await;
    let manager = site.manager().await;
    let vm = make(&manager, wish(&site, "web", &[1], true)).await.vm;
    site.fake.step(vm.id, 9).unwrap();
    let mut fork = clone_of(CloneSource::Vm { vm: vm.id }, "fork-{n}", CloneMemory::Yes);
    fork.count = Some(2);
    fork.nics = Some(NicPolicy::Isolated { network: Some("lab".to_owned()) });
    let made = manager.clone_vm(&call(), fork).await.unwrap();
    done(&manager, made.id).await;
    assert_eq!(state(&manager, vm.id).await, at(Rest::Running));
    assert_eq!(made.vms.len(), 2);
    for &fork in &made.vms {
        site.fake.check(fork).unwrap();
        let fork = manager.vm(&caller(), fork).await.unwrap().vm;
        assert_eq!(fork.state, at(Rest::Running));
        assert_eq!(fork.hardware.nics[0].connection, NicConnection::Isolated { network: "lab".to_owned() });
    }
    site.fake.check(vm.id).unwrap();
    let about = JobFilter { vm: Some(vm.id), ..JobFilter::default() };
    let jobs = manager.list_jobs(&caller(), &about, &PageRequest::default()).await.unwrap().items;
    assert_eq!((jobs[0].job.id, jobs[0].job.source), (made.id, Some(vm.id)), "the job is the source's too");
    let snapshots =
        manager.list_snapshots(&caller(), &SnapshotFilter::default(), &PageRequest::default()).await.unwrap();
    assert!(snapshots.items.is_empty(), "the instant for the fork is gone");
    let look = site.look().await;
    assert_eq!(look["memory"], serde_json::json!([]));
    assert!(look["volumes"].as_array().unwrap().iter().all(|volume| volume["had"] == serde_json::json!([])));
    manager.stop().await;
}

/// What is said of a fork's cables is what they are: out as long as its guest may go by the source's addresses.
#[tokio::test(flavor = "multi_thread")]
async fn the_cables_of_a_fork_are_as_they_are_said_to_be() {
    for (mood, keep_identity, plugged) in
        [(Mood::Willing, false, true), (Mood::Refusing, false, false), (Mood::Willing, true, false)]
    {
        let site = Site::new(false).await;
        let manager = site.manager().await;
        let vm = make(&manager, wish(&site, "web", &[1], true)).await.vm;
        site.fake.mood_of_new(mood);
        let fork = CloneCreate {
            nics: Some(NicPolicy::Keep),
            keep_identity,
            ..clone_of(CloneSource::Vm { vm: vm.id }, "fork", CloneMemory::Yes)
        };
        let made = manager.clone_vm(&call(), fork).await.unwrap();
        let job = done(&manager, made.id).await;
        let fork = manager.vm(&caller(), made.vms[0]).await.unwrap().vm;
        let case = format!("{mood:?} {keep_identity}");
        assert!(vm.hardware.nics[0].link_up, "{case}");
        assert_eq!(fork.hardware.nics[0].link_up, plugged, "{case}");
        assert_eq!(site.fake.machine(fork.id).unwrap().cables[&fork.hardware.nics[0].id], plugged, "{case}");
        let notice = fork.notice.map(|notice| notice.text);
        assert_eq!(notice.is_some(), !plugged, "{case}");
        if let Some(text) = notice {
            assert!(text.contains("its cables are out") && text.contains("nic plug"), "{case}: {text}");
            assert!(job.notes.iter().any(|note| note.contains("its cables are out")), "{case}: {:?}", job.notes);
            let events = manager.events(&caller(), Some(0)).await.unwrap().next().await.unwrap();
            assert!(events.iter().any(|event| event.text.as_ref() == Some(&text)), "{case}: no event says it");
        }
        manager.stop().await;
    }
}

/// A guest that does not listen holds nobody up, and is told of.
#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_goes_on_from_memory_is_told_the_time() {
    let (site, manager, Vm { id: vm, .. }) = Site::with_web(&[1], true).await;
    let one = snap(&manager, vm, "one", SnapshotKind::DiskAndMemory).await;
    for (nth, discard_current) in [(1, false), (3, true)] {
        site.fake.faults().hang("fix_identity", 1, When::Before);
        let wish = Apply { discard_current, ..Apply::default() };
        let job = job(manager.apply_snapshot(&call(), one, wish.clone()).await.unwrap());
        called(&site, "fix_identity", nth).await;
        assert_eq!(state(&manager, vm).await, at(Rest::Running));
        assert!(!manager.job(&caller(), job).await.unwrap().state.ended(), "this is no test");
        site.fake.faults().clear();
        let notes = done(&manager, job).await.notes;
        let says = |note: &String| note.starts_with("web: its clock is still that of the snapshot: ");
        assert_eq!(notes.iter().filter(|note| says(note)).count(), 1, "{notes:?}");

        assert_eq!(apply(&manager, one, wish).await.notes, Vec::<String>::new());
        let told = site.fake.machine(vm).unwrap().identity.unwrap();
        assert!(told.clock && told.macs.is_empty() && told.host_name.is_none(), "{told:?}");
    }
    manager.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_needs_nothing_that_it_was_made_of() {
    let site = Site::new(false).await;
    let manager = site.manager().await;
    let vm = make(&manager, wish(&site, "golden", &[3, 4], false)).await.vm;
    let content: Vec<u64> = vm.hardware.disks.iter().map(|disk| site.content(&disk.volume, None)).collect();
    let template = TemplateCreate {
        name: "debian".parse().unwrap(),
        description: String::new(),
        source: TemplateSource::Vm { vm: vm.id },
    };
    let made = manager.create_template(&call(), template).await.unwrap();
    done(&manager, made.id).await;
    let template = made.template.unwrap();
    done(&manager, job(manager.delete_vm(&call(), vm.id, VmDelete::default()).await.unwrap())).await;

    let mut wish = clone_of(CloneSource::Template { template }, "web-{n}", CloneMemory::No);
    wish.count = Some(5);
    let made = manager.clone_vm(&call(), wish).await.unwrap();
    done(&manager, made.id).await;
    let gone = manager.delete_template(&call(), template).await.unwrap();
    done(&manager, gone.id).await;
    for (n, &clone) in made.vms.iter().enumerate() {
        let clone = manager.vm(&caller(), clone).await.unwrap().vm;
        assert_eq!(clone.name.as_str(), format!("web-{}", n + 1));
        let found: Vec<u64> = clone.hardware.disks.iter().map(|disk| site.content(&disk.volume, None)).collect();
        assert_eq!(found, content);
    }
    assert_eq!(site.look().await["volumes"].as_array().unwrap().len(), 10, "the template's own are gone");
    manager.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_of_a_machine_without_disks_leaves_nothing() {
    let site = Site::new(false).await;
    let manager = site.manager().await;
    let vm = make(&manager, wish(&site, "bare", &[], false)).await.vm;
    let (name, source) = ("nothing".parse().unwrap(), TemplateSource::Vm { vm: vm.id });
    let made = manager.create_template(&call(), TemplateCreate { name, description: String::new(), source }).await;
    let made = made.unwrap();
    assert_eq!(made.source, Some(vm.id));
    done(&manager, made.id).await;
    assert_eq!(site.look().await["instants"], serde_json::json!([]));
    assert_eq!(state(&manager, vm.id).await, at(Rest::Stopped));
    manager.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn power_goes_through_all_states() {
    let (site, manager, Vm { id: vm, .. }) = Site::with_web(&[1], false).await;
    let power = |expected: Power| {
        let site = &site;
        async move { assert_eq!(site.client().vm(vm).await.unwrap().power, expected) }
    };
    done(&manager, manager.start_vm(&call(), vm, Default::default()).await.unwrap().id).await;
    power(Power::Running).await;
    done(&manager, manager.pause_vm(&call(), vm).await.unwrap().id).await;
    assert_eq!(state(&manager, vm).await, at(crate::kind::hold::PAUSED));
    done(&manager, manager.resume_vm(&call(), vm).await.unwrap().id).await;
    done(&manager, manager.reset_vm(&call(), vm).await.unwrap().id).await;
    assert_eq!(state(&manager, vm).await, at(Rest::Running));
    done(&manager, manager.stop_vm(&call(), vm, StopRequest::default()).await.unwrap().id).await;
    assert_eq!(state(&manager, vm).await, at(Rest::Stopped));
    power(Power::Off).await;
    manager.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clones_and_sources_go_in_any_order() {
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let site = Site::new(false).await;
        let manager = site.manager().await;
        let vm = make(&manager, wish(&site, "one", &[1], false)).await.vm;
        let expected = site.content(&vm.hardware.disks[0].volume, None);
        let snapshot = snap(&manager, vm.id, "s", SnapshotKind::Disk).await;
        let second = clone_of(CloneSource::Snapshot { snapshot }, "two", CloneMemory::No);
        let second = manager.clone_vm(&call(), second).await.unwrap();
        done(&manager, second.id).await;
        let third = clone_of(CloneSource::Vm { vm: second.vms[0] }, "three", CloneMemory::No);
        let third = manager.clone_vm(&call(), third).await.unwrap();
        done(&manager, third.id).await;
        let mut left = vec![vm.id, second.vms[0], third.vms[0]];
        for index in order {
            let all = [vm.id, second.vms[0], third.vms[0]];
            let gone = manager.delete_vm(&call(), all[index], VmDelete::default()).await.unwrap();
            done(&manager, job(gone)).await;
            left.retain(|&vm| vm != all[index]);
            for &vm in &left {
                let vm = manager.vm(&caller(), vm).await.unwrap().vm;
                assert_eq!(site.content(&vm.hardware.disks[0].volume, None), expected, "{order:?}");
            }
        }
        assert_eq!(site.look().await["volumes"], serde_json::json!([]));
        manager.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_in_the_middle_of_the_tree_goes() {
    let (_site, manager, Vm { id: vm, .. }) = Site::with_web(&[1], false).await;
    let mut ids = Vec::new();
    for n in 0..4 {
        ids.push(snap(&manager, vm, &format!("s{n}"), SnapshotKind::Disk).await);
    }
    let gone = manager.delete_snapshot(&call(), ids[1], SnapshotDelete::default()).await.unwrap();
    done(&manager, job(gone)).await;
    let tree = manager.tree(&caller(), vm, false).await.unwrap();
    assert_eq!(
        tree.nodes.iter().map(|node| (node.id, node.parent)).collect::<Vec<_>>(),
        [(ids[0], None), (ids[2], Some(ids[0])), (ids[3], Some(ids[2])),]
    );
    let gone =
        manager.delete_snapshot(&call(), ids[2], SnapshotDelete { subtree: true, dry_run: false }).await.unwrap();
    done(&manager, job(gone)).await;
    assert_eq!(manager.tree(&caller(), vm, false).await.unwrap().current, Some(ids[0]), "the pointer moves up");
    done(&manager, job(manager.delete_snapshots(&call(), vm, false).await.unwrap())).await;
    let tree = manager.tree(&caller(), vm, false).await.unwrap();
    assert_eq!((tree.nodes.len(), tree.current), (0, None));
    manager.stop().await;
}
