//! What people say about snapshots and templates, how they find them again, how long what is kept by itself is kept, and the
//! events of it all: by the command line, on a machine without a system.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use keyframe_lab::process::run_tool;
use keyframe_lab::scratch;
use keyframe_lab::site::{Site, SiteOptions};
use serde_json::{Value, json};

const HOUR: i64 = 3_600_000_000;

#[test]
fn what_is_said_about_things_is_found_and_followed() -> Result<()> {
    let site = Site::up(&scratch::keyframe()?, &SiteOptions::default())?;
    site.run(["vm", "create", "web", "--memory", "32M", "--disk", "size=8M,name=root", "--nic", "none"])?;
    site.run(["vm", "create", "other", "--memory", "32M", "--disk", "8M", "--nic", "none"])?;
    snapshots_are_described_and_tagged(&site)?;
    snapshots_are_compared(&site)?;
    what_is_kept_expires_unless_told(&site)?;
    templates_are_renamed(&site)?;
    clones_are_numbered(&site)?;
    all_is_found_by_a_word(&site)?;
    events_are_followed(&site)?;
    site.wait_until_at_rest()
}

/// The names in a list.
fn names(list: &Value) -> Vec<&str> {
    list.as_array().into_iter().flatten().filter_map(|item| item["name"].as_str()).collect()
}

/// The lines of a table without its head: their first words.
fn first_words(table: &str) -> Vec<&str> {
    table.lines().skip(1).filter_map(|line| line.trim_start_matches("* ").split_whitespace().next()).collect()
}

fn snapshots_are_described_and_tagged(site: &Site) -> Result<()> {
    site.run(["snapshot", "create", "web@one", "--tag", "gold", "--description", "first thoughts"])?;
    site.run(["snapshot", "create", "other@one", "--tag", "gold"])?;
    site.run(["snapshot", "tag", "web@one", "silver", "copper", "--remove", "gold"])?;
    let shown = site.json(["snapshot", "show", "web@one"])?;
    ensure!(shown["tags"] == json!(["silver", "copper"]), "it has the tags {}", shown["tags"]);
    let refused = site.refusal(["snapshot", "tag", "web@one"])?;
    ensure!(refused.contains("--remove"), "{refused}");
    let tagged = site.json(["snapshot", "list", "web", "--tag", "silver"])?;
    ensure!(names(&tagged) == ["one"], "{tagged}");
    ensure!(site.json(["snapshot", "list", "web", "--tag", "gold"])? == json!([]), "it keeps the tag");

    site.run(["snapshot", "describe", "web@one", "Second THOUGHTS"])?;
    ensure!(site.run(["snapshot", "show", "web@one"])?.contains("Second THOUGHTS"), "it is not described");
    for word in ["thoughts", "silv", "second"] {
        let found = site.json(["snapshot", "search", word])?;
        ensure!(names(&found) == ["one"] && found[0]["tags"] == shown["tags"], "{word}: {found}");
    }
    ensure!(site.json(["snapshot", "search", "first"])? == json!([]), "it is found by what it was");
    // What is found can be typed as it is.
    let found = site.run(["snapshot", "search", "one"])?;
    let mut both = first_words(&found);
    both.sort_unstable();
    ensure!(both == ["other@one", "web@one"], "{found}");
    ensure!(first_words(&site.run(["snapshot", "list", "web"])?) == ["one"], "the machine was named already");
    let limited = site.json(["snapshot", "search", "one", "--limit", "1"])?;
    ensure!(names(&limited) == ["one"], "{limited}");
    Ok(())
}

fn snapshots_are_compared(site: &Site) -> Result<()> {
    let shown = site.json(["vm", "show", "web"])?;
    let volume = shown["hardware"]["disks"][0]["volume"]["volume"].as_str().context("its disk has a volume")?;
    let disk = format!("nbd:unix:{}:exportname=local/{volume}", site.data().join("run/nbd.sock").display());
    run_tool(Command::new("qemu-io").args(["-f", "raw", "-c", "write -P 7 1M 64k", "-c", "flush", &disk]))?;
    site.run(["snapshot", "create", "web@two"])?;
    let differ = |from: &str, to: &str| -> Result<[Value; 3]> {
        let diff = site.json(["snapshot", "diff", from, to])?;
        let disk = &diff["disks"][0];
        ensure!(disk["name"] == "root" && disk["presence"] == "both", "{diff}");
        Ok(["changed", "zeroed", "extents"].map(|member| disk[member].clone()))
    };
    ensure!(
        differ("web@one", "web@two")? == [json!(64 << 10), json!(0), json!(1)],
        "{:?}",
        differ("web@one", "web@two")
    );
    ensure!(
        differ("web@two", "web@one")? == [json!(0), json!(64 << 10), json!(1)],
        "{:?}",
        differ("web@two", "web@one")
    );
    ensure!(differ("web@two", "web@two")? == [json!(0), json!(0), json!(0)], "it differs from itself");
    let text = site.run(["snapshot", "diff", "web@one", "web@two"])?;
    ensure!(text.lines().nth(1).is_some_and(|line| line.starts_with("root") && line.contains("64 KiB")), "{text}");
    let refused = site.refusal(["snapshot", "diff", "other@one", "web@two"])?;
    ensure!(refused.contains("different machines"), "{refused}");
    Ok(())
}

