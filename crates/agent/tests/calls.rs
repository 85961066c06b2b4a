//! The agent's calls over its socket: answers, refusals, and what stays as it was.

mod common;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use common::call::{call, good, refused};
use common::stub::Stub;
use common::{BLOCK, pair, start, start_with_pair, volume, wish};
use keyframe_agent::array::Array;
use keyframe_agent_api::{
    Bytes, CreateVolume, DiffRequest, DiffResponse, Firmware, Generation, HostInfo, InstantProbe, InstantReport,
    Machine, Power, ResizeVolume, RevertVolume, SnapshotId, SnapshotRef, SpaceRequest, SpaceResponse, StartFrom,
    StartVm, StopHow, StopVm, VmCall, VmEvent, VmId, VmStatus, VolumeInfo, VolumeSource, WorkProgress, route,
};
use serde_json::json;
use uuid::Uuid;

const NONE: Option<&()> = None;

fn machine() -> Machine {
    Machine {
        name: "m".into(),
        uuid: Uuid::nil(),
        generation_id: Uuid::nil(),
        machine_type: "stub".into(),
        cpus: 1,
        memory: Bytes::mib(1),
        firmware: Firmware::Bios,
        direct_boot: None,
        disks: vec![],
        nics: vec![],
        cloud_init: None,
    }
}

fn start_vm(generation: i64) -> StartVm {
    StartVm { generation: Generation(generation), machine: machine(), from: StartFrom::Cold, paused: false }
}

#[test]
fn volumes_from_making_to_deleting() {
    let dir = tempfile::tempdir().unwrap();
    let agent = start(dir.path(), &Arc::new(Stub::default()));
    let socket = agent.socket();
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let host: HostInfo = good(&socket, "GET", route::HOST, NONE);
    assert_eq!(host.arrays.iter().map(|array| array.name.as_str()).collect::<Vec<_>>(), ["fake", "fake2"]);
    let (v, size) = (volume("fake", "v"), Bytes(8 * BLOCK as u64));
    let wish = CreateVolume { source: VolumeSource::Empty, size: Some(size) };
    for _ in 0..2 {
        let made: VolumeInfo = good(&socket, "PUT", &route::volume(&v), Some(&wish));
        assert_eq!((made.volume, made.size), (v.clone(), size));
    }
    let resize = ResizeVolume { size: Bytes(size.0 * 2), shrink: false };
    let made: VolumeInfo = good(&socket, "POST", &format!("{}/resize", route::volume(&v)), Some(&resize));
    assert_eq!(made.size, resize.size);
    let id = SnapshotId::new();
    agent.array("fake").snapshot(&["v"], id).unwrap();
    let part = SnapshotRef { volume: v.clone(), snapshot: id };
    let ask = SpaceRequest { each: vec![part.clone()], heads: vec![v.clone()], ..SpaceRequest::default() };
    let space: SpaceResponse = good(&socket, "POST", route::SPACE, Some(&ask));
    assert!(space.each[0].is_some() && space.heads[0].is_some());
    let ask = DiffRequest { from: None, to: part, after: Bytes(0), limit: 10 };
    let diff: DiffResponse = good(&socket, "POST", route::DIFF, Some(&ask));
    assert_eq!((diff.extents, diff.next), (vec![], None));
    let revert = format!("{}/revert", route::volume(&v));
    let vm = VmId::new();
    let back = |generation| RevertVolume { snapshot: id, vm, generation: Generation(generation) };
    good::<()>(&socket, "POST", &revert, Some(&back(2)));
    let late = serde_json::to_string(&back(1)).unwrap();
    refused(&socket, "POST", &revert, Some(&late), 412, "stale");
    let page: Vec<VolumeInfo> = good(&socket, "GET", "/v1/volumes/fake?limit=5", NONE);
    assert_eq!(page.len(), 1);
    for _ in 0..2 {
        good::<()>(&socket, "DELETE", &route::volume_snapshot(&v, id), NONE);
        good::<()>(&socket, "DELETE", &route::volume(&v), NONE);
    }
    refused(&socket, "GET", &route::volume(&v), None, 404, "not-found");
}

