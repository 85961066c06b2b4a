//! Settings: documents by name.

use keyframe_agent_api::Generation;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::event::{Change, EventKind};
use crate::sql::{Columns, args, document};
use crate::{Result, Transaction};

impl Transaction {
    /// The setting of that name.
    pub async fn setting<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>> {
        let sql = "SELECT document FROM settings WHERE name = $1";
        let row = self.row_if_any("read a setting", sql, args![name]).await?;
        row.map(|row| row.document("document")).transpose()
    }

    /// Sets it.
    pub async fn put_setting<T: Serialize + Sync>(&mut self, name: &str, value: &T) -> Result<()> {
        let sql = "INSERT INTO settings (name, document) VALUES ($1, $2) \
                   ON CONFLICT (name) DO UPDATE SET document = excluded.document";
        self.execute("change a setting", sql, args![name, document(value, name)?]).await?;
        self.note(EventKind::Setting, name, Generation(0), Change::Changed);
        Ok(())
    }

    /// Removes it; that it is not there is no failure.
    pub async fn delete_setting(&mut self, name: &str) -> Result<()> {
        if self.execute("remove a setting", "DELETE FROM settings WHERE name = $1", args![name]).await? > 0 {
            self.note(EventKind::Setting, name, Generation(0), Change::Gone);
        }
        Ok(())
    }
}
