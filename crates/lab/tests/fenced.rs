//! Nobody writes to a machine's disk but the machine's process, and one that was killed is not in the way of the next.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use keyframe_lab::machine::Machine;
use keyframe_lab::process::run_tool;
use keyframe_lab::scratch;
use keyframe_lab::site::{PATIENCE, Role, Site, SiteOptions};

#[test]
fn one_process_writes_to_a_disk_and_a_killed_one_is_in_nobodys_way() -> Result<()> {
    let site = Site::up(&scratch::keyframe()?, &SiteOptions::default())?;
    let vm = site.boot("web", "128M", "lab=stamp")?;
    let taken = vm.snapshot("one", &[])?;
    let id = taken["id"].as_str().context("a snapshot has an id")?;
    let disk = Export::of(&site, &vm)?;

    disk.refuses_another()?;
    run_tool(Command::new("nbdinfo").args(["--size", &disk.uri(&format!("@{id}"))]))
        .context("snapshots are for all")?;
    vm.next_stamp().context("the guest suffers from who was refused")?;
    site.kill(Role::Agent)?;
    vm.next_stamp().context("the guest is kept out itself")?;
    disk.refuses_another().context("by an agent that found the machine running")?;

    // Its disks are free with its end, however that came.
    vm.kill()?;
    site.wait_until(PATIENCE, || {
        ensure!(vm.show()?["state"]["power"] == "stopped", "nobody has seen its end");
        Ok(())
    })?;
    vm.start()?;

    vm.act("vm", "stop", &["--hard"])?;
    run_tool(Command::new("nbdcopy").args(["--connections=4", &disk.uri(""), "null:"]))
        .context("four of one process")?;
    let mut stray = Stray::on(&disk.uri(""))?;
    let refused = site.refusal(["vm", "start", "web"])?;
    println!("{refused}");
    let says = format!("volume data of web: process {} (qemu-io)", stray.0.id());
    ensure!(refused.contains(&says), "who it is is not said: {refused}");
    stray.0.kill()?;
    site.json(["vm", "start", "web"])?;
    site.check_at_rest()
}

/// The second disk of a machine, as others see it.
struct Export {
    socket: String,
    name: String,
}

impl Export {
    fn of(site: &Site, vm: &Machine<'_>) -> Result<Export> {
        let shown = vm.show()?;
        let volume = &shown["hardware"]["disks"][1]["volume"];
        let part = |name: &str| volume[name].as_str().with_context(|| format!("no volume in {shown}"));
        let name = format!("{}/{}", part("array")?, part("volume")?);
        Ok(Export { socket: site.data().join("run/nbd.sock").display().to_string(), name })
    }

    fn uri(&self, version: &str) -> String {
        format!("nbd+unix:///{}{version}?socket={}", self.name, self.socket)
    }

    fn refuses_another(&self) -> Result<()> {
        let wrote = run_tool(Command::new("qemu-io").args(["-f", "raw", "-c", "write 0 4k", &self.uri("")]));
        let why = wrote.err().map(|e| format!("{e:#}")).context("a second process could write")?;
        ensure!(why.contains("in use"), "refused for another reason: {why}");
        Ok(())
    }
}

/// A client that has read something and stays.
struct Stray(Child);

impl Stray {
    fn on(uri: &str) -> Result<Stray> {
        let mut command = Command::new("qemu-io");
        let mut child = command.args(["-f", "raw", uri]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        child.stdin.as_mut().context("it has an input")?.write_all(b"read 0 512\n")?;
        let out = BufReader::new(child.stdout.take().context("it has an output")?);
        let stray = Stray(child);
        let mut lines = out.lines();
        let read = lines.find(|line| line.as_ref().is_ok_and(|line| line.contains("read 512/512")));
        read.context("it cannot read")??;
        Ok(stray)
    }
}

impl Drop for Stray {
    fn drop(&mut self) {
        // It may have ended.
        self.0.kill().and_then(|()| self.0.wait().map(drop)).unwrap_or(());
    }
}
