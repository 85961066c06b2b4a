//! Completion of names against an installation that runs, by the shells themselves where they are installed.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::Path;
use std::process::{Command, Output};

const KEYFRAME: &str = env!("CARGO_BIN_EXE_keyframe");

struct Installation {
    dir: tempfile::TempDir,
}

impl Drop for Installation {
    fn drop(&mut self) {
        self.run(&["down", "--vms"]);
    }
}

impl Installation {
    fn up() -> Installation {
        let dir = tempfile::Builder::new().prefix("kf").tempdir().unwrap();
        let up = Installation { dir };
        up.good(&["up"]);
        up
    }

    fn data(&self) -> &Path {
        self.dir.path()
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("KEYFRAME_DATA", self.data()).env("KEYFRAME_LISTEN", "off").env("KEYFRAME_POOL_SIZE", "64M");
        command.env_remove("KEYFRAME_SERVER");
        command
    }

    fn run(&self, words: &[&str]) -> Output {
        self.command(KEYFRAME).args(words).output().unwrap()
    }

    #[track_caller]
    fn good(&self, words: &[&str]) -> String {
        let output = self.run(words);
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    #[track_caller]
    fn completes(&self, line: &str, expected: &[&str]) {
        let words: Vec<&str> = ["__complete", "--"].into_iter().chain(line.split(' ')).collect();
        let output = self.good(&words);
        let found: Vec<&str> = output.lines().map(|line| line.split('\t').next().unwrap()).collect();
        assert_eq!(found, expected, "{line}");
    }

    /// What bash would offer for the line.
    #[track_caller]
    fn bash(&self, line: &str, expected: &str) {
        let script = format!(
            "source <(keyframe completion bash); COMP_LINE='{line}'; COMP_POINT=${{#COMP_LINE}}; COMP_WORDS=(keyframe); \
             _keyframe 2>/dev/null; echo \"${{COMPREPLY[*]}}\""
        );
        let folder = Path::new(KEYFRAME).parent().unwrap().display();
        let path = format!("{folder}:{}", std::env::var("PATH").unwrap());
        let output = self.command("bash").env("PATH", path).args(["--norc", "-c", &script]).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap().trim_end(), expected, "{line}");
    }
}

#[test]
fn names_are_completed_and_nobody_waits_for_a_manager_that_is_down() {
    let up = Installation::up();
    for vm in ["web-1", "web-2", "other"] {
        up.good(&["vm", "create", vm, "--memory", "32M", "--disk", "size=1M,name=data"]);
    }
    up.good(&["snapshot", "create", "web-1@before"]);
    up.good(&["snapshot", "create", "web-1@after"]);
    up.good(&["template", "create", "other", "--name", "golden"]);
    let jobs = up.good(&["job", "list", "--limit", "1", "--json"]);
    let jobs: serde_json::Value = serde_json::from_str(&jobs).unwrap();
    let job = jobs[0]["id"].as_str().unwrap();

    up.completes("vm start web", &["web-1", "web-2"]);
    up.completes("vm start web-1 o", &["other"]);
    up.completes("snapshot show web", &["web-1@", "web-2@"]);
    up.completes("snapshot show web-1", &["web-1@before", "web-1@after"]);
    up.completes("snapshot apply web-1@a", &["web-1@after"]);
    up.completes("snapshot create web-2", &["web-2"]);
    up.completes("clone o", &["other"]);
    up.completes("clone --template g", &["golden"]);
    up.completes("clone --template=g", &["--template=golden"]);
    up.completes("disk detach web-1 d", &["data"]);
    for verb in ["remove", "plug", "unplug"] {
        up.completes(&format!("nic {verb} web-1 "), &["0"]);
    }
    up.completes("snapshot list --state d", &["deleting"]);
    up.completes(&format!("job show {}", &job[..30]), &[job]);
    up.completes("host show ", &["local"]);
    up.completes("token delete ad", &["admin"]);
    up.completes("vm create o", &[]);
    let elsewhere = format!("vm start --data {} web", up.data().display());
    up.completes(&elsewhere, &["web-1", "web-2"]);

    up.bash("keyframe vm start web", "web-1 web-2");
    up.bash("keyframe snapshot apply web-1@", "before after");
    up.bash("keyframe clone --template=g", "golden");

    up.good(&["down"]);
    let began = std::time::Instant::now();
    up.completes("vm start web", &[]);
    assert!(began.elapsed().as_secs() < 5, "{:?}", began.elapsed());
    let there = up.good(&["completion", "zsh"]) + &up.good(&["completion", "fish"]);
    assert!(there.matches("__complete").count() >= 2);
}
