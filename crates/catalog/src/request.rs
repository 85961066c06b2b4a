//! Wishes that callers have given a key, so that a repeated one is answered and not carried out again.

use keyframe_agent_api::{JobId, Timestamp};

use crate::sql::{Columns, args};
use crate::{Result, Transaction};

/// A wish that was accepted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    /// The caller's word for it.
    pub key: String,
    /// Tells a repeated wish from a different one with the same key.
    pub fingerprint: String,
    /// What carries it out.
    pub job: JobId,
    /// When it was accepted.
    pub at: Timestamp,
}

impl Transaction {
    /// Remembers a wish; its key must be new.
    pub async fn remember_request(&mut self, request: &Request) -> Result<()> {
        let sql = "INSERT INTO requests (request_key, fingerprint, job, at) VALUES ($1, $2, $3, $4)";
        let args = args![request.key.as_str(), request.fingerprint.as_str(), request.job, request.at];
        let done = self.execute("remember a request", sql, args).await;
        done.map(drop).map_err(|e| e.taken(|| format!("the key {} has been used already", request.key)))
    }

    /// The wish with that key.
    pub async fn request(&mut self, key: &str) -> Result<Option<Request>> {
        let sql = "SELECT * FROM requests WHERE request_key = $1";
        let row = self.row_if_any("look for a request", sql, args![key]).await?;
        row.map(|row| {
            Ok(Request {
                key: row.text("request_key")?,
                fingerprint: row.text("fingerprint")?,
                job: row.parsed("job")?,
                at: Timestamp(row.int("at")?),
            })
        })
        .transpose()
    }

    /// Forgets the wishes of before that moment.
    pub async fn prune_requests(&mut self, before: Timestamp) -> Result<u64> {
        self.execute("prune requests", "DELETE FROM requests WHERE at < $1", args![before]).await
    }
}
