//! Where and with what a run was made: a figure without it means nothing.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::plan::Scale;

/// The first line a command prints, or why there is none.
fn first_line(program: &str, arguments: &[&str]) -> String {
    match Command::new(program).args(arguments).output() {
        Ok(output) => String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or("unknown").to_owned(),
        Err(e) => format!("not found ({e})"),
    }
}

fn field(file: &str, name: &str) -> String {
    let text = fs::read_to_string(file).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with(name)).and_then(|line| line.split_once(':'));
    line.map_or_else(|| "unknown".to_owned(), |(_, value)| value.trim().to_owned())
}

fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

/// When, of what commit, and how busy the machine is.
pub(crate) fn now(scale: Scale) -> String {
    let (date, commit) =
        (first_line("date", &["-u", "+%F %H:%M UTC"]), first_line("git", &["describe", "--always", "--dirty"]));
    format!("{date}, commit {commit}, {} scale, load before it {}.", format!("{scale:?}").to_lowercase(), load())
}

/// Named facts.
pub(crate) fn describe(dir: &Path, scale: Scale) -> Vec<(String, String)> {
    let cores = std::thread::available_parallelism().map_or(0, |n| n.get());
    let dir = dir.display().to_string();
    let file_system = first_line("findmnt", &["-n", "-o", "FSTYPE,SOURCE,OPTIONS", "--target", &dir]);
    let facts = [
        ("date", first_line("date", &["-u", "+%F %H:%M UTC"])),
        ("commit", first_line("git", &["describe", "--always", "--dirty"])),
        ("scale", format!("{scale:?}").to_lowercase()),
        ("processor", format!("{} × {cores}", field("/proc/cpuinfo", "model name"))),
        ("memory", field("/proc/meminfo", "MemTotal")),
        ("load before the run (1, 5, 15 minutes)", load()),
        ("kernel", first_line("uname", &["-sr"])),
        ("file system", file_system),
        ("fio", first_line("fio", &["--version"])),
        ("qemu-nbd", first_line("qemu-nbd", &["--version"])),
        ("nbdkit", first_line("nbdkit", &["--version"])),
        ("qemu", first_line("qemu-system-x86_64", &["--version"])),
        ("libvirt", first_line("libvirtd", &["--version"])),
    ];
    facts.map(|(key, value)| (key.to_owned(), value)).to_vec()
}
