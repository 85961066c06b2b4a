//! What can be seen of a guest from outside, whoever runs it: its counter on the console, twenty ticks a second.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use keyframe_lab::console::{Console, Mark};
use keyframe_lab::machine::number_after;
use keyframe_lab::process::{Ending, Process};

use crate::tool::tool;

/// Longest wait for a line.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
const TICK: &str = "TICK ";

/// The console of a guest that writes it to a file.
pub(crate) struct Followed {
    pub(crate) console: Console,
    _tail: Process,
}

/// Follows a file from its beginning, be it there yet or not.
pub(crate) fn follow(file: &Path, log: &Path) -> Result<Followed> {
    let mut command = tool("tail");
    command.args(["-n", "+1", "-s", "0.002", "-F"]).arg(file).stdout(Stdio::piped());
    let mut tail = Process::spawn("tail", &mut command, Ending::Kill, log)?;
    let output = tail.take_output().context("tail has no output")?;
    Ok(Followed { console: Console::follow(output), _tail: tail })
}

/// The counter now.
pub(crate) fn tick(console: &Console) -> Result<u64> {
    console.wait_for(console.mark(), PATIENCE, "a tick", |line| number_after(TICK, line))
}

/// When the first tick came that satisfies `wanted`.
pub(crate) fn first_tick(console: &Console, from: Mark, mut wanted: impl FnMut(u64) -> bool) -> Result<Instant> {
    console.find(from, PATIENCE, "a tick", |at, line| number_after(TICK, line).filter(|n| wanted(*n)).map(|_| at))
}

/// A mark with a tick behind it, so that a silence that begins at once is heard from its beginning.
pub(crate) fn listen(console: &Console) -> Result<Mark> {
    let from = console.mark();
    tick(console)?;
    Ok(from)
}

/// The longest time from one tick to the next, from the mark of [`listen`] until the first tick after now.
pub(crate) fn silence(console: &Console, from: Mark) -> Result<Duration> {
    let now = Instant::now();
    let (mut last, mut longest) = (None, Duration::ZERO);
    console.find(from, PATIENCE, "a tick", |at, line| {
        number_after(TICK, line)?;
        if let Some(last) = last.replace(at) {
            longest = longest.max(at - last);
        }
        (at > now).then_some(longest)
    })
}

/// Has a guest with a port for orders do something; see `guest/init` for what it understands. What is not read yet is lost when
/// the connection is dropped.
pub(crate) fn order(port: &Path, line: &str) -> Result<UnixStream> {
    let mut port = UnixStream::connect(port).with_context(|| format!("connect to {}", port.display()))?;
    writeln!(port, "{line}")?;
    Ok(port)
}

/// The guest's kernel command line: numbered durable writes to both disks, and 32 MiB of memory rewritten and checked for ever.
pub(crate) const BUSY: &str = "lab=stamp lab=pages,32";

/// A shell line for the guest that puts a quarter of its RAM in use, for good: written once, and left alone.
pub(crate) fn fill(mib: u64) -> String {
    let wait = "until grep -q PAGES /tmp/fill; do sleep 1; done";
    format!("pages {} >/tmp/fill & {wait}; kill -STOP $!", mib / 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silence_that_begins_at_once_is_heard() {
        let (read, mut write) = std::io::pipe().expect("a pipe");
        let console = &Console::follow(read);
        let longest = std::thread::scope(|scope| {
            let ready = scope.spawn(|| listen(console));
            while !ready.is_finished() {
                writeln!(write, "TICK 1").expect("say");
                std::thread::sleep(Duration::from_millis(5));
            }
            let from = ready.join().expect("no panic").expect("a tick came");
            std::thread::sleep(Duration::from_millis(80));
            let longest = scope.spawn(move || silence(console, from));
            std::thread::sleep(Duration::from_millis(20));
            writeln!(write, "TICK 2").expect("say");
            longest.join().expect("no panic").expect("a tick came")
        });
        assert!(longest >= Duration::from_millis(50), "{longest:?}");
    }

    #[test]
    fn silence_is_the_longest_gap_and_ends_with_the_next_tick() {
        let (read, mut write) = std::io::pipe().expect("a pipe");
        let console = Console::follow(read);
        let mut say = |text: &str, wait| {
            writeln!(write, "{text}").expect("say");
            // The gap begins when the line is heard.
            console.wait_for(Mark::default(), PATIENCE, text, |line| (line == text).then_some(())).expect("heard");
            std::thread::sleep(Duration::from_millis(wait));
        };
        say("TICK 1", 60);
        say("STAMP 3", 60);
        say("TICK 2", 10);
        let teller = std::thread::scope(|scope| {
            let longest = scope.spawn(|| silence(&console, Mark::default()));
            std::thread::sleep(Duration::from_millis(20));
            say("TICK 3", 0);
            longest.join().expect("no panic")
        });
        let longest = teller.expect("ticks came");
        assert!(longest >= Duration::from_millis(120), "{longest:?}");
    }
}
