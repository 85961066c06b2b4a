//! Lines of a guest's serial console, kept from the first one, and waited for.

use std::io::{BufRead, BufReader, Read};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use parking_lot::{Condvar, Mutex};

/// All lines that came out of a console so far. A thread reads until the other side closes.
pub struct Console {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    arrived: Condvar,
}

#[derive(Default)]
struct State {
    lines: Vec<(Instant, String)>,
    closed: bool,
}

/// A place in the stream of lines; waiting goes on from there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark(usize);

impl Console {
    /// Follows `source` in a thread of its own.
    pub fn follow(source: impl Read + Send + 'static) -> Console {
        let shared = Arc::new(Shared::default());
        let writer = Arc::clone(&shared);
        std::thread::spawn(move || {
            let mut source = BufReader::new(source);
            let mut raw = Vec::new();
            // A read error means what an end means: nothing more will come.
            while source.read_until(b'\n', &mut raw).is_ok_and(|n| n > 0) {
                let line = String::from_utf8_lossy(&raw).trim().to_owned();
                raw.clear();
                writer.state.lock().lines.push((Instant::now(), line));
                writer.arrived.notify_all();
            }
            writer.state.lock().closed = true;
            writer.arrived.notify_all();
        });
        Console { shared }
    }

    /// The place behind the last line so far.
    pub fn mark(&self) -> Mark {
        Mark(self.shared.state.lock().lines.len())
    }

    /// Waits for a line behind `from` of which `pick` makes something.
    pub fn wait_for<T>(
        &self,
        from: Mark,
        patience: Duration,
        what: &str,
        mut pick: impl FnMut(&str) -> Option<T>,
    ) -> Result<T> {
        self.find(from, patience, what, |_, line| pick(line))
    }

    /// The same, with the moment at which each line was complete.
    pub fn find<T>(
        &self,
        from: Mark,
        patience: Duration,
        what: &str,
        mut pick: impl FnMut(Instant, &str) -> Option<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + patience;
        let mut seen = from.0;
        let mut state = self.shared.state.lock();
        loop {
            while let Some((at, line)) = state.lines.get(seen) {
                seen += 1;
                if let Some(found) = pick(*at, line) {
                    return Ok(found);
                }
            }
            if state.closed {
                bail!("the console closed before {what}; last lines: {}", tail(&state.lines));
            }
            if self.shared.arrived.wait_until(&mut state, deadline).timed_out() {
                bail!("no {what} within {patience:?}; last lines: {}", tail(&state.lines));
            }
        }
    }

    /// Everything that it said so far.
    pub fn lines(&self) -> Vec<String> {
        self.shared.state.lock().lines.iter().map(|(_, line)| line.clone()).collect()
    }

    /// The last lines, for messages.
    pub fn tail(&self) -> String {
        tail(&self.shared.state.lock().lines)
    }
}

fn tail(lines: &[(Instant, String)]) -> String {
    let last: Vec<&str> = lines.iter().rev().take(6).rev().map(|(_, line)| line.as_str()).collect();
    last.join(" | ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_lines_behind_the_mark_only() {
        let console = Console::follow(&b"one\r\ntwo\nthree"[..]);
        let patience = Duration::from_secs(5);
        let found = console.wait_for(Mark(1), patience, "a t", |l| l.starts_with('t').then(|| l.to_owned()));
        assert_eq!(found.expect("there is one"), "two");
        let missing = console.wait_for(Mark(3), patience, "a fourth line", |_| Some(()));
        assert!(missing.expect_err("there is none").to_string().contains("one | two | three"));
    }
}