#[test]
fn what_makes_no_sense_is_refused_in_json() {
    let dir = tempfile::tempdir().unwrap();
    let agent = start(dir.path(), &Arc::new(Stub::default()));
    let socket = agent.socket();
    let check = |method: &str, path: &str, body: Option<&str>, status: u16, kind: &str| {
        refused(&socket, method, path, body, status, kind);
    };
    let empty = r#"{"source":{"type":"empty"},"size":4096}"#;
    check("GET", "/v1/nothing", None, 404, "not-found");
    check("PATCH", "/v1/host", None, 404, "not-found");
    check("GET", "/v1/volumes/tape", None, 404, "not-found");
    check("PUT", "/v1/volumes/fake/..%2Fx", Some(empty), 400, "invalid");
    check("PUT", "/v1/volumes/fake/.x", Some(empty), 400, "invalid");
    check("PUT", "/v1/volumes/fake/a%00b", Some(empty), 400, "invalid");
    check("PUT", "/v1/volumes/fake/x.part", Some(empty), 400, "invalid");
    check("PUT", "/v1/volumes/..%2F..%2Fetc/x", Some(empty), 404, "not-found");
    check("PUT", "/v1/volumes/fake/x", Some("{"), 400, "invalid");
    check("PUT", "/v1/volumes/fake/x", Some("{}"), 400, "invalid");
    check("GET", "/v1/vms/not-a-uuid", None, 400, "invalid");
    check("GET", &format!("/v1/instants/{}?disk=1", SnapshotId::new()), None, 400, "invalid");
    check("GET", &format!("/v1/vms/{}/console", VmId::new()), None, 400, "invalid");
    let large = format!("{}{}", " ".repeat(5 << 20), empty);
    let mut stream = UnixStream::connect(&socket).unwrap();
    let head = format!("PUT /v1/volumes/fake/x HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n", large.len());
    stream.write_all(format!("{head}Content-Type: application/json\r\n\r\n").as_bytes()).unwrap();
    let mut line = String::new();
    // The server may answer and close before everything is sent.
    stream.write_all(large.as_bytes()).unwrap_or(());
    BufReader::new(stream).read_line(&mut line).unwrap();
    assert!(line.starts_with("HTTP/1.1 4"), "{line}");
    assert_eq!(agent.array("fake").volumes(None, 10).unwrap(), []);
}

#[test]
fn machines_and_their_generations() {
    let dir = tempfile::tempdir().unwrap();
    let stub = Arc::new(Stub::default());
    let agent = start(dir.path(), &stub);
    let (socket, vm) = (agent.socket(), VmId::new());
    let act = |act: &str| route::vm_act(vm, act);
    let json = |value: serde_json::Value| value.to_string();
    let status: VmStatus = good(&socket, "GET", &route::vm(vm), NONE);
    assert_eq!((status.power, status.generation), (Power::Off, Generation(0)));
    for _ in 0..2 {
        let status: VmStatus = good(&socket, "PUT", &act("run"), Some(&start_vm(5)));
        assert_eq!((status.power, status.generation), (Power::Running, Generation(5)));
    }
    let other = serde_json::to_string(&start_vm(6)).unwrap();
    refused(&socket, "PUT", &act("run"), Some(&other), 409, "conflict");
    has_run_and_ended(&socket, &stub);
    for old in ["pause", "resume", "reset"] {
        refused(&socket, "POST", &act(old), Some(&json(json!({"generation": 5}))), 412, "stale");
    }
    assert_eq!(good::<Vec<VmStatus>>(&socket, "GET", route::VMS, NONE).len(), 1);
    let paused: VmStatus = good(&socket, "POST", &act("pause"), Some(&VmCall { generation: Generation(7) }));
    assert!(matches!(paused.power, Power::Paused { .. }));
    agent.crash();
    let agent = start(dir.path(), &stub);
    refused(&socket, "POST", &act("resume"), Some(&json(json!({"generation": 6}))), 412, "stale");
    assert_eq!(good::<Vec<VmStatus>>(&socket, "GET", route::VMS, NONE).len(), 1, "adopted");
    let remove = json(json!({"generation": 8}));
    refused(&socket, "POST", &act("remove"), Some(&remove), 409, "conflict");
    let stop = StopVm { generation: Generation(8), how: StopHow::Hard };
    for _ in 0..2 {
        assert_eq!(good::<VmStatus>(&socket, "POST", &act("stop"), Some(&stop)).power, Power::Off);
    }
    assert_eq!(call(&socket, "POST", &act("remove"), Some(&remove)).0, 200);
    assert!(!dir.path().join("vms").join(vm.to_string()).exists());
    assert_eq!(good::<Vec<VmStatus>>(&socket, "GET", route::VMS, NONE), []);
    agent.stop().unwrap();
    assert!(!socket.exists() || UnixStream::connect(&socket).is_err());
}

