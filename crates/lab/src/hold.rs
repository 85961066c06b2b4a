//! Jobs that are held before or after a step of theirs, while a test does what it does to somebody. Needs a manager that was
//! built with debug assertions.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::site::{BREAKPOINTS, PATIENCE, Site};

/// A job that was ordered.
pub struct Held<'a> {
    /// Which.
    pub job: String,
    /// It is held; otherwise it has ended without getting there.
    pub reached: bool,
    site: &'a Site,
}

/// Between looks for the file that says so.
const LOOK: Duration = Duration::from_millis(2);

impl Site {
    /// Has the next job that gets there held at `place`: `disk-attach 1 after`, `disk-attach 0 before undo`; or has its step
    /// panic: `disk-attach 1 panics`.
    pub fn arm(&self, place: &str) -> Result<()> {
        let folder = self.data().join(BREAKPOINTS);
        fs::write(folder.join("new"), place)?;
        Ok(fs::rename(folder.join("new"), folder.join("armed"))?)
    }

    /// Fails unless a job got to the place that was armed last; what has reached it is held no more.
    pub fn disarm(&self) -> Result<()> {
        fs::remove_file(self.data().join(BREAKPOINTS).join("reached")).context("no job got there")
    }

    /// Orders a job, and waits until it is held at `place` or has ended.
    pub fn hold(&self, line: &[impl AsRef<str>], place: &str) -> Result<Held<'_>> {
        self.arm(place)?;
        let ordered = self.json(line.iter().map(AsRef::as_ref).chain(["--no-wait"]))?;
        let job = ordered["id"].as_str().with_context(|| format!("no job was ordered: {ordered}"))?.to_owned();
        let mut held = Held { job, reached: false, site: self };
        held.again()?;
        Ok(held)
    }

    /// What `job show` says of it.
    pub fn job(&self, id: &str) -> Result<Value> {
        self.json(["job", "show", id])
    }

    /// Waits for a job's end, whoever is killed meanwhile, and says how it ended.
    pub fn ended(&self, id: &str) -> Result<Value> {
        let mut job = Value::Null;
        self.wait_until(PATIENCE * 2, || {
            job = self.job(id)?;
            ensure!(has_ended(&job), "job {id} does not end: {job}");
            Ok(())
        })?;
        Ok(job)
    }
}

fn has_ended(job: &Value) -> bool {
    matches!(job["state"].as_str(), Some("succeeded" | "failed" | "cancelled"))
}

impl Held<'_> {
    /// Waits until it is held at the place that was armed last, or has ended.
    pub fn again(&mut self) -> Result<()> {
        let folder = self.site.data().join(BREAKPOINTS);
        let until = Instant::now() + PATIENCE;
        let mut looked = Instant::now();
        loop {
            self.reached = folder.join("reached").exists();
            if self.reached {
                return Ok(());
            }
            if looked.elapsed() > Duration::from_millis(200) {
                let job = self.site.job(&self.job)?;
                if has_ended(&job) {
                    // It cannot have been on its way there any more: it ended before this look.
                    self.reached = folder.join("reached").exists();
                    return if self.reached { Ok(()) } else { Ok(fs::remove_file(folder.join("armed"))?) };
                }
                ensure!(Instant::now() < until, "job {} neither gets there nor ends: {job}", self.job);
                looked = Instant::now();
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Lets it go on.
    pub fn release(&mut self) -> Result<()> {
        self.reached = false;
        self.site.disarm()
    }
}
