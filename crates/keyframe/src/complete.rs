//! What could come next on a command line: subcommands, options and words out of the description of the command line, and
//! names out of the manager, if one answers at once. Shells call this with every press of a key, so it is quick or silent.
//!
//! The scripts for the shells only pass the words on: `keyframe __complete -- WORDS…`, the last of which is incomplete. A
//! candidate is a line, with a tab before what explains it.

use std::sync::mpsc;
use std::time::Duration;

use clap::{Arg, Command, CommandFactory};
use serde_json::Value;

use crate::cli::{Cli, RemoteArgs};
use crate::remote::client::{Client, Server};

/// How long the manager may take.
const DEADLINE: Duration = Duration::from_millis(700);
/// So many names help nobody any more.
const MOST: usize = 500;

/// Something that could stand there.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Candidate {
    text: String,
    help: String,
}

/// What can be named.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Noun {
    Vm,
    Snapshot,
    /// A machine, or one of its snapshots.
    Source,
    Template,
    Job,
    Host,
    /// Of the machine that was named before.
    Disk,
    /// Of the machine that was named before.
    Nic,
    Token,
}

/// Where on the command line the words have led to.
struct Place<'a> {
    command: &'a Command,
    positionals: Vec<&'a str>,
    remote: RemoteArgs,
    /// An option whose value comes next.
    pending: Option<&'a Arg>,
    /// After `--`.
    plain: bool,
}

/// The candidates for the last word, as lines.
pub(crate) fn lines(words: &[String]) -> String {
    let mut root = Cli::command();
    root.build();
    let (current, before) = words.split_last().map_or(("", &[][..]), |(last, before)| (last.as_str(), before));
    let found = Place::after(&root, before).candidates(current);
    found.into_iter().map(|one| format!("{}\t{}\n", one.text, one.help)).collect()
}

impl<'a> Place<'a> {
    fn after(root: &'a Command, words: &'a [String]) -> Place<'a> {
        let (positionals, remote) = (Vec::new(), RemoteArgs::default());
        let mut place = Place { command: root, positionals, remote, pending: None, plain: false };
        for word in words {
            place.step(word);
        }
        place
    }

    fn step(&mut self, word: &'a str) {
        if let Some(option) = self.pending.take() {
            self.note(option, word);
        } else if self.plain || !word.starts_with('-') || word == "-" {
            match self.command.find_subcommand(word).filter(|_| self.positionals.is_empty()) {
                Some(next) => self.command = next,
                None => self.positionals.push(word),
            }
        } else if word == "--" {
            self.plain = true;
        } else if let Some(text) = word.strip_prefix("--") {
            let (name, value) = text.split_once('=').map_or((text, None), |(name, value)| (name, Some(value)));
            match (self.option(name), value) {
                (Some(option), Some(value)) => self.note(option, value),
                (Some(option), None) if takes_value(option) => self.pending = Some(option),
                _ => {}
            }
        }
    }

    fn option(&self, name: &str) -> Option<&'a Arg> {
        self.command.get_arguments().find(|arg| arg.get_long() == Some(name))
    }

    /// Which manager is asked depends on what was typed.
    fn note(&mut self, option: &Arg, value: &str) {
        match option.get_id().as_str() {
            "server" => self.remote.server = Some(value.to_owned()),
            "data" => self.remote.data = Some(value.into()),
            _ => {}
        }
    }

    fn candidates(&self, current: &str) -> Vec<Candidate> {
        if let Some(option) = self.pending {
            return self.values(option, current);
        }
        if let Some((name, value)) = current.strip_prefix("--").and_then(|text| text.split_once('=')) {
            let found = self.option(name).map(|option| self.values(option, value)).unwrap_or_default();
            return found.into_iter().map(|one| Candidate { text: format!("--{name}={}", one.text), ..one }).collect();
        }
        if current.starts_with('-') && !self.plain {
            let long = |arg: &Arg| Some(candidate(&format!("--{}", arg.get_long()?), arg.get_help()));
            let shown = self.command.get_arguments().filter(|arg| !arg.is_hide_set());
            return shown.filter_map(long).filter(|one| one.text.starts_with(current)).collect();
        }
        if self.command.has_subcommands() {
            let shown = self.command.get_subcommands().filter(|command| !command.is_hide_set());
            let named = shown.map(|command| candidate(command.get_name(), command.get_about()));
            return named.filter(|one| one.text.starts_with(current)).collect();
        }
        let all: Vec<&Arg> = self.command.get_positionals().collect();
        let next = all.get(self.positionals.len()).or_else(|| all.last().filter(|last| repeats(last)));
        next.map(|arg| self.values(arg, current)).unwrap_or_default()
    }

    fn values(&self, arg: &Arg, current: &str) -> Vec<Candidate> {
        let fixed = arg.get_possible_values();
        if !fixed.is_empty() {
            let shown = fixed.iter().map(|value| candidate(value.get_name(), value.get_help()));
            return shown.filter(|one| one.text.starts_with(current)).collect();
        }
        // Commands that ask no manager name volumes and snapshots of a pool.
        if self.option("server").is_none() {
            return Vec::new();
        }
        let Some(noun) = self.noun(arg) else { return Vec::new() };
        let (remote, current) = (self.remote.clone(), current.to_owned());
        let vm = self.positionals.first().map(|vm| (*vm).to_owned());
        let (tell, told) = mpsc::channel();
        std::thread::spawn(move || tell.send(names(&remote, noun, &current, vm.as_deref()).unwrap_or_default()));
        told.recv_timeout(DEADLINE).unwrap_or_default()
    }

    fn noun(&self, arg: &Arg) -> Option<Noun> {
        let spec = arg.get_value_names().is_some_and(|names| names.iter().any(|name| name == "SPEC"));
        match arg.get_id().as_str() {
            "vm" | "vms" | "target" => Some(Noun::Vm),
            "snapshot" | "from" => Some(Noun::Snapshot),
            "source" => Some(Noun::Source),
            "template" => Some(Noun::Template),
            "job" => Some(Noun::Job),
            "host" => Some(Noun::Host),
            "disk" if !spec => Some(Noun::Disk),
            "nic" if !spec => Some(Noun::Nic),
            "name" if self.option("valid-for").is_none() && arg.is_positional() => {
                // Of the commands with a name only this one wants one that is there.
                (self.command.get_name() == "delete").then_some(Noun::Token)
            }
            _ => None,
        }
    }
}