/// What has run is not started again by the call that started it, for its disks have moved on; what was stopped is.
fn has_run_and_ended(socket: &Path, stub: &Stub) {
    let vm = VmId::new();
    let act = |act: &str| route::vm_act(vm, act);
    let wish = |paused: bool| StartVm { paused, ..start_vm(5) };
    let text = serde_json::to_string(&wish(false)).expect("a wish is JSON");
    let run = |paused: bool| good::<VmStatus>(socket, "PUT", &act("run"), Some(&wish(paused))).power;
    let ends = || stub.set(vm, Power::Off);
    assert_eq!(run(false), Power::Running);
    ends();
    for _ in 0..2 {
        refused(socket, "PUT", &act("run"), Some(&text), 409, "conflict");
    }
    // One that stood still all the time is as it was.
    let stop = StopVm { generation: Generation(5), how: StopHow::Hard };
    good::<VmStatus>(socket, "POST", &act("stop"), Some(&stop));
    assert_ne!(run(true), Power::Running);
    ends();
    assert_ne!(run(true), Power::Running);
    good::<VmStatus>(socket, "POST", &act("resume"), Some(&VmCall { generation: Generation(5) }));
    ends();
    refused(socket, "PUT", &act("run"), Some(&text), 409, "conflict");
}

#[test]
fn the_reset_button_is_pressed_once_for_each_call_however_often_it_arrives() {
    let dir = tempfile::tempdir().unwrap();
    let stub = Arc::new(Stub::default());
    let agent = start(dir.path(), &stub);
    let reset = |agent: &keyframe_agent::testing::TestAgent, vm: VmId, generation: i64| {
        let call = VmCall { generation: Generation(generation) };
        good::<VmStatus>(&agent.socket(), "POST", &route::vm_act(vm, "reset"), Some(&call));
        stub.resets.load(std::sync::atomic::Ordering::SeqCst)
    };
    let (one, other) = (stub.running(), stub.running());
    assert_eq!((reset(&agent, one, 5), reset(&agent, one, 5)), (1, 1));
    assert_eq!(reset(&agent, other, 5), 2);
    agent.crash();
    let agent = start(dir.path(), &stub);
    assert_eq!((reset(&agent, one, 5), reset(&agent, one, 6)), (2, 3));
}

