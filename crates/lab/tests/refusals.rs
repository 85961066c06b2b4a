//! What cannot be done is refused with the reason and the way out, and the machine is as it was.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use keyframe_lab::console::Mark;
use keyframe_lab::scratch;
use keyframe_lab::site::{PATIENCE, Site, SiteOptions, runs};

#[test]
fn a_second_operation_is_refused_at_once_and_names_the_first() -> Result<()> {
    let site = Site::up(&scratch::keyframe()?, &SiteOptions::default())?;
    let vm = site.boot("web", "256M", "lab=stamp lab=pages,64")?;
    vm.counters(Mark::default())?;
    let first = vm.act("snapshot", "create", &["--memory", "--no-wait"])?;
    let job = first["id"].as_str().context("a job has an id")?;
    let refused = site.refusal(["vm", "stop", "web"])?;
    ensure!(refused.contains(job), "{job} is not named: {refused}");
    let before = std::time::Instant::now();
    let refused = site.refusal(["snapshot", "create", "web@other"])?;
    ensure!(refused.contains(job), "{job} is not named: {refused}");
    println!("refused after {:?}: {refused}", before.elapsed());
    site.run(["job", "wait", job])?;
    site.json(["snapshot", "create", "web@other"])?;
    site.check_at_rest()
}

#[test]
fn a_detached_disk_is_back_with_its_data_after_an_older_snapshot_is_applied() -> Result<()> {
    let site = Site::up(&scratch::keyframe()?, &SiteOptions::default())?;
    let vm = site.boot("web", "128M", "")?;
    vm.act("disk", "attach", &["size=32M,name=extra"])?;
    vm.run("while [ ! -b /dev/vdc ]; do usleep 20000; done; echo precious | dd of=/dev/vdc conv=fsync 2>/dev/null")?;
    vm.snapshot("with", &[])?;
    vm.snapshot("with-memory", &["--memory"])?;
    vm.act("disk", "detach", &["extra"])?;
    vm.run("while [ -b /dev/vdc ]; do usleep 20000; done")?;
    let holds = |what: &str| -> Result<()> {
        let from = vm.console().mark();
        vm.run("head -c 9 /dev/vdc")?;
        vm.expect(from, PATIENCE, what, |line| (line == "precious").then_some(()))
    };

    vm.apply("with-memory", &[])?;
    holds("the data beside the guest's memory")?;
    let from = vm.console().mark();
    vm.apply("with", &["--start"])?;
    vm.ready(from)?;
    holds("the data after a boot")?;
    site.check_at_rest()
}

#[test]
fn a_snapshot_whose_memory_cannot_be_used_says_so_and_its_disks_can_be_applied() -> Result<()> {
    let site = Site::up(&scratch::keyframe()?, &SiteOptions::default())?;
    let vm = site.boot("web", "256M", "lab=stamp lab=pages,16")?;
    vm.counters(Mark::default())?;
    for (name, harm) in [("lost", Harm::Delete), ("torn", Harm::Truncate), ("scribbled", Harm::Scribble)] {
        let taken = vm.snapshot(name, &["--memory"])?;
        let id = taken["id"].as_str().context("a snapshot has an id")?;
        harm.bring_to(&site.data().join("memory").join(format!("{id}.kfm")))?;
        let refused = site.refusal(["snapshot", "apply", &vm.at(name)])?;
        println!("{name}: {refused}");
        ensure!(refused.contains("memory"), "what is wrong is not said: {refused}");
        ensure!(refused.contains("without"), "the way out is not said: {refused}");
        ensure!(refused.matches(id).count() <= 1, "the image is named more than once: {refused}");
        vm.next_stamp().context("the machine does not run on after a refused apply")?;
        let from = vm.console().mark();
        vm.apply(name, &["--without-memory", "--start"])?;
        vm.ready(from)?;
        vm.next_stamp()?;
    }
    Ok(())
}

