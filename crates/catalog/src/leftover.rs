//! What jobs have left on their hosts because they could not delete it. It stays here until it is gone.

use keyframe_agent_api::{SnapshotId, VolumeRef};
use serde::{Deserialize, Serialize};

use crate::sql::{Columns, args, document};
use crate::{Result, Transaction};

/// Something that no job needs any more.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Leftover {
    /// The memory of an instant, and its snapshots of these volumes.
    Instant {
        /// Its name.
        snapshot: SnapshotId,
        /// Those that it is of.
        volumes: Vec<VolumeRef>,
    },
    /// A volume with its snapshots.
    Volume(VolumeRef),
}

impl Leftover {
    fn key(&self) -> String {
        match self {
            Leftover::Instant { snapshot, .. } => format!("instant {snapshot}"),
            Leftover::Volume(volume) => format!("volume {volume}"),
        }
    }
}

impl Transaction {
    /// Remembers something that is left; once is enough.
    pub async fn put_leftover(&mut self, left: &Leftover) -> Result<()> {
        let sql = "INSERT INTO leftovers (id, document) VALUES ($1, $2) \
                   ON CONFLICT (id) DO UPDATE SET document = excluded.document";
        let key = left.key();
        self.execute("remember what is left", sql, args![key.as_str(), document(left, &key)?]).await.map(drop)
    }

    /// Forgets it; that it is not there is no failure.
    pub async fn delete_leftover(&mut self, left: &Leftover) -> Result<()> {
        let sql = "DELETE FROM leftovers WHERE id = $1";
        self.execute("forget what was left", sql, args![left.key().as_str()]).await.map(drop)
    }

    /// All that is left.
    pub async fn leftovers(&mut self) -> Result<Vec<Leftover>> {
        let sql = "SELECT document FROM leftovers ORDER BY id";
        self.rows("list what is left", sql, args![]).await?.iter().map(|row| row.document("document")).collect()
    }

    /// Whether anything refers to it, so that it must not be deleted.
    pub async fn is_wanted(&mut self, left: &Leftover) -> Result<bool> {
        match left {
            Leftover::Volume(volume) => Ok(!self.owners_of(volume).await?.is_empty()),
            Leftover::Instant { snapshot, .. } => {
                let sql = "SELECT id FROM snapshots WHERE id = $1";
                Ok(self.row_if_any("look for a snapshot", sql, args![*snapshot]).await?.is_some())
            }
        }
    }
}
