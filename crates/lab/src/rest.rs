//! Whether a site is at rest: nothing is under way, and what the catalog knows is what the pool and the folders hold.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::site::{PATIENCE, Site};

/// Length of an identifier.
const ID: usize = 36;

/// Volumes, snapshots (`VOLUME@SNAPSHOT`), reports of instants and memory images, by their names.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Inventory {
    volumes: BTreeSet<String>,
    snapshots: BTreeSet<String>,
    reports: BTreeSet<String>,
    memory: BTreeSet<String>,
}

impl Site {
    /// Waits until nothing is under way and nothing is left over.
    pub fn wait_until_at_rest(&self) -> Result<()> {
        self.wait_until_at_rest_but(None)
    }

    /// The same, but this machine, if one is named, is in error.
    pub fn wait_until_at_rest_but(&self, broken: Option<&str>) -> Result<()> {
        self.wait_until(PATIENCE * 2, || self.check_at_rest_but(broken))
    }

    /// Fails if anything is under way, left over or missing.
    pub fn check_at_rest(&self) -> Result<()> {
        self.check_at_rest_but(None)
    }

    fn check_at_rest_but(&self, broken: Option<&str>) -> Result<()> {
        let active = list(self.json(["job", "list", "--active"])?)?;
        ensure!(active.is_empty(), "jobs are under way: {active:?}");
        for vm in list(self.json(["vm", "list"])?)? {
            let state = &vm["state"]["state"];
            let right = if vm["name"].as_str() == broken { "error" } else { "at" };
            ensure!(state == right, "machine {} is {}", vm["name"], vm["state"]);
        }
        for snapshot in list(self.json(["snapshot", "list"])?)? {
            let state = &snapshot["state"]["state"];
            ensure!(state == "ready", "snapshot {} is {}", snapshot["name"], snapshot["state"]);
        }
        for template in list(self.json(["template", "list"])?)? {
            ensure!(template["state"]["state"] == "ready", "template {} is {}", template["name"], template["state"]);
        }
        let (known, found) = (self.known()?, self.found()?);
        ensure!(known.volumes == found.volumes, "volumes: {}", differences(&known.volumes, &found.volumes));
        ensure!(known.snapshots == found.snapshots, "snapshots: {}", differences(&known.snapshots, &found.snapshots));
        ensure!(known.reports == found.reports, "instants: {}", differences(&known.reports, &found.reports));
        ensure!(known.memory == found.memory, "memory: {}", differences(&known.memory, &found.memory));
        let mut machines = BTreeSet::new();
        // The instant of a template is taken of a machine with the template's identifier.
        for kind in ["vm", "template"] {
            for one in list(self.json([kind, "list"])?)? {
                machines.insert(text(&one["id"])?);
            }
        }
        let vms = self.data().join("vms");
        let mut folders = BTreeSet::new();
        for name in self.names_in("vms")?.into_iter().filter(|name| vms.join(name).is_dir()) {
            let record = fs::read(vms.join(&name).join("machine.json")).unwrap_or_else(|_| b"{}".to_vec());
            let record: Value = serde_json::from_slice(&record).with_context(|| format!("the record in {name}"))?;
            ensure!(record["aside"].is_null(), "the process in {name} is set aside still");
            // A machine that was started while another process of it was set aside has a second folder.
            folders.insert(name.chars().take(ID).collect());
        }
        ensure!(folders.is_subset(&machines), "machines: {}", differences(&machines, &folders));
        Ok(())
    }

    /// What the catalog speaks of.
    fn known(&self) -> Result<Inventory> {
        let mut known = Inventory::default();
        for vm in list(self.json(["vm", "list"])?)? {
            known.volumes.extend(volumes(&vm)?);
        }
        for snapshot in list(self.json(["snapshot", "list"])?)? {
            let id = text(&snapshot["id"])?;
            known.reports.insert(format!("{id}.json"));
            if snapshot["kind"] == "disk+memory" {
                known.memory.insert(format!("{id}.kfm"));
            }
            for volume in volumes(&snapshot)? {
                known.snapshots.insert(format!("{volume}@{id}"));
                known.volumes.insert(volume);
            }
        }
        for template in list(self.json(["template", "list"])?)? {
            let id = text(&template["snapshot"])?;
            known.reports.insert(format!("{id}.json"));
            for volume in volumes(&template)? {
                known.snapshots.insert(format!("{volume}@{id}"));
                known.volumes.insert(volume);
            }
        }
        Ok(known)
    }

    /// What is there.
    fn found(&self) -> Result<Inventory> {
        let mut found = Inventory::default();
        let control = self.data().join("pool.kf.control").display().to_string();
        for volume in list(self.json(["volume", "list", "--control", &control])?)? {
            let name = text(&volume["name"])?;
            for snapshot in list(self.json(["volume", "snapshot", "list", &name, "--control", &control])?)? {
                found.snapshots.insert(text(&snapshot["name"])?);
            }
            found.volumes.insert(name);
        }
        found.memory = self.names_in("memory")?;
        found.reports = self.names_in("instants")?;
        Ok(found)
    }

    fn names_in(&self, folder: &str) -> Result<BTreeSet<String>> {
        match fs::read_dir(self.data().join(folder)) {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(BTreeSet::new()),
            entries => entries?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect(),
        }
    }
}

fn list(value: Value) -> Result<Vec<Value>> {
    match value {
        Value::Array(items) => Ok(items),
        other => anyhow::bail!("not a list: {other}"),
    }
}

fn text(value: &Value) -> Result<String> {
    value.as_str().map(str::to_owned).with_context(|| format!("not a text: {value}"))
}

/// The volumes of a machine, snapshot or template.
fn volumes(of: &Value) -> Result<Vec<String>> {
    let disks = of["hardware"]["disks"].as_array().with_context(|| format!("no disks in {of}"))?;
    disks.iter().map(|disk| text(&disk["volume"]["volume"])).collect()
}

fn differences(known: &BTreeSet<String>, found: &BTreeSet<String>) -> String {
    let missing: Vec<&String> = known.difference(found).collect();
    let left: Vec<&String> = found.difference(known).collect();
    format!("missing {missing:?}, left over {left:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_name_both_sides() {
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(differences(&set(&["a", "b"]), &set(&["b", "c"])), "missing [\"a\"], left over [\"c\"]");
    }
}