/// Nobody reads all of an image before a guest goes on from it.
#[test]
fn damage_that_a_guest_meets_when_it_goes_on_is_named_soon_and_the_disks_can_be_applied() -> Result<()> {
    let site = Site::up(&scratch::keyframe()?, &SiteOptions::default())?;
    let vm = site.boot("web", "128M", "lab=stamp")?;
    vm.next_stamp()?;
    let taken = vm.snapshot("flipped", &["--memory"])?;
    let image = format!("{}.kfm", taken["id"].as_str().context("a snapshot has an id")?);
    Harm::Flip.bring_to(&site.data().join("memory").join(&image))?;
    let began = std::time::Instant::now();
    let refused = site.refusal(["snapshot", "apply", "web@flipped", "--discard-current"])?;
    println!("after {:?}: {refused}", began.elapsed());
    for part in [&image, "is damaged", "without"] {
        ensure!(refused.contains(part), "{part} is not said: {refused}");
    }
    ensure!(began.elapsed() < PATIENCE / 3, "that took {:?}", began.elapsed());
    site.wait_until_at_rest()?;
    let from = vm.console().mark();
    vm.apply("flipped", &["--without-memory", "--start", "--discard-current"])?;
    vm.ready(from)?;
    vm.next_stamp()?;
    site.check_at_rest()
}

#[derive(Clone, Copy)]
enum Harm {
    Delete,
    Truncate,
    Scribble,
    /// One bit of each page behind those that the firmware and the devices of a machine need.
    Flip,
}

impl Harm {
    fn bring_to(self, image: &std::path::Path) -> Result<()> {
        use std::os::unix::fs::FileExt;
        match self {
            Harm::Delete => std::fs::remove_file(image)?,
            Harm::Truncate => {
                let file = std::fs::OpenOptions::new().write(true).open(image)?;
                file.set_len(file.metadata()?.len() / 2)?;
            }
            Harm::Scribble => {
                let file = std::fs::OpenOptions::new().write(true).open(image)?;
                file.write_all_at(&[0xA5; 4096], 0)?;
            }
            Harm::Flip => {
                let file = std::fs::OpenOptions::new().read(true).write(true).open(image)?;
                let mut page = [0; 4096];
                for at in (4096 + (1 << 20)..64 << 20).step_by(4096) {
                    file.read_exact_at(&mut page, at)?;
                    if page.iter().any(|byte| *byte != 0) {
                        file.write_all_at(&[page[0] ^ 1], at)?;
                    }
                }
            }
        }
        Ok(())
    }
}

#[test]
fn a_pool_that_is_gone_is_not_replaced_by_an_empty_one() -> Result<()> {
    let site = Site::up(&scratch::keyframe()?, &SiteOptions::default())?;
    site.run(["vm", "create", "web", "--memory", "32M", "--disk", "8M", "--nic", "none"])?;
    site.down()?;
    let (pool, away) = (site.data().join("pool.kf"), site.data().join("pool.away"));
    std::fs::rename(&pool, &away)?;
    let refused = format!("{:#}", site.start().err().context("it is up without its pool")?);
    let mark = site.data().join("arrays/local.json");
    ensure!(refused.contains("is its disk mounted") && refused.contains(&mark.display().to_string()), "{refused}");
    ensure!(!pool.exists(), "another pool was made");
    std::fs::rename(&away, &pool)?;
    site.start()?;
    site.run(["vm", "start", "web"])?;
    site.run(["vm", "stop", "web", "--hard"])?;
    site.check_at_rest()
}

#[test]
fn of_several_machines_each_is_tried_and_each_failure_is_said() -> Result<()> {
    let site = Site::up(&scratch::keyframe()?, &SiteOptions::default())?;
    site.run(["vm", "create", "web", "--memory", "32M", "--disk", "8M", "--nic", "none"])?;
    let said = site.refusal(["vm", "start", "nope", "web", "nada"])?;
    ensure!(said.contains("nope") && said.contains("nada"), "{said}");
    ensure!(site.json(["vm", "show", "web"])?["state"]["power"] == "running", "web was not started");
    let said = site.refusal(["vm", "delete", "nope", "web", "nada", "--force"])?;
    ensure!(said.contains("nope") && said.contains("nada"), "{said}");
    ensure!(site.json(["vm", "list"])? == serde_json::json!([]), "web is still there");
    site.check_at_rest()
}

