//! One PostgreSQL server for all tests of this process, and a database for each.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// Starts a server and ends it when its standard input ends, which is when this process does, however that comes.
const SCRIPT: &str = r#"
set -eu
dir=$(mktemp -d /tmp/keyframe-postgres.XXXXXX)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
"$1/initdb" -D "$dir/data" -A trust -U keyframe --no-sync --locale=C -E UTF8 >"$dir/log" 2>&1 || { cat "$dir/log" >&2; exit 1; }
"$1/postgres" -D "$dir/data" -k "$dir" -c listen_addresses= -c fsync=off -c max_connections=300 >"$dir/log" 2>&1 </dev/null &
pid=$!
until "$1/pg_isready" -q -h "$dir" -U keyframe; do kill -0 $pid || { cat "$dir/log" >&2; exit 1; }; sleep 0.05; done
echo "$dir"
read -r _ || true
kill -INT $pid
wait $pid
"#;

struct Server {
    bin: PathBuf,
    socket: String,
    _keeper: Child,
}

static SERVER: OnceLock<Server> = OnceLock::new();

impl Server {
    fn start() -> Server {
        let bin = newest_bin();
        let script = ["sh", "-c", SCRIPT, "sh", bin.to_str().unwrap()];
        // PostgreSQL refuses to run as root.
        let mut command = if rustix::process::geteuid().is_root() {
            let mut command = Command::new("runuser");
            command.args(["-u", "postgres", "--"]).args(script);
            command
        } else {
            let mut command = Command::new(script[0]);
            command.args(&script[1..]);
            command
        };
        let mut keeper = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut socket = String::new();
        BufReader::new(keeper.stdout.take().unwrap()).read_line(&mut socket).unwrap();
        assert!(!socket.is_empty(), "PostgreSQL does not start; what it said is above");
        Server { bin, socket: socket.trim().to_owned(), _keeper: keeper }
    }
}

fn newest_bin() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let bins = versions.filter_map(|entry| {
        let version: u32 = entry.file_name().to_str()?.parse().ok()?;
        let bin = entry.path().join("bin");
        bin.join("postgres").exists().then_some((version, bin))
    });
    bins.max().expect("PostgreSQL's server is missing: install Debian's postgresql with ./x setup").1
}

/// The URL of a new, empty database.
pub(crate) fn new_database() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let server = SERVER.get_or_init(Server::start);
    let name = format!("test{}", NEXT.fetch_add(1, Ordering::SeqCst));
    let made = Command::new(server.bin.join("createdb"))
        .args(["-h", &server.socket, "-U", "keyframe", &name])
        .stdin(Stdio::null())
        .status()
        .unwrap();
    assert!(made.success());
    format!("postgres://keyframe@localhost/{name}?host={}", server.socket)
}
