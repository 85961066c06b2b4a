//! `keyframe console` on a terminal, as a person uses it.

use std::io::Write;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use keyframe_lab::console::{Console, Mark};
use keyframe_lab::scratch;
use keyframe_lab::site::{PATIENCE, Site, SiteOptions};

/// A session on a terminal of its own, which util-linux's `script` makes.
struct Session {
    script: Child,
    shown: Console,
}

impl Session {
    fn open(site: &Site, vm: &str) -> Result<Session> {
        let command = site.command(["console", vm]);
        let line: Vec<String> = std::iter::once(command.get_program())
            .chain(command.get_args())
            .map(|word| word.to_string_lossy().into_owned())
            .collect();
        let mut script = Command::new("script");
        script.args(["--quiet", "--flush", "--return", "--command", &line.join(" "), "/dev/null"]);
        script.envs(command.get_envs().filter_map(|(k, v)| Some((k, v?))));
        let mut script = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("start script")?;
        let shown = Console::follow(script.stdout.take().context("no output")?);
        let session = Session { script, shown };
        session.sees("connected to", Mark::default())?;
        Ok(session)
    }

    fn sees(&self, text: &str, from: Mark) -> Result<()> {
        self.shown.wait_for(from, PATIENCE, text, |line| line.contains(text).then_some(()))
    }

    fn types(&mut self, text: &str) -> Result<()> {
        let keyboard = self.script.stdin.as_mut().context("no keyboard")?;
        keyboard.write_all(text.as_bytes())?;
        Ok(keyboard.flush()?)
    }
}

#[test]
fn a_guest_answers_what_is_typed_and_the_key_ends_the_session_and_not_the_guest() -> Result<()> {
    let site = Site::up(&scratch::keyframe()?, &SiteOptions::default())?;
    let vm = site.boot("web", "128M", "")?;
    for round in ["one", "two"] {
        let mut session = Session::open(&site, "web")?;
        let from = session.shown.mark();
        // In two parts, so that no echo is taken for the answer.
        session.types(&format!("run echo HE''ARD {round}\n"))?;
        session.sees(&format!("HEARD {round}"), from)?;
        session.types("\x1d")?;
        let status = session.script.wait()?;
        ensure!(status.success(), "the session {round} ends with {status}");
    }
    ensure!(vm.show()?["state"]["power"] == "running", "the guest went with the session");
    vm.run("true")
}
