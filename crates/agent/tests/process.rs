//! An agent as a process of its own: killed at any moment and started again, it has what it answered, and no more.
//!
//! The process is this test program, told to be an agent.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::call::{call, good};
use common::export::Export;
use common::volume;
use keyframe_agent::config::{Config, FILE};
use keyframe_agent::paths::Paths;
use keyframe_agent::run::{RunOptions, run, start_log};
use keyframe_agent_api::{
    Bytes, CreateVolume, Generation, InstantProbe, InstantReport, Micros, Quiesce, SnapshotId, TakeInstant, VmId,
    VolumeSource, route,
};
use rustix::process::{Pid, Signal, kill_process};

const DATA: &str = "KEYFRAME_TEST_AGENT";
const PATIENCE: Duration = Duration::from_secs(30);

/// Not a test: what the processes that the others start are.
#[test]
fn be_an_agent() {
    let Some(data) = std::env::var_os(DATA).map(PathBuf::from) else { return };
    let config = Config::load(&data, |name| std::env::var(name).ok()).unwrap();
    start_log(&config.log).unwrap();
    let options = RunOptions { data, config, helper: vec!["/nonexistent".into()] };
    run(&options, |_| Ok(())).unwrap_or_else(|fault| panic!("{fault}"));
}

/// A process that ends with the test.
struct Process(Child);

impl Process {
    fn spawn(data: &Path) -> Process {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "be_an_agent", "--nocapture"]).env(DATA, data).env("KEYFRAME_LOG", "warn");
        Process(command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap())
    }

    /// Waits until it answers.
    fn serving(data: &Path) -> Process {
        let mut process = Process::spawn(data);
        let until = Instant::now() + PATIENCE;
        while UnixStream::connect(Paths::of(data).agent_socket()).is_err() {
            assert_eq!(process.0.try_wait().unwrap(), None, "the agent ended");
            assert!(Instant::now() < until, "the agent does not serve");
            std::thread::sleep(Duration::from_millis(2));
        }
        process
    }

    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().and_then(|()| self.0.wait().map(drop)).unwrap_or(());
    }
}

fn data_dir() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let text = "[agent]\npool_size = \"256M\"\ncache = \"16M\"\n\
                [[array]]\nname = \"local\"\ndriver = \"engine\"\npool = \"pool.kf\"\n\
                [[array]]\nname = \"fake\"\ndriver = \"fake\"\ndir = \"fake\"\n";
    std::fs::write(dir.path().join(FILE), text).unwrap();
    dir
}

fn take(vm: VmId, generation: i64) -> TakeInstant {
    TakeInstant {
        vm,
        generation: Generation(generation),
        volumes: vec![volume("local", "v"), volume("fake", "v")],
        memory: false,
        quiesce: Quiesce::No,
        deadline: Micros(5_000_000),
    }
}

