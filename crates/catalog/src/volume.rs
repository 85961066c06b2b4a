//! Who refers to a volume: the machines, snapshots and templates whose hardware names it. Kept up with them.

use std::collections::{BTreeMap, BTreeSet};

use keyframe_agent_api::{SnapshotId, TemplateId, VmId, VolumeRef};
use keyframe_model::Hardware;
use sqlx::AssertSqlSafe;
use sqlx::any::AnyRow;

use crate::sql::{Arg, BATCH, Columns, args, places};
use crate::{Error, ErrorKind, Result, Transaction};

/// What refers to a volume.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Owner {
    /// A machine's disk is on it.
    Vm(VmId),
    /// A snapshot needs it.
    Snapshot(SnapshotId),
    /// A template's disk is on it.
    Template(TemplateId),
}

impl Owner {
    fn columns(self) -> (&'static str, String) {
        match self {
            Owner::Vm(id) => ("vm", id.to_string()),
            Owner::Snapshot(id) => ("snapshot", id.to_string()),
            Owner::Template(id) => ("template", id.to_string()),
        }
    }
}

impl Transaction {
    /// The volumes that nobody would refer to if all of these went, in the order of their names.
    pub async fn unreferenced_without(&mut self, owners: &[Owner]) -> Result<Vec<VolumeRef>> {
        let owners: BTreeSet<Owner> = owners.iter().copied().collect();
        let mut going = BTreeMap::<VolumeRef, i64>::new();
        let mut by_kind = BTreeMap::<&'static str, Vec<String>>::new();
        for owner in owners {
            let (kind, id) = owner.columns();
            by_kind.entry(kind).or_default().push(id);
        }
        for (kind, ids) in by_kind {
            for batch in ids.chunks(BATCH) {
                let sql = format!(
                    "SELECT array_name, volume, COUNT(*) AS n FROM volume_owners WHERE owner_kind = $1 AND owner IN {} \
                     GROUP BY array_name, volume",
                    places(2, batch.len())
                );
                let mut args = args![kind];
                args.extend(batch.iter().map(|id| Arg::from(id.as_str())));
                for row in self.rows("find what refers to volumes", AssertSqlSafe(sql), args).await? {
                    *going.entry(volume(&row)?).or_default() += row.int("n")?;
                }
            }
        }
        let mut out = Vec::new();
        for (volume, going) in going {
            let sql = "SELECT COUNT(*) AS n FROM volume_owners WHERE volume = $1 AND array_name = $2";
            let args = args![volume.volume.as_str(), volume.array.as_str()];
            if self.row("find what refers to a volume", sql, args).await?.int("n")? == going {
                out.push(volume);
            }
        }
        Ok(out)
    }

    /// The volumes that snapshots of a machine need, each with how many do and the newest of them.
    pub async fn snapshotted_volumes(&mut self, vm: VmId) -> Result<Vec<(VolumeRef, u32, SnapshotId)>> {
        let sql = "SELECT array_name, volume, COUNT(*) AS n, MAX(owner) AS newest FROM volume_owners \
                   WHERE owner_kind = 'snapshot' AND owner IN (SELECT id FROM snapshots WHERE vm = $1) \
                   GROUP BY array_name, volume ORDER BY array_name, volume";
        let rows = self.rows("find what snapshots need", sql, args![vm]).await?;
        let one = |row: &AnyRow| {
            let count = u32::try_from(row.int("n")?).map_err(|e| Error::corrupt("a count", e))?;
            Ok((volume(row)?, count, row.parsed("newest")?))
        };
        rows.iter().map(one).collect()
    }

    /// Who refers to the volume.
    pub async fn owners_of(&mut self, volume: &VolumeRef) -> Result<Vec<Owner>> {
        let sql = "SELECT owner_kind, owner FROM volume_owners WHERE volume = $1 AND array_name = $2 \
                   ORDER BY owner_kind, owner";
        let args = args![volume.volume.as_str(), volume.array.as_str()];
        let rows = self.rows("find what refers to a volume", sql, args).await?;
        rows.iter()
            .map(|row| match row.text("owner_kind")?.as_str() {
                "vm" => Ok(Owner::Vm(row.parsed("owner")?)),
                "snapshot" => Ok(Owner::Snapshot(row.parsed("owner")?)),
                "template" => Ok(Owner::Template(row.parsed("owner")?)),
                other => {
                    let message = format!("the catalog says that a '{other}' refers to {volume}");
                    Err(Error::new(ErrorKind::Corrupt, message))
                }
            })
            .collect()
    }

    /// Every volume that anybody refers to.
    pub async fn volumes(&mut self) -> Result<Vec<VolumeRef>> {
        let sql = "SELECT DISTINCT array_name, volume FROM volume_owners ORDER BY array_name, volume";
        self.rows("list volumes", sql, args![]).await?.iter().map(volume).collect()
    }

    /// Makes the owner refer to the volumes of this hardware, and to no others.
    pub(crate) async fn own(&mut self, owner: Owner, hardware: &Hardware) -> Result<()> {
        let (kind, id) = owner.columns();
        let sql = "SELECT array_name, volume FROM volume_owners WHERE owner_kind = $1 AND owner = $2";
        let rows = self.rows("read volumes", sql, args![kind, id.as_str()]).await?;
        let before: BTreeSet<VolumeRef> = rows.iter().map(volume).collect::<Result<_>>()?;
        let after: BTreeSet<VolumeRef> = hardware.disks.iter().map(|disk| disk.volume.clone()).collect();
        for gone in before.difference(&after) {
            let sql =
                "DELETE FROM volume_owners WHERE owner_kind = $1 AND owner = $2 AND array_name = $3 AND volume = $4";
            let args = args![kind, id.as_str(), gone.array.as_str(), gone.volume.as_str()];
            self.execute("let go of a volume", sql, args).await?;
        }
        for new in after.difference(&before) {
            let sql = "INSERT INTO volume_owners (owner_kind, owner, array_name, volume) VALUES ($1, $2, $3, $4)";
            let args = args![kind, id.as_str(), new.array.as_str(), new.volume.as_str()];
            self.execute("refer to a volume", sql, args).await?;
        }
        Ok(())
    }

    pub(crate) async fn disown(&mut self, owner: Owner) -> Result<()> {
        let (kind, id) = owner.columns();
        let sql = "DELETE FROM volume_owners WHERE owner_kind = $1 AND owner = $2";
        self.execute("let go of volumes", sql, args![kind, id]).await.map(drop)
    }

    pub(crate) async fn disown_snapshots_of(&mut self, vm: VmId) -> Result<()> {
        let sql = "DELETE FROM volume_owners WHERE owner_kind = 'snapshot' AND owner IN \
                   (SELECT id FROM snapshots WHERE vm = $1)";
        self.execute("let go of volumes", sql, args![vm]).await.map(drop)
    }
}

fn volume(row: &AnyRow) -> Result<VolumeRef> {
    Ok(VolumeRef { array: row.text("array_name")?, volume: row.text("volume")? })
}