fn candidate(text: &str, help: Option<&clap::builder::StyledStr>) -> Candidate {
    let help = help.map(ToString::to_string).unwrap_or_default();
    Candidate { text: text.to_owned(), help: help.lines().next().unwrap_or_default().to_owned() }
}

fn takes_value(arg: &Arg) -> bool {
    arg.get_action().takes_values() && arg.get_num_args().is_none_or(|count| count.min_values() > 0)
}

fn repeats(arg: &Arg) -> bool {
    arg.get_num_args().is_some_and(|count| count.max_values() > 1)
}

/// What the manager knows that begins so.
fn names(remote: &RemoteArgs, noun: Noun, current: &str, vm: Option<&str>) -> anyhow::Result<Vec<Candidate>> {
    let client = Client::to(Server::find(remote)?)?;
    let plain = |items: Vec<Value>, field: &str, help: &str| -> Vec<Candidate> {
        let text =
            |item: &Value| Some(Candidate { text: word(&item[field])?, help: word(&item[help]).unwrap_or_default() });
        items.iter().filter_map(text).filter(|one| one.text.starts_with(current)).collect()
    };
    let list = |path: &[&str], part: &str| {
        let search: Vec<(&str, String)> = if part.is_empty() { Vec::new() } else { vec![("search", part.to_owned())] };
        client.list(path, &search, Some(MOST))
    };
    Ok(match noun {
        Noun::Vm => plain(list(&["vms"], current)?, "name", "description"),
        Noun::Source if !current.contains('@') => plain(list(&["vms"], current)?, "name", "description"),
        Noun::Snapshot | Noun::Source => match current.split_once('@') {
            Some((vm, part)) => snapshots(vm, list(&["vms", vm, "snapshots"], part)?, part),
            None => {
                let vms = plain(list(&["vms"], current)?, "name", "description");
                match &vms[..] {
                    [one] => snapshots(&one.text, list(&["vms", &one.text, "snapshots"], "")?, ""),
                    _ => vms.into_iter().map(|vm| Candidate { text: format!("{}@", vm.text), ..vm }).collect(),
                }
            }
        },
        Noun::Template => plain(list(&["templates"], current)?, "name", "description"),
        Noun::Job => plain(client.list(&["jobs"], &[], Some(MOST))?, "id", "title"),
        Noun::Host => plain(array(client.get(&["hosts"], &[])?.value), "name", "status"),
        Noun::Token => plain(array(client.get(&["tokens"], &[])?.value), "name", "id"),
        Noun::Disk => match vm {
            Some(vm) => plain(array(client.get(&["vms", vm, "disks"], &[])?.value), "name", "id"),
            None => Vec::new(),
        },
        Noun::Nic => match vm {
            Some(vm) => nics(array(client.get(&["vms", vm], &[])?.value["hardware"]["nics"].take()), current),
            None => Vec::new(),
        },
    })
}

fn snapshots(vm: &str, items: Vec<Value>, part: &str) -> Vec<Candidate> {
    let one = |item: &Value| {
        let name = word(&item["name"]).filter(|name| name.starts_with(part))?;
        Some(Candidate { text: format!("{vm}@{name}"), help: word(&item["kind"]).unwrap_or_default() })
    };
    items.iter().filter_map(one).collect()
}