#[test]
fn what_is_wrong_with_a_configuration_is_said() -> Result<()> {
    let site = Site::up(&scratch::keyframe()?, &SiteOptions::default())?;
    site.down()?;
    let file = site.data().join("keyframe.toml");
    for (section, line) in [("agent", "line 2"), ("manager", "line 2")] {
        std::fs::write(&file, format!("[{section}]\nfoo = 1\n"))?;
        let refused = format!("{:#}", site.start().err().context("it is up")?);
        ensure!(refused.contains("unknown field `foo`") && refused.contains(line), "{section}: {refused}");
    }
    std::fs::remove_file(&file)?;
    site.start()?;
    site.check_at_rest()
}

#[test]
fn an_operation_can_be_cancelled_and_leaves_nothing() -> Result<()> {
    let site = Site::up(&scratch::keyframe()?, &SiteOptions::default())?;
    let vm = site.boot("web", "256M", "lab=stamp lab=pages,64")?;
    vm.counters(Mark::default())?;
    let order = vm.act("snapshot", "create", &["--memory", "--no-wait"])?;
    let job = order["id"].as_str().context("a job has an id")?;
    let status = site.command(["job", "cancel", job]).stdout(Stdio::null()).status()?;
    ensure!(status.success(), "it cannot be cancelled");
    let ended = site.json(["job", "show", job])?;
    site.wait_until_at_rest().with_context(|| format!("after cancelling {ended}"))?;
    ensure!(site.json(["snapshot", "list", "web"])? == serde_json::json!([]), "a snapshot is left");
    vm.counters(vm.console().mark()).map(drop)
}

/// A process that says nothing keeps no job for ever, and nobody from pulling its plug.
#[test]
fn a_machine_that_does_not_answer_can_be_stopped_hard_whatever_is_being_done_to_it() -> Result<()> {
    let site = Site::up(&scratch::keyframe()?, &SiteOptions::default())?;
    let vm = site.boot("web", "128M", "")?;
    rustix::process::kill_process(vm.pid()?, rustix::process::Signal::STOP)?;
    let order = vm.act("vm", "pause", &["--no-wait"])?;
    let job = order["id"].as_str().context("a job has an id")?;
    let began = std::time::Instant::now();
    site.run(["vm", "stop", "web", "--hard"])?;
    println!("stopped within {:?}", began.elapsed());
    let ended = site.json(["job", "show", job])?;
    ensure!(ended["state"] != "running" && ended["state"] != "undoing", "it has not ended: {ended}");
    ensure!(vm.show()?["state"]["power"] == "stopped", "{}", vm.show()?);
    let from = vm.console().mark();
    vm.act("vm", "start", &[])?;
    vm.ready(from)?;
    site.check_at_rest()
}

/// Without its catalog nobody knows a machine but the host that it runs on.
#[test]
fn machines_that_the_catalog_has_lost_are_named_and_can_be_stopped() -> Result<()> {
    let site = Site::up(&scratch::keyframe()?, &SiteOptions::default())?;
    let vm = site.boot("web", "128M", "")?;
    let (pid, id) = (vm.pid()?, vm.show()?["id"].as_str().context("a machine has an id")?.to_owned());
    site.down()?;
    for entry in std::fs::read_dir(site.data())?.filter_map(Result::ok) {
        if entry.file_name().to_string_lossy().starts_with("catalog.db") {
            std::fs::remove_file(entry.path())?;
        }
    }
    site.start()?;
    ensure!(site.json(["vm", "list"])? == serde_json::json!([]), "the catalog is still there");
    let said = site.down()?;
    println!("{said}");
    ensure!(said.contains("web") && said.contains(&id), "the machine is not named: {said}");
    ensure!(said.contains("one machine runs on") && said.contains("keyframe down --vms"), "{said}");
    ensure!(runs(pid), "the machine was ended");
    site.start()?;
    let said = site.run(["down", "--vms"])?;
    println!("{said}");
    ensure!(said.contains("web") && said.contains(&id) && said.contains("stopped"), "{said}");
    ensure!(!said.contains("run"), "it is said that machines run: {said}");
    ensure!(!runs(pid), "the machine runs on");
    site.start().map(drop)
}
