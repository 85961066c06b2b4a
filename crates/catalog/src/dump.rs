//! All that the catalog says of the world, as one document: for tests that compare, and for support. Jobs, events, tokens and
//! settings are not in it.

use serde_json::{Value, json};

use crate::sql::{Columns, args, document};
use crate::{Error, PageOf, Result, SnapshotFilter, TemplateFilter, Transaction};

impl Transaction {
    /// Machines, snapshots, templates, who refers to which volume, hosts, locks and leftovers, each in a fixed order.
    pub async fn dump(&mut self) -> Result<Value> {
        let vms = self.all_vms().await?;
        let snapshots = self.snapshots(&SnapshotFilter::default(), &PageOf::all()).await?.items;
        let templates = self.templates(&TemplateFilter::default(), &PageOf::all()).await?.items;
        let hosts = self.hosts().await?;
        let sql = "SELECT owner_kind, owner, array_name, volume FROM volume_owners \
                   ORDER BY owner_kind, owner, array_name, volume";
        let mut owners = Vec::new();
        for row in self.rows("list volumes", sql, args![]).await? {
            owners.push(json!({
                "kind": row.text("owner_kind")?,
                "owner": row.text("owner")?,
                "array": row.text("array_name")?,
                "volume": row.text("volume")?,
            }));
        }
        let sql = "SELECT resource_kind, resource, job, mode FROM locks ORDER BY resource_kind, resource, job";
        let mut locks = Vec::new();
        for row in self.rows("list locks", sql, args![]).await? {
            locks.push(json!({
                "kind": row.text("resource_kind")?,
                "resource": row.text("resource")?,
                "job": row.text("job")?,
                "mode": row.text("mode")?,
            }));
        }
        let leftovers = self.leftovers().await?;
        let value = |text: String| serde_json::from_str::<Value>(&text).map_err(|e| Error::corrupt("all", e));
        Ok(json!({
            "vms": value(document(&vms, "all")?)?,
            "snapshots": value(document(&snapshots, "all")?)?,
            "templates": value(document(&templates, "all")?)?,
            "hosts": value(document(&hosts, "all")?)?,
            "volumes": owners,
            "locks": locks,
            "leftovers": value(document(&leftovers, "all")?)?,
        }))
    }
}
