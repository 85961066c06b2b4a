//! A PostgreSQL server of Debian's on a Unix socket, which ends with who started it, and can be taken away before that.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, ensure};
use parking_lot::Mutex;
use rustix::process::geteuid;

use crate::process::run_tool;

/// Obeys the lines on its standard input, and answers each with one. Ends with its input, which is when this process does,
/// however that comes.
const SCRIPT: &str = r#"
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
"$1/initdb" -D "$dir/data" -A trust -U keyframe --no-sync --locale=C -E UTF8 >"$dir/log" 2>&1 || { cat "$dir/log" >&2; exit 1; }
start() {
    "$1/postgres" -D "$dir/data" -k "$dir" -c listen_addresses= -c fsync=off -c max_connections=300 >>"$dir/log" 2>&1 </dev/null &
    pid=$!
    until "$1/pg_isready" -q -h "$dir" -U keyframe; do kill -0 $pid || { cat "$dir/log" >&2; exit 1; }; sleep 0.05; done
}
end() { [ -z "$pid" ] || { kill "-$1" "$pid"; wait "$pid" || true; pid=; }; }
start "$1"
echo "$dir"
while read -r order; do
    case $order in crash) end QUIT ;; *) start "$1" ;; esac
    echo "$order"
done
end INT
"#;

/// A server. Its databases are without a durability that nobody needs here: it is never the machine that loses power.
pub struct Postgres {
    bin: PathBuf,
    socket: String,
    keeper: Mutex<Keeper>,
}

struct Keeper {
    process: Child,
    // Ends the script when it is closed.
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Postgres {
    /// Starts one, with no database of ours yet.
    pub fn start() -> Result<Postgres> {
        let bin = newest_bin()?;
        let script = ["sh", "-c", SCRIPT, "sh", bin.to_str().context("a path that is no text")?];
        // PostgreSQL refuses to run as root.
        let mut command = if geteuid().is_root() {
            let mut command = Command::new("runuser");
            command.args(["-u", "postgres", "--"]).args(script);
            command
        } else {
            let mut command = Command::new(script[0]);
            command.args(&script[1..]);
            command
        };
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("start PostgreSQL")?;
        let orders = process.stdin.take();
        let answers = BufReader::new(process.stdout.take().context("a keeper without an output")?);
        let mut keeper = Keeper { process, orders, answers };
        let socket = keeper.answer()?;
        Ok(Postgres { bin, socket, keeper: Mutex::new(keeper) })
    }

    /// Makes a database; its URL.
    pub fn create(&self, name: &str) -> Result<String> {
        run_tool(Command::new(self.bin.join("createdb")).args(["-h", &self.socket, "-U", "keyframe", name]))?;
        Ok(format!("postgres://keyframe@localhost/{name}?host={}", self.socket))
    }

    /// Asks a database; the rows as text, columns divided by `|`.
    pub fn ask(&self, name: &str, query: &str) -> Result<String> {
        let mut command = Command::new(self.bin.join("psql"));
        run_tool(command.args(["-X", "-A", "-t", "-h", &self.socket, "-U", "keyframe", "-d", name, "-c", query]))
    }

    /// Ends the server in the middle of whatever it does.
    pub fn crash(&self) -> Result<()> {
        self.order("crash")
    }

    /// Starts it again on what it had.
    pub fn recover(&self) -> Result<()> {
        self.order("recover")
    }

    fn order(&self, order: &str) -> Result<()> {
        let mut keeper = self.keeper.lock();
        let orders = keeper.orders.as_mut().context("the keeper has ended")?;
        writeln!(orders, "{order}").context("tell PostgreSQL's keeper")?;
        let answer = keeper.answer()?;
        ensure!(answer == order, "PostgreSQL's keeper was told to {order}, and answers {answer:?}");
        Ok(())
    }
}

impl Keeper {
    fn answer(&mut self) -> Result<String> {
        let mut line = String::new();
        self.answers.read_line(&mut line).context("hear PostgreSQL's keeper")?;
        ensure!(!line.is_empty(), "PostgreSQL does not run; what it said is above");
        Ok(line.trim().to_owned())
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.orders.take());
        if let Err(e) = self.process.wait() {
            eprintln!("cannot wait for PostgreSQL's end: {e}");
        }
    }
}

fn newest_bin() -> Result<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let bins = versions.filter_map(|entry| {
        let version: u32 = entry.file_name().to_str()?.parse().ok()?;
        let bin = entry.path().join("bin");
        bin.join("postgres").exists().then_some((version, bin))
    });
    let newest = bins.max().context("PostgreSQL's server is missing: install Debian's postgresql with ./x setup")?;
    Ok(newest.1)
}
