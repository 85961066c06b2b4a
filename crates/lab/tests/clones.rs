//! Thin clones: cheap, and independent of where they come from in every order of deletion.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use keyframe_lab::console::Mark;
use keyframe_lab::scratch;
use keyframe_lab::site::{Site, SiteOptions};

const MANY: usize = 100;
/// Generous: what is held to a figure is held to it by the benchmarks, on a quiet host.
const MANY_WITHIN: Duration = Duration::from_secs(30);

#[test]
fn clones_outlive_what_they_were_made_of_and_boot_with_its_data() -> Result<()> {
    let site = Site::up(&scratch::keyframe()?, &SiteOptions::default())?;
    let vm = site.boot("web", "128M", "lab=stamp")?;
    let kept = vm.next_stamp()?;
    for name in ["one", "two", "three"] {
        vm.snapshot(name, &["--quiesce", "required", "--deadline", "30s"])?;
    }
    // Another name for a clone, with other hardware if wished.
    site.json(["vm", "create", "of-two", "--snapshot", "web@two", "--memory", "160M"])?;
    site.json(["template", "create", "web@one", "--name", "gold"])?;
    site.json(["vm", "create", "of-gold", "--template", "gold", "--nic", "none"])?;
    let (two, gold) = (site.machine("of-two")?.show()?, site.machine("of-gold")?.show()?);
    ensure!(two["hardware"]["memory"] == 160 << 20, "not as wished: {two}");
    ensure!(gold["hardware"]["memory"] == 128 << 20, "not as the template is: {gold}");
    for made in [&two, &gold] {
        ensure!(made["hardware"]["disks"].as_array().is_some_and(|disks| disks.len() == 2), "its disks: {made}");
    }
    site.json(["snapshot", "create", "of-gold@first"])?;
    site.json(["clone", "of-gold@first", "--name", "grandchild"])?;
    site.check_at_rest()?;

    // The middle, the source with all that is left of it, the template, the link in the middle of a chain.
    site.json(["snapshot", "delete", "web@two"])?;
    site.json(["template", "delete", "gold"])?;
    site.json(["vm", "delete", "web", "--force"])?;
    site.json(["vm", "delete", "of-gold"])?;
    site.check_at_rest()?;
    for name in ["of-two", "grandchild"] {
        let clone = site.machine(name)?;
        clone.start()?;
        let found = clone.expect(Mark::default(), Duration::from_secs(60), "STAMP-START", |line| {
            line.strip_prefix("STAMP-START a=")?.split(' ').next()?.parse::<u64>().ok()
        })?;
        ensure!(found >= kept, "{name} holds stamp {found}, its source had written {kept}");
        clone.next_stamp()?;
    }
    site.json(["vm", "delete", "of-two", "--force"])?;
    site.json(["vm", "delete", "grandchild", "--force"])?;
    site.check_at_rest()?;
    let left =
        site.json(["volume", "list", "--control", &site.data().join("pool.kf.control").display().to_string()])?;
    ensure!(left == serde_json::json!([]), "volumes of nobody: {left}");
    Ok(())
}

#[test]
fn a_subtree_goes_and_the_rest_stays_and_a_hundred_clones_hold_no_data() -> Result<()> {
    let site = Site::up(&scratch::keyframe()?, &SiteOptions::default())?;
    let vm = site.create("web", "128M", "lab=stamp")?;
    // root ─ a ─ b ─ c, and from a again d
    for name in ["root", "a", "b", "c"] {
        vm.snapshot(name, &[])?;
    }
    vm.apply("a", &["--discard-current"])?;
    vm.snapshot("d", &[])?;
    site.json(["snapshot", "lock", "web@c"])?;
    let refused = site.refusal(["snapshot", "delete", "web@b", "--subtree"])?;
    ensure!(refused.contains('c') && refused.contains("lock"), "not because of the lock: {refused}");
    site.json(["snapshot", "unlock", "web@c"])?;
    site.json(["snapshot", "delete", "web@b", "--subtree"])?;
    ensure!(names(&site)? == ["a", "d", "root"], "left are {:?}", names(&site)?);
    site.check_at_rest()?;

    let began = Instant::now();
    site.json(["clone", "web@d", "--name", "n-{n}", "--count", &MANY.to_string()])?;
    let took = began.elapsed();
    println!("{MANY} clones of two disks each in {took:?}");
    ensure!(took < MANY_WITHIN, "{MANY} clones took {took:?}");
    let control = site.data().join("pool.kf.control").display().to_string();
    let volumes = site.json(["volume", "list", "--control", &control])?;
    let volumes = volumes.as_array().context("a list")?;
    ensure!(volumes.len() == 2 * (MANY + 1), "there are {} volumes", volumes.len());
    let written: u64 = volumes.iter().skip(2).filter_map(|volume| volume["written"].as_u64()).sum();
    ensure!(written == 0, "the clones hold {written} bytes of their own");
    site.check_at_rest()?;
    site.json(["snapshot", "delete", "web", "--all"])?;
    ensure!(names(&site)?.is_empty(), "left are {:?}", names(&site)?);
    site.check_at_rest()
}

fn names(site: &Site) -> Result<Vec<String>> {
    let list = site.json(["snapshot", "list", "web"])?;
    let names = list.as_array().context("a list")?.iter().filter_map(|one| one["name"].as_str().map(str::to_owned));
    let mut names: Vec<String> = names.collect();
    names.sort_unstable();
    Ok(names)
}
