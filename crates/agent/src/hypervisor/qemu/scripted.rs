//! For tests: a process with a monitor that says what the test wants.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::{Value, json};

use super::place::Record;
use super::process::Process;
use super::qmp::Qmp;
use super::{Live, Qemu, QemuConfig, Slot};

/// A machine that should run; its guest stands still until it was told to go on a number of times.
pub(super) struct Scripted {
    pub(super) qemu: Qemu,
    pub(super) slot: Arc<Slot>,
    pub(super) live: Arc<Live>,
    /// How often it was told to go on.
    pub(super) conts: Arc<AtomicUsize>,
    /// The connection to its monitor, as QEMU has it.
    pub(super) connection: Arc<Mutex<Option<UnixStream>>>,
}

impl Scripted {
    pub(super) fn new(dir: &Path, cures: usize) -> Scripted {
        let qemu = Qemu::new(QemuConfig::new(dir, Vec::new()));
        let slot = qemu.shared.slot(keyframe_agent_api::VmId::new());
        slot.place.create().expect("a folder");
        let (conts, connection) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(None)));
        let listener = UnixListener::bind(slot.place.qmp()).expect("a socket");
        let (told, open) = (Arc::clone(&conts), Arc::clone(&connection));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                *open.lock() = stream.try_clone().ok();
                answer(&stream, cures, &told);
            }
        });
        let mut sleep = Command::new("sleep");
        sleep.arg("60");
        let process = Process::spawn(sleep, &slot.place.log()).expect("a process");
        let qmp = Qmp::connect(&slot.place.qmp(), Instant::now() + Duration::from_secs(10)).expect("a monitor");
        let machine = json!({ "name": "m", "uuid": uuid::Uuid::nil(), "generation_id": uuid::Uuid::nil(),
            "machine_type": "none", "cpus": 1, "memory": 1, "firmware": "bios", "disks": [], "nics": [] });
        let record = json!({ "machine": machine, "blocks": {}, "wish": "running", "memory": null,
            "accelerator": { "type": "kvm" }, "since": 0 });
        let record: Record = serde_json::from_value(record).expect("a record");
        slot.place.write_record(&record).expect("there is room");
        let live = Arc::new(Live { process, qmp, record: Mutex::new(record) });
        *slot.live.lock() = Some(Arc::clone(&live));
        Scripted { qemu, slot, live, conts, connection }
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.live.process.kill();
    }
}

fn answer(stream: &UnixStream, cures: usize, conts: &AtomicUsize) {
    let say = |value: Value| writeln!(&*stream, "{value}").unwrap_or(());
    say(json!({ "QMP": { "version": { "qemu": { "major": 10, "minor": 0, "micro": 0 } } } }));
    for line in BufReader::new(stream).lines().map_while(Result::ok) {
        let asked: Value = serde_json::from_str(&line).expect("a command");
        let command = asked["execute"].as_str().expect("its name");
        conts.fetch_add(usize::from(command == "cont"), Ordering::SeqCst);
        let state = match command {
            "query-migrate" => "none",
            _ if conts.load(Ordering::SeqCst) >= cures => "running",
            _ => "io-error",
        };
        say(json!({ "return": { "status": state }, "id": asked["id"] }));
    }
}
