//! A machine under test as its user sees it: by the command line, and by what its guest says on the console.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::console::{Console, Mark};
use crate::qga::Agent;
use crate::site::{PATIENCE, Site, read_pid, runs};
use crate::vm::{BOOT, COMPLAINTS};

/// A machine of a site.
pub struct Machine<'a> {
    /// Its name.
    pub name: String,
    /// Its identifier.
    pub id: String,
    site: &'a Site,
    console: Console,
    end: Arc<AtomicBool>,
}

/// What a guest has said that can be counted on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// The last stamp of which it told.
    pub stamp: u64,
    /// Ticks of the counter beside the memory verifier.
    pub tick: u64,
    /// Passes of the memory verifier.
    pub pass: u64,
}

/// How a machine went back to an instant of its past.
#[derive(Clone, Copy, Debug)]
pub struct GoneBack {
    /// How long the caller waited.
    pub took: Duration,
    /// From the wish to the guest's first word.
    pub to_output: Duration,
    /// The first tick of its counter.
    pub tick: u64,
}

impl<'a> Machine<'a> {
    pub(crate) fn find(site: &'a Site, name: &str) -> Result<Machine<'a>> {
        let shown = site.json(["vm", "show", name])?;
        let id = shown["id"].as_str().with_context(|| format!("no id in {shown}"))?.to_owned();
        let end = Arc::new(AtomicBool::new(false));
        let log = site.data().join("vms").join(&id).join("console.log");
        let console = Console::follow(Tail { path: log, file: None, end: Arc::clone(&end) });
        Ok(Machine { name: name.to_owned(), id, site, console, end })
    }

    /// Runs `keyframe NOUN VERB NAME MORE…` on this machine.
    pub fn act(&self, noun: &str, verb: &str, more: &[&str]) -> Result<Value> {
        self.site.json([noun, verb, &self.name].iter().chain(more))
    }

    /// Starts it and waits until its guest is up; how long that took.
    pub fn start(&self) -> Result<Duration> {
        let from = self.console.mark();
        let began = Instant::now();
        self.act("vm", "start", &[])?;
        self.ready(from)?;
        Ok(began.elapsed())
    }

    /// Waits until its guest has booted.
    pub fn ready(&self, from: Mark) -> Result<()> {
        // UEFI clears the screen before it, on the same line.
        self.expect(from, BOOT, "GUEST-READY", |line| line.contains("GUEST-READY").then_some(()))
    }

    /// What `vm show` says.
    pub fn show(&self) -> Result<Value> {
        self.site.json(["vm", "show", &self.name])
    }

    /// Takes the snapshot `name`, with `more` options; what `snapshot show` says of it.
    pub fn snapshot(&self, name: &str, more: &[&str]) -> Result<Value> {
        let target = self.at(name);
        self.site.json(["snapshot", "create", &target].iter().chain(more))?;
        self.site.json(["snapshot", "show", &target])
    }

    /// `MACHINE@NAME`
    pub fn at(&self, name: &str) -> String {
        format!("{}@{name}", self.name)
    }

    /// Applies the snapshot `name`; how long the caller waited.
    pub fn apply(&self, name: &str, more: &[&str]) -> Result<Duration> {
        let target = self.at(name);
        let began = Instant::now();
        self.site.json(["snapshot", "apply", &target].iter().chain(more))?;
        Ok(began.elapsed())
    }

    /// Applies a snapshot with memory to this machine, which runs, and whose counter is ahead of the snapshot's.
    pub fn go_back(&self, name: &str, more: &[&str]) -> Result<GoneBack> {
        let mut newest = self.tick()?;
        let from = self.console.mark();
        let began = Instant::now();
        let took = self.apply(name, more)?;
        let (at, tick) = self.console.find(from, PATIENCE, "a counter that went back", |at, line| {
            let tick = number_after("TICK ", line)?;
            newest = newest.max(tick);
            (tick < newest).then_some((at, tick))
        })?;
        Ok(GoneBack { took, to_output: at.saturating_duration_since(began), tick })
    }

    /// The console.
    pub fn console(&self) -> &Console {
        &self.console
    }

    /// Fails with the guest's first complaint, if it ever had one.
    pub fn sound(&self) -> Result<()> {
        match self.console.lines().into_iter().find_map(|line| complaint(&line)) {
            None => Ok(()),
            Some(complaint) => Err(complaint.context(format!("the guest {} is not well", self.name))),
        }
    }

    /// Waits on the console; a complaint of the guest ends the wait at once.
    pub fn expect<T>(
        &self,
        from: Mark,
        patience: Duration,
        what: &str,
        mut pick: impl FnMut(&str) -> Option<T>,
    ) -> Result<T> {
        self.console
            .wait_for(from, patience, what, |line| complaint(line).map(Err).or_else(|| pick(line).map(Ok)))
            .flatten()
            .with_context(|| format!("follow the guest {}", self.name))
    }

    /// The first of each of the guest's counters behind `from`, and a full pass of the memory verifier without a bad page.
    pub fn counters(&self, from: Mark) -> Result<Counters> {
        self.sound()?;
        let (mut stamp, mut tick) = (None, None);
        // The pass under way at the mark may have told of its beginning only.
        let pass = self.expect(from, PATIENCE, "two passes over memory, a stamp and a tick", |line| {
            stamp = stamp.or_else(|| number_after("STAMP ", line));
            tick = tick.or_else(|| number_after("TICK ", line));
            let (pass, bad) = line.strip_prefix("PAGES ")?.split_once(' ')?;
            match bad {
                "0" => stamp.and(tick).and(pass.parse().ok()).map(Ok),
                bad => Some(Err(anyhow!("{bad} bad pages of memory in pass {pass}"))),
            }
        })??;
        self.sound()?;
        Ok(Counters { stamp: stamp.unwrap_or(0), tick: tick.unwrap_or(0), pass })
    }

    /// The counter beside the memory verifier, as it is now.
    pub fn tick(&self) -> Result<u64> {
        self.expect(self.console.mark(), PATIENCE, "TICK", |line| number_after("TICK ", line))
    }

    /// Waits until the counter is there.
    pub fn wait_for_tick(&self, least: u64) -> Result<u64> {
        self.expect(self.console.mark(), PATIENCE, "TICK", |line| {
            number_after("TICK ", line).filter(|tick| *tick >= least)
        })
    }

    /// The first tick that it ever told of.
    pub fn first_tick(&self) -> Result<u64> {
        self.expect(Mark::default(), PATIENCE, "TICK", |line| number_after("TICK ", line))
    }

    /// Waits for the next stamp, which shows that the guest runs and that its disks are as its memory says.
    pub fn next_stamp(&self) -> Result<u64> {
        self.expect(self.console.mark(), PATIENCE, "STAMP", |line| number_after("STAMP ", line))
    }

    /// Has the guest run a shell command line; returns when it has ended.
    pub fn run(&self, line: &str) -> Result<()> {
        let from = self.console.mark();
        let mut command = self.site.command(["console", &self.name]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        let mut input = child.stdin.take().context("a console has no input")?;
        // In two parts, so that no echo of it is taken for the answer.
        writeln!(input, "run {line}; echo DO''NE").with_context(|| format!("tell {} '{line}'", self.name))?;
        // The session stays open until then: what a guest has not read when it ends may be lost, as on any serial line.
        let done = self.expect(from, PATIENCE, "DONE", |line| (line == "DONE").then_some(()));
        if let Err(e) = input.write_all(b"\x1d") {
            ensure!(e.kind() == ErrorKind::BrokenPipe, "end the console's session: {e}");
        }
        drop(input);
        let output = child.wait_with_output()?;
        ensure!(output.status.success(), "`keyframe console`: {}", String::from_utf8_lossy(&output.stderr).trim());
        done.with_context(|| format!("after '{line}'"))
    }

    /// What a command in the guest prints, without the end of its line; asked of the guest agent.
    pub fn in_guest(&self, line: &str) -> Result<String> {
        let ended = self.agent()?.shell(line, PATIENCE)?;
        ensure!(ended.code == Some(0), "'{line}' in the guest {}: {ended:?}", self.name);
        Ok(ended.output.trim_end().to_owned())
    }

    /// Its guest agent, past everybody else who talks to it.
    pub fn agent(&self) -> Result<Agent> {
        Agent::connect(&self.folder().join("qga.sock"), PATIENCE)
    }

    /// Where the files of its process are. One that was started while another was set aside has a folder beside the first.
    pub fn folder(&self) -> PathBuf {
        let machines = self.site.data().join("vms");
        let runs = |folder: &PathBuf| {
            let record = fs::read(folder.join("machine.json")).unwrap_or_default();
            let record: Value = serde_json::from_slice(&record).unwrap_or_default();
            record["aside"].is_null() && read_pid(&folder.join("pid")).is_ok_and(runs)
        };
        let own = |name: &std::ffi::OsStr| name.to_string_lossy().starts_with(&self.id);
        let all = fs::read_dir(&machines).into_iter().flatten().filter_map(Result::ok);
        let mut folders = all.filter(|entry| own(&entry.file_name())).map(|entry| entry.path());
        folders.find(runs).unwrap_or_else(|| machines.join(&self.id))
    }

    /// The process that runs it.
    pub fn pid(&self) -> Result<Pid> {
        read_pid(&self.folder().join("pid"))
    }

    /// Ends its process: to the guest, a power failure.
    pub fn kill(&self) -> Result<()> {
        Ok(kill_process(self.pid()?, Signal::KILL)?)
    }
}

impl Drop for Machine<'_> {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
    }
}

fn complaint(line: &str) -> Option<anyhow::Error> {
    COMPLAINTS.iter().any(|c| line.contains(c)).then(|| anyhow!("it says: {line}"))
}

/// The number in a line like `STAMP 12`.
pub fn number_after(word: &str, line: &str) -> Option<u64> {
    line.strip_prefix(word)?.parse().ok()
}

/// A file that grows, and may not be there yet.
struct Tail {
    path: PathBuf,
    file: Option<File>,
    end: Arc<AtomicBool>,
}

impl Read for Tail {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while !self.end.load(Ordering::Relaxed) {
            if self.file.is_none() {
                self.file = File::open(&self.path).ok();
            }
            if let Some(file) = &mut self.file {
                match file.read(buffer)? {
                    0 => {}
                    n => return Ok(n),
                }
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(0)
    }
}