#[test]
fn instants_over_the_socket() {
    let dir = tempfile::tempdir().unwrap();
    let stub = Arc::new(Stub::default());
    let agent = start_with_pair(dir.path(), &stub);
    let (socket, vm, id) = (agent.socket(), stub.running(), SnapshotId::new());
    let path = route::instant(id, &[]);
    let report: InstantReport = good(&socket, "PUT", &path, Some(&wish(vm, true)));
    assert_eq!(good::<InstantReport>(&socket, "PUT", &path, Some(&wish(vm, true))), report);
    let probe: InstantProbe = good(&socket, "GET", &route::instant(id, &pair()), NONE);
    assert_eq!((probe.volumes, probe.report), (pair(), Some(report)));
    let small: keyframe_agent_api::MemoryInfo = good(&socket, "POST", &route::memory(id, "compress"), NONE);
    assert!(small.compressed);
    let probe: InstantProbe = good(&socket, "GET", &route::instant(id, &[]), NONE);
    assert_eq!(probe.report.unwrap().memory, Some(small));
    good::<()>(&socket, "POST", &format!("{path}/cancel"), NONE);
    for _ in 0..2 {
        good::<()>(&socket, "DELETE", &route::instant(id, &pair()), NONE);
    }
    let probe: InstantProbe = good(&socket, "GET", &route::instant(id, &pair()), NONE);
    assert_eq!((probe.volumes, probe.report), (vec![], None));
}

#[test]
fn events_begin_with_what_is() {
    let dir = tempfile::tempdir().unwrap();
    let stub = Arc::new(Stub::default());
    let (first, second) = (stub.running(), VmId::new());
    let agent = start(dir.path(), &stub);
    let mut stream = UnixStream::connect(agent.socket()).unwrap();
    stream.write_all(b"GET /v1/events HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let mut lines = BufReader::new(stream).lines().map(Result::unwrap);
    let mut next = || {
        let line = lines.find(|line| line.starts_with("data:")).unwrap();
        match serde_json::from_str(line.trim_start_matches("data:")).unwrap() {
            VmEvent::Changed(status) => (status.vm, status.power),
            VmEvent::Complaint { vm, fault } => panic!("{vm}: {fault}"),
        }
    };
    assert_eq!(next(), (first, Power::Running));
    stub.set(second, Power::Running);
    assert_eq!(next(), (second, Power::Running));
    stub.set(first, Power::Off);
    assert_eq!(next(), (first, Power::Off));
    let begun = std::time::Instant::now();
    agent.stop().unwrap();
    assert!(begun.elapsed() < std::time::Duration::from_secs(5), "a listener holds up the end");
    assert_eq!(lines.find(|line| line.starts_with("data:")), None);
}

/// Each is read for its own caller: one who goes away, and an agent that stops, take nothing with them that others wait for.
#[test]
fn a_memory_is_verified_for_as_long_as_somebody_waits_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let stub = Arc::new(Stub::default());
    let agent = start_with_pair(dir.path(), &stub);
    let (vm, id) = (stub.running(), SnapshotId::new());
    agent.agent().machines.take_instant(id, &wish(vm, true)).unwrap();
    stub.endless.store(true, Ordering::SeqCst);
    let path = route::memory(id, "verify");
    let ask = || {
        let mut stream = UnixStream::connect(agent.socket()).unwrap();
        write!(stream, "POST {path} HTTP/1.1\r\nHost: agent\r\nContent-Length: 0\r\n\r\n").unwrap();
        stream
    };
    let under_way = |expected: u64| {
        let until = Instant::now() + Duration::from_secs(20);
        while stub.verifies.load(Ordering::SeqCst) != expected {
            assert!(Instant::now() < until, "{} and not {expected}", stub.verifies.load(Ordering::SeqCst));
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    let (one, other) = (ask(), ask());
    under_way(2);
    drop(one);
    under_way(1);
    assert_ne!(agent.agent().instants.progress(id), WorkProgress::default(), "the other is not read on");
    agent.agent().instants.cancel(id);
    std::thread::sleep(Duration::from_millis(50));
    under_way(1);
    std::thread::scope(|scope| {
        scope.spawn(|| agent.agent().begin_stop());
        other.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut answer = String::new();
        let status = BufReader::new(&other).read_line(&mut answer).map(|_| answer).unwrap();
        assert!(status.starts_with("HTTP/1.1 502"), "{status}");
    });
    under_way(0);
    assert_eq!(agent.agent().instants.progress(id), WorkProgress::default());
}