/// Each by its place; an address is not typed.
fn nics(items: Vec<Value>, current: &str) -> Vec<Candidate> {
    let one = |item: &Value| {
        let text = item["slot"].as_u64()?.to_string();
        Some(Candidate { text, help: word(&item["mac"]).unwrap_or_default() })
    };
    items.iter().filter_map(one).filter(|one| one.text.starts_with(current)).collect()
}

fn array(value: Value) -> Vec<Value> {
    match value {
        Value::Array(items) => items,
        _ => Vec::new(),
    }
}

fn word(value: &Value) -> Option<String> {
    // A line has one candidate, and one tab.
    value.as_str().map(|text| text.replace(['\t', '\n', '\r'], " "))
}

/// The script for a shell that is taught by us; the others get one without names.
pub(crate) fn script(shell: clap_complete::Shell) -> String {
    match shell {
        clap_complete::Shell::Bash => BASH.to_owned(),
        clap_complete::Shell::Zsh => ZSH.to_owned(),
        clap_complete::Shell::Fish => FISH.to_owned(),
        other => {
            let mut script = Vec::new();
            clap_complete::generate(other, &mut Cli::command(), "keyframe", &mut script);
            String::from_utf8_lossy(&script).into_owned()
        }
    }
}

/// Bash takes `@` and `=` for the beginning of a word; what it has put aside has to be left out of the candidates.
const BASH: &str = r#"_keyframe() {
    local line="${COMP_LINE:0:COMP_POINT}" words current aside="" candidate
    read -r -a words <<< "$line"
    [[ "$line" == *[[:space:]] ]] && words+=("")
    current="${words[${#words[@]}-1]}"
    [[ "$COMP_WORDBREAKS" == *=* && "$current" == *=* ]] && aside="${current%"${current##*=}"}"
    [[ "$COMP_WORDBREAKS" == *@* && "$current" == *@* ]] && aside="${current%"${current##*@}"}"
    COMPREPLY=()
    while IFS=$'\t' read -r candidate _; do
        COMPREPLY+=("${candidate#"$aside"}")
    done < <("${COMP_WORDS[0]}" __complete -- "${words[@]:1}" 2>/dev/null)
    [[ "${COMPREPLY[0]}" == *@ ]] && compopt -o nospace 2>/dev/null
    return 0
}
complete -o default -F _keyframe keyframe
"#;

const ZSH: &str = r#"#compdef keyframe
_keyframe() {
    local line
    local -a plain open
    while IFS= read -r line; do
        line="${line%%$'\t'*}"
        if [[ "$line" == *@ ]]; then open+=("$line"); else plain+=("$line"); fi
    done < <("${words[1]}" __complete -- "${(@)words[2,CURRENT]}" 2>/dev/null)
    (( ${#plain} )) && compadd -- "${plain[@]}"
    (( ${#open} )) && compadd -S '' -- "${open[@]}"
    (( ${#plain} + ${#open} )) || _files
}
if [ "$funcstack[1]" = "_keyframe" ]; then _keyframe "$@"; else compdef _keyframe keyframe; fi
"#;

const FISH: &str = r#"function __keyframe_complete
    set -l words (commandline -opc)
    $words[1] __complete -- $words[2..-1] (commandline -ct) 2>/dev/null
end
complete -c keyframe -a '(__keyframe_complete)'
"#;

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(line: &str) -> Vec<String> {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        lines(&words).lines().map(|line| line.split('\t').next().unwrap().to_owned()).collect()
    }

    #[test]
    fn what_is_known_without_a_manager() {
        assert_eq!(texts("snap"), ["snapshot"]);
        assert_eq!(texts("snapshot ap"), ["apply"]);
        assert_eq!(texts("snapshot apply web@a --no-keep"), ["--no-keep-memory"]);
        assert_eq!(texts("vm create x --firmware "), ["bios", "uefi"]);
        assert_eq!(texts("vm create x --firmware=u"), ["--firmware=uefi"]);
        assert_eq!(texts("snapshot create web --quiesce "), Vec::<String>::new(), "it need not have a value");
        assert!(texts("").contains(&"vm".to_owned()));
        assert!(!texts("").iter().any(|text| text.starts_with("__") || text == "helper"), "the hidden stay so");
        assert_eq!(texts("completion fi"), ["fish"]);
    }

    /// Without a manager there are no names, no complaint, and no waiting.
    #[test]
    fn nobody_there_is_silence() {
        let began = std::time::Instant::now();
        assert_eq!(texts("snapshot show --server /nowhere/at/all w"), Vec::<String>::new());
        assert!(began.elapsed() < DEADLINE * 4);
    }
}
