//! Commands on machines: what was typed becomes requests to the manager's REST interface, and answers become lines.

pub(crate) mod client;
mod clone;
mod console;
mod device;
mod events;
mod snapshot;
mod system;
mod view;
mod vm;

use std::collections::HashMap;
use std::io::Write;

use anyhow::{Result, bail};
use keyframe_agent::say::say;
use keyframe_api::Problem;
use keyframe_manager::request::JobView;
use keyframe_model::JobState;
use keyframe_model::agent::VmId;
use serde_json::Value;

pub(crate) use clone::{clone, template};
pub(crate) use console::console;
pub(crate) use device::{disk, nic};
pub(crate) use events::events;
pub(crate) use snapshot::snapshot;
pub(crate) use system::{host, job, search, token};
pub(crate) use view::host::accelerator;
pub(crate) use vm::vm;

use crate::cli::{Output, RemoteArgs, WaitArgs};
use crate::plain::plain;
use crate::screen::Screen;
use client::{Answer, Client, Refused, as_job, typed};

/// One command's way to the manager and to the screen.
pub(crate) struct Remote {
    pub(crate) client: Client,
    json: bool,
    quiet: bool,
    screen: Screen,
}

impl Remote {
    fn new(output: &Output, args: &RemoteArgs) -> Result<Remote> {
        Ok(Remote { client: Client::of(args)?, json: output.json, quiet: output.quiet, screen: Screen::new(output) })
    }

    /// Prints an answer: as it came, or as lines for people.
    fn show(&mut self, value: &Value, draw: impl FnOnce(&mut Vec<u8>) -> Result<()>) -> Result<()> {
        let mut text = Vec::new();
        if self.json {
            serde_json::to_writer(&mut text, value)?;
            text.push(b'\n');
        } else {
            draw(&mut text)?;
        }
        self.screen.raw(&String::from_utf8(text)?)
    }

    /// The names of the machines of these snapshots, for people.
    fn machines(&self, snapshots: &Value) -> Result<HashMap<VmId, String>> {
        if self.json || snapshots.as_array().is_none_or(Vec::is_empty) {
            return Ok(HashMap::new());
        }
        let all = self.client.list(&["vms"], &[], None)?;
        let name = |vm: &Value| Some((typed(&vm["id"]).ok()?, vm["name"].as_str()?.to_owned()));
        Ok(all.iter().filter_map(name).collect())
    }

    /// Prints what would happen to `what`; fails if something is in the way.
    fn plan(&mut self, plan: &Value, what: &str) -> Result<()> {
        self.show(plan, |out| Ok(view::plan::draw(&typed(plan)?, what, out)?))?;
        match view::plan::obstacles(&typed(plan)?).first() {
            None => Ok(()),
            Some(_) if !self.json => Err(Told.into()),
            Some(why) => bail!("not now: {why}"),
        }
    }

    /// Prints a line that is no result, unless nobody wants it.
    fn remark(&mut self, line: &str) -> Result<()> {
        if self.quiet || self.json {
            return Ok(());
        }
        self.screen.raw(&format!("{line}\n"))
    }

    /// Follows a job to its end unless told otherwise. `Some` is a job that succeeded.
    fn follow(&mut self, answer: &Answer, wait: WaitArgs) -> Result<Option<(Value, JobView)>> {
        let Some(mut job) = as_job(&answer.value) else {
            bail!("the manager ordered no job; is it of another version?")
        };
        if wait.no_wait {
            let value = answer.value.clone();
            self.show(&value, |out| Ok(writeln!(out, "job {}", job.job.id)?))?;
            return Ok(None);
        }
        let mut value = answer.value.clone();
        while !job.state.ended() {
            self.screen.progress(job.progress.done, job.progress.total, job.step.as_deref());
            value = self.client.watch_job(&job.job.id.to_string())?.value;
            job = typed(&value)?;
        }
        self.screen.end_progress();
        if job.state == JobState::Failed && !self.quiet {
            job.notes.iter().for_each(|note| say(format_args!("note: {}", plain(note))));
        }
        match (job.state, &job.error) {
            (JobState::Succeeded, _) => Ok(Some((value, job))),
            (JobState::Cancelled, _) => bail!("job {} was cancelled; everything is as before", job.job.id),
            (_, Some(error)) => Err(Refused::by(Problem::new(error.kind, &error.message)).into()),
            (_, None) => bail!("job {} failed", job.job.id),
        }
    }

    /// Follows a job; when it has succeeded prints it as JSON, or `said` and what is worth knowing besides.
    fn finish(&mut self, answer: &Answer, wait: WaitArgs, said: &str) -> Result<()> {
        match self.follow(answer, wait)? {
            Some((value, job)) => self.done(&value, &job, said),
            None => Ok(()),
        }
    }

    /// Prints a job that has succeeded as JSON, or `said` and what is worth knowing besides.
    fn done(&mut self, value: &Value, job: &JobView, said: &str) -> Result<()> {
        if self.json {
            return self.show(value, |_| Ok(()));
        }
        self.remark(said)?;
        job.notes.iter().try_for_each(|note| self.remark(&format!("note: {note}")))
    }
}

/// A failure that the user has read about already.
#[derive(Debug)]
pub(crate) struct Told;

impl std::fmt::Display for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("not done")
    }
}

impl std::error::Error for Told {}

/// `KEY=true` for a wish that was made.
fn flag(name: &'static str, on: bool) -> Option<(&'static str, String)> {
    on.then(|| (name, "true".to_owned()))
}
