//! `keyframe console` on a terminal, as a person uses it.

use std::io::Write;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use keyframe_lab::console::{Console, Mark};
use keyframe_lab::scratch;
use keyframe_lab::site::{PATIENCE, Role, Site, SiteOptions};

/// A session on a terminal of its own, which util-linux's `script` makes.
struct Session {
    script: Child,
    shown: Console,
}

impl Session {
    fn open(site: &Site, vm: &str, more: &[&str]) -> Result<Session> {
        let command = site.command(["console", vm].iter().chain(more));
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

    /// Has the guest say it.
    fn answers(&mut self, words: &str) -> Result<()> {
        let from = self.shown.mark();
        // In two parts, so that no echo is taken for the answer.
        self.types(&format!("run echo HE''ARD {words}\n"))?;
        self.sees(&format!("HEARD {words}"), from)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // It may have ended already.
        self.types("\x1d").unwrap_or(());
        self.script.wait().map(drop).unwrap_or(());
    }
}

#[test]
fn a_guest_answers_what_is_typed_and_the_key_ends_the_session_and_not_the_guest() -> Result<()> {
    let site = Site::up(&scratch::keyframe()?, &SiteOptions::default())?;
    let vm = site.boot("web", "128M", "")?;
    for round in ["one", "two"] {
        let mut session = Session::open(&site, "web", &[])?;
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

#[test]
fn one_session_has_the_console_and_another_is_refused_or_takes_over() -> Result<()> {
    let site = Site::up(&scratch::keyframe()?, &SiteOptions::default())?;
    site.boot("web", "128M", "")?;
    let mut old = Session::open(&site, "web", &[])?;
    let refused = is_free(&site).err().context("a second session was let in")?.to_string();
    println!("{refused}");
    ensure!(refused.contains("console of web is in use") && refused.contains("--force"), "{refused}");
    old.answers("still here")?;

    let from = old.shown.mark();
    let mut new = Session::open(&site, "web", &["--force"])?;
    old.sees("another session has taken over the console of web", from)?;
    ensure!(!old.script.wait()?.success(), "the session that lost its console ended well");
    new.answers("mine now")?;

    // Nobody says goodbye: neither a client that is killed, nor an agent.
    drop(new);
    let mut dying = site.command(["console", "web"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let shown = Console::follow(dying.stdout.take().context("no output")?);
    dying.stdin.as_mut().context("no keyboard")?.write_all(b"run echo HE''ARD me\n")?;
    shown.wait_for(Mark::default(), PATIENCE, "HEARD me", |line| line.contains("HEARD me").then_some(()))?;
    ensure!(is_free(&site).is_err(), "a session that is on no terminal is not alone");
    dying.kill()?;
    dying.wait()?;
    site.wait_until(PATIENCE, || is_free(&site))?;
    let mut last = Session::open(&site, "web", &[])?;
    last.answers("after a dead client")?;
    site.kill(Role::Agent)?;
    last.script.wait()?;
    site.wait_until_up()?;
    Session::open(&site, "web", &[])?.answers("after a dead agent")
}

/// Opens and closes a session that is on no terminal.
fn is_free(site: &Site) -> Result<()> {
    let mut command = site.command(["console", "web"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    child.stdin.take().context("no keyboard")?.write_all(b"\x1d")?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