#[test]
fn a_killed_agent_has_what_it_answered() {
    let dir = data_dir();
    let paths = Paths::of(dir.path());
    let (socket, nbd, vm) = (paths.agent_socket(), paths.nbd_socket(), VmId::new());
    let mut answered: Vec<(SnapshotId, u64, InstantReport)> = Vec::new();
    let mut number = 0;
    for round in 0..6 {
        let agent = Process::serving(dir.path());
        for array in ["local", "fake"] {
            let wish = CreateVolume { source: VolumeSource::Empty, size: Some(Bytes(1 << 20)) };
            let _: serde_json::Value = good(&socket, "PUT", &route::volume(&volume(array, "v")), Some(&wish));
        }
        for (id, held, report) in &answered {
            let probe: InstantProbe = good(&socket, "GET", &route::instant(*id, &take(vm, 0).volumes), None::<&()>);
            assert_eq!(probe.volumes.len(), 2, "{id}");
            assert_eq!(probe.report.as_ref(), Some(report));
            for array in ["local", "fake"] {
                let content = Export::connect(&nbd, &format!("{array}/v@{id}")).unwrap().read(0).unwrap();
                assert_eq!(content[..8], held.to_be_bytes(), "{array}/v@{id}");
            }
        }
        let mut disks = ["local/v", "fake/v"].map(|name| Export::connect(&nbd, name).unwrap());
        for _ in 0..5 {
            number += 1;
            for disk in &mut disks {
                disk.number(number).unwrap();
                disk.flush().unwrap();
            }
            let id = SnapshotId::new();
            let report = good(&socket, "PUT", &route::instant(id, &[]), Some(&take(vm, 1)));
            answered.push((id, number, report));
        }
        // In the middle of another one, at a moment of its own in each round.
        let doomed = SnapshotId::new();
        let body = serde_json::to_string(&take(vm, 1)).unwrap();
        let mut stream = UnixStream::connect(&socket).unwrap();
        let head = format!("PUT {} HTTP/1.1\r\nHost: a\r\n", route::instant(doomed, &[]));
        let kind = format!("Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        std::io::Write::write_all(&mut stream, format!("{head}{kind}").as_bytes()).unwrap();
        std::thread::sleep(Duration::from_micros(700 * round));
        agent.kill();
        let agent = Process::serving(dir.path());
        let (status, answer) = call(&socket, "PUT", &route::instant(doomed, &[]), Some(&body));
        assert_eq!(status, 200, "{answer}");
        agent.kill();
    }
}

#[test]
fn images_come_from_their_folders_and_what_an_agent_makes_is_its_owners_only() {
    let dir = data_dir();
    let (images, secret) = (dir.path().join("images"), dir.path().join("secret"));
    std::fs::create_dir(&images).unwrap();
    std::fs::write(&secret, [7; 4096]).unwrap();
    std::fs::write(images.join("disk"), [1; 4096]).unwrap();
    let file = dir.path().join(FILE);
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("[agent]", &format!("[agent]\nimages = [{images:?}]"))).unwrap();
    let agent = Process::serving(dir.path());
    let socket = Paths::of(dir.path()).agent_socket();
    let of = |path: &Path| {
        let source = VolumeSource::Image { path: path.display().to_string(), format: None };
        serde_json::to_string(&CreateVolume { source, size: None }).unwrap()
    };
    let make = |path: &Path| call(&socket, "PUT", &route::volume(&volume("local", "v")), Some(&of(path)));
    let (status, answer) = make(&secret);
    let message = answer["message"].as_str().unwrap();
    assert_eq!((status, answer["kind"].as_str()), (400, Some("invalid")), "{answer}");
    let told = [secret.to_str().unwrap(), images.to_str().unwrap(), "`images`"].map(|part| message.contains(part));
    assert_eq!(told, [true; 3], "{message}");
    assert_eq!(make(&images.join("disk")).0, 200);
    let vm = VmId::new();
    let _: serde_json::Value = good(
        &socket,
        "PUT",
        &route::instant(SnapshotId::new(), &[]),
        Some(&TakeInstant { volumes: vec![volume("local", "v")], ..take(vm, 1) }),
    );
    agent.kill();

    let given = [images, secret, file];
    let mut folders = vec![dir.path().to_owned()];
    let mut seen = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap).filter(|e| !given.contains(&e.path())) {
            let found = entry.metadata().unwrap();
            assert_eq!(found.mode() & 0o077, 0, "others may use {}: {:o}", entry.path().display(), found.mode());
            folders.extend(found.is_dir().then(|| entry.path()));
            seen += 1;
        }
    }
    assert!(seen > 8, "only {seen} things are there");
}

#[test]
fn one_agent_for_each_directory_and_it_ends_in_order() {
    let dir = data_dir();
    let mut first = Process::serving(dir.path());
    let second = Process::spawn(dir.path());
    let output = { second }.finish();
    assert_ne!(output.0, Some(0));
    assert!(output.1.contains("another agent uses this data directory"), "{}", output.1);
    let pid: i32 = std::fs::read_to_string(Paths::of(dir.path()).pid_file()).unwrap().trim().parse().unwrap();
    assert_eq!(pid as u32, first.0.id());
    kill_process(Pid::from_raw(pid).unwrap(), Signal::TERM).unwrap();
    assert_eq!(first.0.wait().unwrap().code(), Some(0));
    assert!(!Paths::of(dir.path()).agent_socket().exists());
    Process::serving(dir.path()).kill();
}

impl Process {
    /// Its exit code and what it complained of.
    fn finish(mut self) -> (Option<i32>, String) {
        let mut text = String::new();
        std::io::Read::read_to_string(&mut self.0.stderr.take().unwrap(), &mut text).unwrap();
        (self.0.wait().unwrap().code(), text)
    }
}
