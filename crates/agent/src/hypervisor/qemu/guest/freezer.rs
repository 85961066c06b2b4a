//! The helper that freezes a guest's file systems and sees to it that they thaw.
//!
//! ```text
//!  freeze ─▶ "frozen N" ─▶ waits ─▶ told: still frozen? thaw ─▶ "thawed"
//!     │                      ├────▶ input ends (the agent is gone): thaw
//!     └─▶ "failed WHY"       └────▶ time is up: thaw ─▶ "lost WHY"
//! ```
//!
//! Once the freeze has been sent, this process does not end before it has seen the guest thawed, the machine gone, or a
//! long time gone by: a guest agent that hangs may carry out a freeze minutes later.

use std::io::{Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::super::qga::{Agent, AgentError};

/// Begins the answer when the guest agent was not asked to freeze, so nothing can come to be frozen later.
pub(super) const UNASKED: &str = "unasked ";
/// How long a guest is looked after whose agent does not answer.
const LINGER: Duration = Duration::from_secs(600);
/// How long a thaw may take before it is tried anew.
const TRY: Duration = Duration::from_secs(10);

/// Freezes within `deadline`, thaws after `hold` at the latest.
pub(in super::super) fn run(socket: &Path, deadline: Duration, hold: Duration) -> Result<(), String> {
    let until = Instant::now() + deadline;
    let mut agent = match Agent::connect(socket, until) {
        Ok(agent) => agent,
        Err(e) => return say(&format!("{UNASKED}{}", refused(&e))),
    };
    match freeze(&mut agent, until) {
        Ok(count) => {
            say(&format!("frozen {count}"))?;
            let told = wait_until_told(Instant::now() + hold);
            let still = matches!(agent.is_frozen(Instant::now() + TRY), Ok(true));
            let thawed = thaw(socket, Some(agent));
            match (told, still) {
                _ if !thawed => say("lost the guest agent does not answer any more"),
                (Told::Thaw, true) => say("thawed"),
                (Told::Thaw, false) => say("lost the guest had thawed before it was told to"),
                (Told::Nothing, _) => say("lost the time to hold it was over"),
                (Told::Gone, _) => Ok(()),
            }
        }
        Err(e) => {
            let said = say(&refused(&e));
            thaw(socket, Some(agent));
            said
        }
    }
}

fn refused(e: &AgentError) -> String {
    let word = if matches!(e, AgentError::Silent) { "deadline" } else { "failed" };
    format!("{word} {e}").replace('\n', " ")
}

fn freeze(agent: &mut Agent, until: Instant) -> Result<u32, AgentError> {
    let command = "guest-fsfreeze-freeze";
    let count = agent.count(command, until)?;
    // An agent that says it froze nothing, or that has not, has not.
    if count == 0 || !agent.is_frozen(until)? {
        return Err(AgentError::Odd { command: command.into(), reply: format!("{count}, but it is not frozen") });
    }
    Ok(count)
}

enum Told {
    Thaw,
    Nothing,
    Gone,
}

fn wait_until_told(until: Instant) -> Told {
    let input = std::io::stdin();
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout =
            Timespec { tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX), tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(&input, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => return Told::Nothing,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return Told::Gone,
            Ok(_) => {
                let mut word = [0; 8];
                return match input.lock().read(&mut word) {
                    Ok(n) if n > 0 => Told::Thaw,
                    _ => Told::Gone,
                };
            }
        }
    }
}

/// Thaws until the guest says that it is; says whether it did.
fn thaw(socket: &Path, mut agent: Option<Agent>) -> bool {
    let end = Instant::now() + LINGER;
    while Instant::now() < end {
        let until = Instant::now() + TRY;
        let connected = match agent.take() {
            Some(agent) => Ok(agent),
            None => Agent::connect(socket, until),
        };
        let thawed = connected.and_then(|mut agent| {
            // After an answer that never came, the next one may be that one.
            agent.sync(until)?;
            if agent.is_frozen(until)? {
                agent.count("guest-fsfreeze-thaw", until)?;
            }
            agent.is_frozen(until)
        });
        match thawed {
            Ok(false) => return true,
            // The machine is gone, and with it what was frozen.
            Err(AgentError::Port(_)) if Agent::connect(socket, Instant::now() + TRY).is_err_and(is_gone) => {
                return false;
            }
            Ok(true) | Err(AgentError::Silent) => {}
            // Does not wait by itself.
            Err(_) => std::thread::sleep(Duration::from_millis(200)),
        }
    }
    false
}

fn is_gone(e: AgentError) -> bool {
    use std::io::ErrorKind::{ConnectionRefused, NotFound};
    matches!(e, AgentError::Port(e) if matches!(e.kind(), ConnectionRefused | NotFound))
}

fn say(line: &str) -> Result<(), String> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{line}").and_then(|()| out.flush()) {
        // Nobody listens when the agent is gone; the thaw is what counts.
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(e.to_string()),
        _ => Ok(()),
    }
}