fn what_is_kept_expires_unless_told(site: &Site) -> Result<()> {
    site.run(["snapshot", "apply", "web@one", "--keep-name", "kept", "--keep-for", "1h"])?;
    let kept = site.json(["snapshot", "show", "web@kept"])?;
    let stays = kept["expires"].as_i64().zip(kept["created"].as_i64()).map(|(end, begin)| end - begin);
    ensure!(stays.is_some_and(|stays| (stays - HOUR).abs() < HOUR / 30), "it is kept for {stays:?} µs: {kept}");
    ensure!(site.run(["snapshot", "list", "web"])?.contains("until "), "nobody is told of its end");
    site.run(["snapshot", "keep", "web@kept"])?;
    let kept = site.json(["snapshot", "show", "web@kept"])?;
    ensure!(kept["expires"].is_null(), "it still expires: {kept}");
    let refused = site.refusal(["snapshot", "rename", "web@kept", "one"])?;
    ensure!(refused.contains("web has a snapshot named one already"), "{refused}");
    Ok(())
}

fn templates_are_renamed(site: &Site) -> Result<()> {
    site.run(["template", "create", "web@two", "--name", "mold", "--description", "for casting"])?;
    let made = site.json(["template", "show", "mold"])?;
    let text = site.run(["template", "show", "mold"])?;
    for part in ["mold", "for casting", "ready", "8 MiB"] {
        ensure!(text.contains(part), "no {part:?} in {text}");
    }
    site.run(["template", "rename", "mold", "form"])?;
    let renamed = site.json(["template", "show", "form"])?;
    ensure!(renamed["id"] == made["id"] && renamed["description"] == "for casting", "{renamed}");
    ensure!(site.refusal(["template", "show", "mold"])?.contains("mold"), "it goes by both names");
    ensure!(names(&site.json(["template", "list", "--search", "CASTING"])?) == ["form"], "it is not found");
    site.run(["template", "create", "web@one", "--name", "mold"])?;
    let refused = site.refusal(["template", "rename", "mold", "form"])?;
    ensure!(refused.contains("form"), "two of one name: {refused}");
    ensure!(names(&site.json(["template", "list"])?).len() == 2, "there are not two");
    site.run(["template", "delete", "mold"]).map(drop)
}

fn clones_are_numbered(site: &Site) -> Result<()> {
    site.run(["clone", "--template", "form", "--name", "cast-{n}", "--count", "2", "--first", "9"])?;
    let mut made = site.json(["vm", "list", "--search", "cast-"])?;
    let mut found = names(&made);
    found.sort_unstable();
    ensure!(found == ["cast-10", "cast-9"], "{found:?}");
    made = site.json(["vm", "show", "cast-9"])?;
    ensure!(made["hardware"]["disks"][0]["size"] == 8 << 20, "{made}");
    site.run(["vm", "delete", "cast-9", "cast-10"]).map(drop)
}

fn all_is_found_by_a_word(site: &Site) -> Result<()> {
    site.run(["snapshot", "describe", "web@two", "about the web"])?;
    let found = site.json(["search", "web"])?;
    let of = |kind: &str| names(&found[kind]);
    ensure!(of("vms") == ["web"] && of("snapshots") == ["two", "kept"] && of("templates").is_empty(), "{found}");
    ensure!(found["more"] == false, "{found}");
    let text = site.run(["search", "web"])?;
    ensure!(first_words(&text) == ["web", "web@two", "web@kept"], "{text}");
    ensure!(first_words(&site.run(["search", "casting"])?) == ["form"], "no template is found");
    ensure!(first_words(&site.run(["search", "nothing-at-all"])?).is_empty(), "nothing is found");
    Ok(())
}

/// From the first on, and then as they happen.
fn events_are_followed(site: &Site) -> Result<()> {
    let web = site.json(["vm", "show", "web"])?["id"].clone();
    let line = ["events", "--after", "0", "--kind", "snapshot", "--vm", "web", "--json"];
    let mut follower = site.command(line).stdout(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(follower.stdout.take().context("it prints")?).lines();
    let mut seen = 0;
    let mut next = |change: &str, id: &Value| -> Result<()> {
        loop {
            let event: Value = serde_json::from_str(&lines.next().context("it has ended")??)?;
            ensure!(event["kind"] == "snapshot" && event["vm"] == web, "nobody asked for {event}");
            let seq = event["seq"].as_i64().context("it has a number")?;
            ensure!(seq > seen, "{seq} comes after {seen}");
            seen = seq;
            if event["change"] == change && event["id"] == *id {
                return Ok(());
            }
        }
    };
    let two = site.json(["snapshot", "show", "web@two"])?["id"].clone();
    next("made", &two)?;
    next("changed", &two)?;
    site.run(["snapshot", "create", "web@three"])?;
    let three = site.json(["snapshot", "show", "web@three"])?["id"].clone();
    next("made", &three)?;
    site.run(["snapshot", "delete", "web@three"])?;
    next("gone", &three)?;
    follower.kill()?;
    follower.wait()?;

    let mut people = site.command(["events", "--after", "0"]).stdout(Stdio::piped()).spawn()?;
    let line =
        BufReader::new(people.stdout.take().context("it prints")?).lines().next().context("it says nothing")??;
    people.kill()?;
    people.wait()?;
    let words: Vec<&str> = line.split_whitespace().collect();
    ensure!(words.len() >= 6 && words[2].parse::<u64>().is_ok() && words[4] == "made", "{line}");
    Ok(())
}
