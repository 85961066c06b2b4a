//! QEMU's monitor protocol: JSON objects, one a line; replies are matched by id, events are kept.
//!
//! Source: QEMU documentation, "QEMU Machine Protocol Specification".

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use parking_lot::{Condvar, Mutex};
use serde_json::{Value, json};

/// A monitor connection. A thread reads replies and events until QEMU closes it.
pub struct Qmp {
    stream: UnixStream,
    shared: Arc<Shared>,
    next_id: u64,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    arrived: Condvar,
}

#[derive(Default)]
struct State {
    replies: HashMap<u64, Value>,
    events: Vec<Value>,
    closed: bool,
}

/// A reply takes milliseconds; only a monitor that is stuck takes this long.
const REPLY: Duration = Duration::from_secs(30);

impl Qmp {
    /// Connects, waits for the greeting and leaves negotiation mode.
    pub fn connect(socket: &Path, patience: Duration) -> Result<Qmp> {
        let stream = connect_when_there(socket, patience)?;
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut greeting = String::new();
        reader.read_line(&mut greeting).context("read the monitor's greeting")?;
        if !greeting.contains("\"QMP\"") {
            bail!("not a QEMU monitor, it says: {greeting}");
        }
        let shared = Arc::new(Shared::default());
        let sink = Arc::clone(&shared);
        std::thread::spawn(move || sink.fill_from(reader));
        let mut qmp = Qmp { stream, shared, next_id: 1 };
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Runs one command and returns what it returns.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let id = self.next_id;
        self.next_id += 1;
        let request = json!({ "execute": command, "arguments": arguments, "id": id });
        writeln!(self.stream, "{request}").with_context(|| format!("send {command} to the monitor"))?;
        let mut reply = self
            .shared
            .wait_until(REPLY, |state| state.replies.remove(&id))
            .with_context(|| format!("wait for the reply to {command}"))?;
        if let Some(error) = reply.get("error") {
            bail!("{command} refused: {}", error["desc"].as_str().unwrap_or("no reason given"));
        }
        Ok(reply["return"].take())
    }

    /// How many events have come so far; waiting can go on from there.
    pub fn mark(&self) -> usize {
        self.shared.state.lock().events.len()
    }

    /// Waits for an event of this name that came after the first `from` ones.
    pub fn wait_event(&self, name: &str, from: usize, patience: Duration) -> Result<Value> {
        self.wait_event_like(name, from, patience, |_| true)
    }

    /// Waits for an event of this name, with data to the caller's liking, that came after the first `from` ones.
    pub fn wait_event_like(
        &self,
        name: &str,
        from: usize,
        patience: Duration,
        like: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let fits = |event: &&Value| event["event"] == name && like(&event["data"]);
        self.shared
            .wait_until(patience, |state| state.events.iter().skip(from).find(fits).cloned())
            .with_context(|| format!("wait for the event {name}"))
    }
}

impl Shared {
    fn fill_from(&self, reader: BufReader<UnixStream>) {
        for line in reader.lines() {
            // A read error or a line that is no JSON ends the connection for us as an orderly end does.
            let Some(message) = line.ok().and_then(|l| serde_json::from_str::<Value>(&l).ok()) else {
                break;
            };
            let mut state = self.state.lock();
            match message["id"].as_u64() {
                Some(id) => drop(state.replies.insert(id, message)),
                None => state.events.push(message),
            }
            drop(state);
            self.arrived.notify_all();
        }
        self.state.lock().closed = true;
        self.arrived.notify_all();
    }

    fn wait_until<T>(&self, patience: Duration, mut pick: impl FnMut(&mut State) -> Option<T>) -> Result<T> {
        let deadline = Instant::now() + patience;
        let mut state = self.state.lock();
        loop {
            if let Some(found) = pick(&mut state) {
                return Ok(found);
            }
            if state.closed {
                return Err(anyhow!("the monitor closed"));
            }
            if self.arrived.wait_until(&mut state, deadline).timed_out() {
                return Err(anyhow!("nothing within {patience:?}"));
            }
        }
    }
}

/// Connects to a socket that another process is about to create.
pub(crate) fn connect_when_there(socket: &Path, patience: Duration) -> Result<UnixStream> {
    let deadline = Instant::now() + patience;
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => return Ok(stream),
            Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
            Err(e) => return Err(e).with_context(|| format!("connect to {}", socket.display())),
        }
    }
}
