//! Every command has its page of help, its manual page, its completion, and a place in the README.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use common::Sandbox;

/// The commands, as they are typed. A new one fails `the_list_is_complete` until it is here.
const COMMANDS: [&str; 88] = [
    "up",
    "down",
    "vm create",
    "vm list",
    "vm show",
    "vm start",
    "vm stop",
    "vm reset",
    "vm pause",
    "vm resume",
    "vm rename",
    "vm set",
    "vm delete",
    "snapshot create",
    "snapshot list",
    "snapshot show",
    "snapshot tree",
    "snapshot rename",
    "snapshot describe",
    "snapshot tag",
    "snapshot lock",
    "snapshot unlock",
    "snapshot keep",
    "snapshot apply",
    "snapshot revert",
    "snapshot delete",
    "snapshot diff",
    "snapshot compress",
    "snapshot verify",
    "snapshot search",
    "snapshot space",
    "clone",
    "template create",
    "template list",
    "template show",
    "template rename",
    "template describe",
    "template delete",
    "disk list",
    "disk attach",
    "disk detach",
    "disk resize",
    "nic list",
    "nic add",
    "nic remove",
    "nic plug",
    "nic unplug",
    "console",
    "job list",
    "job show",
    "job wait",
    "job cancel",
    "host list",
    "host show",
    "token create",
    "token list",
    "token delete",
    "search",
    "events",
    "pool create",
    "pool info",
    "pool grow",
    "pool check",
    "pool scrub",
    "pool stats",
    "pool serve",
    "volume create",
    "volume list",
    "volume show",
    "volume resize",
    "volume rename",
    "volume delete",
    "volume snapshot create",
    "volume snapshot list",
    "volume snapshot show",
    "volume snapshot rename",
    "volume snapshot delete",
    "volume clone",
    "volume revert",
    "volume tree",
    "volume space",
    "volume diff",
    "volume import",
    "volume export",
    "manager",
    "agent",
    "completion",
    "man",
];

/// The names under `Commands:` in a help text.
fn subcommands(help: &str) -> Vec<&str> {
    let after = help.split_once("Commands:\n").map_or("", |(_, after)| after);
    let names = after.lines().take_while(|line| line.starts_with("  "));
    names.filter(|line| !line.starts_with("   ")).map(|line| line.split_whitespace().next().unwrap()).collect()
}

/// All commands at or below a line, in the order of the help.
fn commands(sandbox: &Sandbox, line: &[&str], found: &mut Vec<String>) {
    let help = sandbox.bare(&[line, &["--help"]].concat()).good();
    match &subcommands(&help)[..] {
        [] => found.push(line.join(" ")),
        verbs => verbs.iter().for_each(|verb| commands(sandbox, &[line, &[verb]].concat(), found)),
    }
}

#[test]
fn the_list_is_complete() {
    let mut found = Vec::new();
    commands(&Sandbox::empty(), &[], &mut found);
    assert_eq!(found, COMMANDS);
}

#[test]
fn every_command_explains_itself() {
    let sandbox = Sandbox::empty();
    let made = sandbox.bare(&["man", "pages"]).good();
    assert_eq!(made, "");
    for command in COMMANDS {
        let mut line: Vec<&str> = command.split(' ').collect();
        line.push("--help");
        let help = sandbox.bare(&line).good();
        assert!(help.contains(&format!("Usage: keyframe {command}")), "{help}");
        let page = sandbox.path(&format!("pages/keyframe-{}.1", command.replace(' ', "-")));
        let page = std::fs::read_to_string(&page).unwrap_or_else(|error| panic!("{}: {error}", page.display()));
        assert!(page.contains(".SH SYNOPSIS"), "{page}");
    }
    assert!(sandbox.path("pages/keyframe.1").exists());
}

/// What stands under a heading is there for every command that has it.
#[test]
fn common_options_are_common() {
    const COMMON: [&str; 6] = ["--json", "--quiet", "--server", "--data", "--pool", "--control"];
    let sandbox = Sandbox::empty();
    for command in COMMANDS {
        let line: Vec<&str> = command.split(' ').chain(["--help"]).collect();
        let help = sandbox.bare(&line).good();
        let common = help.split_once("\nCommon options:\n").map_or("", |(_, after)| after);
        let starts = |line: &&str| line.trim_start().starts_with(['-', '<', '[']) && !line.starts_with("          ");
        for line in common.lines().filter(starts) {
            assert!(COMMON.iter().any(|option| line.contains(option)), "{command}: {line}");
        }
        assert!(common.contains("--json"), "{command}: {help}");
    }
}

#[test]
fn completions_know_every_word() {
    let sandbox = Sandbox::empty();
    for shell in ["bash", "zsh", "fish"] {
        let script = sandbox.bare(&["completion", shell]).good();
        assert!(script.contains("__complete"), "{shell}: {script}");
    }
    for command in COMMANDS {
        let mut words: Vec<&str> = ["__complete", "--"].into_iter().chain(command.split(' ')).collect();
        let last = words.last().copied().unwrap();
        let offered = sandbox.bare(&words).good();
        assert!(offered.lines().any(|line| line.split('\t').next() == Some(last)), "{command}: {offered}");
        words.push("--");
        let options = sandbox.bare(&words).good();
        assert!(options.contains("--json"), "{command}: {options}");
    }
}

#[test]
fn the_readme_names_every_command() {
    let readme = concat!(env!("CARGO_MANIFEST_DIR"), "/../../README.md");
    let text = std::fs::read_to_string(readme).unwrap();
    for command in COMMANDS {
        assert!(text.contains(&format!("keyframe {command}")), "{command}");
    }
}
