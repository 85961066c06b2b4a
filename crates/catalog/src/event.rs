//! The log of changes: which thing changed, not what it was. Numbers have no gaps and follow the order of the commits, so a
//! reader who asks for what comes after the last number it has seen misses nothing.

use keyframe_agent_api::{Generation, Timestamp, VmId};
use serde::{Deserialize, Serialize};
use sqlx::AssertSqlSafe;

use crate::sql::{Columns, args, places, unword, word};
use crate::{Result, Transaction};

/// Events written by one statement; each takes eight parameters, and SQLite allows 32,766.
const BATCH: usize = 500;

/// A change.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Event {
    /// Its number.
    pub seq: i64,
    /// Of what.
    pub kind: EventKind,
    /// The thing's identifier; a setting's name.
    pub id: String,
    /// The machine that it is about: itself, a snapshot's, a job's first.
    pub vm: Option<VmId>,
    /// The thing's since then; 0 for things without.
    pub generation: Generation,
    /// What happened.
    pub change: Change,
    /// When.
    pub at: Timestamp,
    /// What nobody asked for, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
}

/// What an event is about.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EventKind {
    /// A virtual machine.
    Vm,
    /// A snapshot.
    Snapshot,
    /// A template.
    Template,
    /// A job.
    Job,
    /// A host.
    Host,
    /// A token.
    Token,
    /// A setting.
    Setting,
}

/// What happened to a thing.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// It was made.
    Made,
    /// It is different.
    Changed,
    /// It is no more.
    Gone,
}

impl Transaction {
    /// Events after the number, oldest first.
    pub async fn events_after(&mut self, seq: i64, limit: u32) -> Result<Vec<Event>> {
        let sql = "SELECT * FROM events WHERE seq > $1 ORDER BY seq LIMIT $2";
        let rows = self.rows("list events", sql, args![seq, limit]).await?;
        rows.into_iter()
            .map(|row| {
                Ok(Event {
                    seq: row.int("seq")?,
                    kind: unword(row.text("kind")?, "an event")?,
                    id: row.text("subject")?,
                    vm: row.parsed_or_null("vm")?,
                    generation: Generation(row.int("generation")?),
                    change: unword(row.text("change")?, "an event")?,
                    at: Timestamp(row.int("at")?),
                    text: row.text_or_null("text")?,
                })
            })
            .collect()
    }

    /// The newest event's number; 0 if there never was one.
    pub async fn last_event(&mut self) -> Result<i64> {
        self.row("find the newest event", "SELECT last_event FROM keeper", args![]).await?.int("last_event")
    }

    /// The oldest kept event's number, or the next one's if none is kept. Whoever has seen less than the one before it has
    /// missed something and must read everything anew.
    pub async fn oldest_event(&mut self) -> Result<i64> {
        let oldest = self.row("find the oldest event", "SELECT MIN(seq) AS seq FROM events", args![]).await?;
        match oldest.int_or_null("seq")? {
            Some(seq) => Ok(seq),
            None => Ok(self.last_event().await? + 1),
        }
    }

    /// Removes all but the newest so many events.
    pub async fn prune_events(&mut self, keep: u32) -> Result<u64> {
        let last = self.last_event().await?;
        self.execute("prune events", "DELETE FROM events WHERE seq <= $1", args![last - i64::from(keep)]).await
    }

    /// Notes a change; it is written at the commit.
    pub(crate) fn note(&mut self, kind: EventKind, id: impl ToString, generation: Generation, change: Change) {
        self.note_of(kind, id, None, generation, change);
    }

    pub(crate) fn note_of(
        &mut self,
        kind: EventKind,
        id: impl ToString,
        vm: Option<VmId>,
        generation: Generation,
        change: Change,
    ) {
        let (id, at) = (id.to_string(), Timestamp::now());
        self.events.push(Event { seq: 0, kind, id, vm, generation, change, at, text: None });
    }

    /// Adds words to the change that was noted last.
    pub fn remark(&mut self, text: &str) {
        if let Some(event) = self.events.last_mut() {
            event.text = Some(text.to_owned());
        }
    }

    /// Writes what was noted, and returns the newest number if there was anything.
    pub(crate) async fn write_events(&mut self) -> Result<Option<i64>> {
        let events = std::mem::take(&mut self.events);
        if events.is_empty() {
            return Ok(None);
        }
        let count = i64::try_from(events.len()).unwrap_or(i64::MAX);
        let sql = "UPDATE keeper SET last_event = last_event + $1 RETURNING last_event";
        let last = self.row("number events", sql, args![count]).await?.int("last_event")?;
        let mut seq = last - count;
        for batch in events.chunks(BATCH) {
            let mut args = Vec::with_capacity(batch.len() * 8);
            let mut values = Vec::with_capacity(batch.len());
            for event in batch {
                seq += 1;
                values.push(places(args.len() + 1, 8));
                let (kind, change) = (word(&event.kind)?, word(&event.change)?);
                let (id, text) = (event.id.as_str(), event.text.clone());
                args.extend(args![seq, kind, id, event.vm, event.generation, change, event.at, text]);
            }
            let head = "INSERT INTO events (seq, kind, subject, vm, generation, change, at, text) VALUES ";
            self.execute("log events", AssertSqlSafe(format!("{head}{}", values.join(", "))), args).await?;
        }
        Ok(Some(last))
    }
}
