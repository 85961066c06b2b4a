//! A Keyframe of its own in a folder of its own: `keyframe up`, the command line, and everything ended when dropped.
//!
//! Everything is asked the way a user asks. Only few things go past the command line: signals to processes, by the numbers
//! in their process id files, reading the consoles that machines leave in the data directory, and the answer to whether KVM works.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use parking_lot::{Mutex, MutexGuard};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::guest::Guest;
use crate::machine::Machine;
use crate::scratch;

/// How a site is to be.
#[derive(Clone, Debug)]
pub struct SiteOptions {
    /// The pool's size, as `keyframe.toml` wants it.
    pub pool_size: &'static str,
    /// Where the data directory is made, if not in the checkout's scratch folder.
    pub under: Option<PathBuf>,
    /// No supervisor: who was killed stays dead until [`Site::revive`].
    pub apart: bool,
    /// Only a manager is here; somebody else runs the agent that it is told of.
    pub agent_elsewhere: bool,
    /// More of the section `manager` of `keyframe.toml`.
    pub manager: String,
}

impl Default for SiteOptions {
    fn default() -> SiteOptions {
        let manager = "listen = \"off\"".to_owned();
        SiteOptions { pool_size: "8G", under: None, apart: false, agent_elsewhere: false, manager }
    }
}

/// Tests of one program take turns.
static TURN: Mutex<()> = Mutex::new(());

/// An installation under test; the only one of this process.
pub struct Site {
    keyframe: PathBuf,
    data: PathBuf,
    guest: Guest,
    roles: &'static [Role],
    _work: TempDir,
    _turn: MutexGuard<'static, ()>,
}

/// A process that can be killed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Runs the machines.
    Agent,
    /// Knows about them.
    Manager,
    /// Keeps the other two running.
    Supervisor,
}

impl Role {
    fn noun(self) -> &'static str {
        match self {
            Role::Agent => "agent",
            Role::Manager => "manager",
            Role::Supervisor => "up",
        }
    }
}

/// Where our processes write their logs, with a supervisor and without.
const LOGS: [&str; 3] = ["keyframe.log", "agent.log", "manager.log"];
/// The folder where jobs are held, see [`crate::hold`].
pub(crate) const BREAKPOINTS: &str = "breakpoints";

/// Longest wait for anything that is not a guest's boot.
pub const PATIENCE: Duration = Duration::from_secs(60);

impl Site {
    /// Makes a site and starts it.
    pub fn up(keyframe: &Path, options: &SiteOptions) -> Result<Site> {
        ensure!(keyframe.is_file(), "no keyframe binary at {}; build it first", keyframe.display());
        let keyframe = fs::canonicalize(keyframe)?;
        let turn = TURN.lock();
        let guest = Guest::prepare()?;
        let work = match &options.under {
            Some(folder) => tempfile::Builder::new().prefix("kf-").tempdir_in(folder)?,
            None => scratch::work_folder()?,
        };
        let data = work.path().to_owned();
        let config = format!(
            "name = \"lab\"\n[log]\nfilter = \"{}\"\n[agent]\npool_size = \"{}\"\ncache = \"64M\"\n[manager]\n{}\n",
            std::env::var("KEYFRAME_LAB_LOG").unwrap_or_else(|_| "info".into()),
            options.pool_size,
            options.manager
        );
        fs::write(data.join("keyframe.toml"), config)?;
        fs::create_dir(data.join(BREAKPOINTS))?;
        let roles: &[Role] = match (options.agent_elsewhere, options.apart) {
            (true, _) => &[Role::Manager],
            (false, true) => &[Role::Agent, Role::Manager],
            (false, false) => &[],
        };
        let site = Site { keyframe, data, guest, roles, _work: work, _turn: turn };
        if options.agent_elsewhere {
            site.start()?;
            return Ok(site);
        }
        Site::know_the_trial(&site.data)?;
        site.start()?;
        Site::share_trial(&site.data, |of_all, own| (own, of_all))?;
        Ok(site)
    }

    /// Spares an agent that will have this data directory the trial that another has made.
    pub fn know_the_trial(data: &Path) -> Result<()> {
        Site::share_trial(data, |of_all, own| (of_all, own))
    }

    /// Whether the processor runs guests takes a trial of ten seconds where it does not: one for all sites.
    fn share_trial(data: &Path, direction: impl Fn(PathBuf, PathBuf) -> (PathBuf, PathBuf)) -> Result<()> {
        const ANSWER: &str = "accelerator.json";
        let machines = data.join("vms");
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&machines)?;
        let (from, to) = direction(scratch::folder()?.join(ANSWER), machines.join(ANSWER));
        if from.exists() && !to.exists() {
            fs::copy(&from, &to).with_context(|| format!("copy {}", from.display()))?;
        }
        Ok(())
    }

    /// `keyframe up` on the same data, or what there is instead.
    pub fn start(&self) -> Result<String> {
        if !self.roles.is_empty() {
            self.roles.iter().try_for_each(|role| self.revive(*role))?;
            return self.wait_until_up().map(|()| String::new());
        }
        self.run(["up"]).with_context(|| format!("the log ends: {}", self.log()))
    }

    /// Starts one of our processes where there is no supervisor, as soon as the one before has let go of its files.
    pub fn revive(&self, role: Role) -> Result<()> {
        let noun = role.noun();
        let file = self.data.join("run").join(format!("{noun}.pid"));
        self.wait_until(PATIENCE, || match fs::File::open(&file).map(|file| file.try_lock()) {
            Ok(Err(e)) => Err(e).with_context(|| format!("{} is held", file.display())),
            Ok(Ok(())) | Err(_) => Ok(()),
        })?;
        self.run([noun]).map(drop)
    }

    /// `keyframe down`, machines run on.
    pub fn down(&self) -> Result<String> {
        self.run(["down"])
    }

    /// The data directory.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// The test guest's files.
    pub fn guest(&self) -> &Guest {
        &self.guest
    }

    /// The ends of the logs.
    pub fn log(&self) -> String {
        let end = |name: &&str| {
            let text = fs::read_to_string(self.log_file(name)?).ok()?;
            let lines: Vec<&str> = text.lines().collect();
            Some(lines[lines.len().saturating_sub(8)..].join("\n"))
        };
        LOGS.iter().filter_map(end).collect::<Vec<_>>().join("\n")
    }

    /// A log that can be read to its end.
    fn log_file(&self, name: &str) -> Option<PathBuf> {
        Some(self.data.join(name)).filter(|file| file.is_file())
    }

    /// Copies the logs of everything into a folder of this site's name.
    fn keep_logs(&self, folder: &Path) -> Result<()> {
        let to = folder.join(self.data.file_name().context("a site has a name")?);
        fs::create_dir_all(&to)?;
        for log in LOGS {
            if let Some(file) = self.log_file(log) {
                fs::copy(file, to.join(log))?;
            }
        }
        for machine in fs::read_dir(self.data.join("vms"))?.filter_map(Result::ok) {
            for log in ["console.log", "qemu.log"] {
                let from = machine.path().join(log);
                if from.exists() {
                    fs::copy(from, to.join(format!("{}-{log}", machine.file_name().to_string_lossy())))?;
                }
            }
        }
        Ok(())
    }

    /// A command line that is yet to be run, on this site.
    pub fn command(&self, line: impl IntoIterator<Item: AsRef<OsStr>>) -> Command {
        let mut command = Command::new(&self.keyframe);
        command.args(line).env("KEYFRAME_DATA", &self.data);
        command
            .env("KEYFRAME_BREAKPOINTS", self.data.join(BREAKPOINTS))
            .env_remove("KEYFRAME_SERVER")
            .stdin(Stdio::null());
        command
    }

    /// Runs a command as a user would; what it prints. A refusal is the error, in the command's own words.
    pub fn run(&self, line: impl IntoIterator<Item: AsRef<OsStr>>) -> Result<String> {
        let mut command = self.command(line);
        let output = command.output().with_context(|| format!("start {command:?}"))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let line: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(anyhow!(said).context(format!("`keyframe {}`", line.join(" "))))
    }

    /// The same with `--json`.
    pub fn json(&self, line: impl IntoIterator<Item: AsRef<OsStr>>) -> Result<Value> {
        let line = line.into_iter().map(|word| word.as_ref().to_owned()).chain([OsStr::new("--json").to_owned()]);
        let text = self.run(line)?;
        serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))
    }

    /// What a command says that must be refused.
    pub fn refusal(&self, line: impl IntoIterator<Item: AsRef<OsStr>>) -> Result<String> {
        match self.run(line) {
            Ok(said) => bail!("it was not refused: {said}"),
            Err(error) => Ok(error.root_cause().to_string()),
        }
    }

    /// Makes a machine of the test guest's two disks, with `more` on its command line; does not start it.
    pub fn create(&self, name: &str, memory: &str, more: &str) -> Result<Machine<'_>> {
        self.create_with(name, memory, more, &[])
    }

    /// The same with more options.
    pub fn create_with(&self, name: &str, memory: &str, more: &str, options: &[&str]) -> Result<Machine<'_>> {
        let guest = &self.guest;
        let text = |path: &Path| path.display().to_string();
        let append = format!("console=ttyS0 quiet panic=-1 {more}");
        let disks = [("root", &guest.root_image), ("data", &guest.data_image)];
        let disks = disks.map(|(name, image)| format!("image={},name={name}", image.display()));
        let line = ["vm", "create", name, "--memory", memory, "--disk", &disks[0], "--disk", &disks[1]];
        let boot = ["--kernel", &text(&guest.kernel), "--initrd", &text(&guest.initrd), "--append", &append];
        self.json(line.into_iter().chain(boot).chain(options.iter().copied()))?;
        self.machine(name)
    }

    /// A machine that is there.
    pub fn machine(&self, name: &str) -> Result<Machine<'_>> {
        Machine::find(self, name)
    }

    /// Makes a machine as [`Site::create`] does, starts it, and waits until its guest is up.
    pub fn boot(&self, name: &str, memory: &str, more: &str) -> Result<Machine<'_>> {
        let machine = self.create(name, memory, more)?;
        machine.start()?;
        Ok(machine)
    }

    /// Kills one of our processes as a crash would; the supervisor starts it again.
    pub fn kill(&self, role: Role) -> Result<()> {
        let pid = self.pid(role)?;
        kill_process(pid, Signal::KILL).with_context(|| format!("kill the {role:?}"))
    }

    /// The process id in one of our process id files.
    pub fn pid(&self, role: Role) -> Result<Pid> {
        let name = match role {
            Role::Agent => "agent.pid",
            Role::Manager => "manager.pid",
            Role::Supervisor => "keyframe.pid",
        };
        read_pid(&self.data.join("run").join(name))
    }

    /// Waits until `look` is satisfied; it says what is missing.
    pub fn wait_until(&self, patience: Duration, mut look: impl FnMut() -> Result<()>) -> Result<()> {
        let deadline = Instant::now() + patience;
        loop {
            match look() {
                Ok(()) => return Ok(()),
                Err(e) if Instant::now() > deadline => {
                    return Err(e.context(format!("still so after {patience:?}; the log ends:\n{}", self.log())));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    /// Waits until the agent and the manager answer again.
    pub fn wait_until_up(&self) -> Result<()> {
        self.wait_until(PATIENCE, || {
            let hosts = self.json(["host", "list"])?;
            ensure!(hosts[0]["status"] == "up", "the host is not up: {hosts}");
            Ok(())
        })
    }
}

/// The process id in a file.
pub fn read_pid(file: &Path) -> Result<Pid> {
    let text = fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    let number = text.trim().parse().ok().and_then(Pid::from_raw);
    number.with_context(|| format!("no process id in {}: {text:?}", file.display()))
}

/// Whether a process is there, and not only what nobody has asked about since it ended.
pub fn runs(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    state.is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

impl Drop for Site {
    fn drop(&mut self) {
        if let Err(e) = self.run(["down"]) {
            eprintln!("{e:#}; the log of {} ends:\n{}", self.data.display(), self.log());
        }
        scratch::kill_those_of(&self.data);
        if let Some(folder) = std::env::var_os("KEYFRAME_LAB_LOGS")
            && let Err(e) = self.keep_logs(Path::new(&folder))
        {
            eprintln!("cannot keep the logs: {e:#}");
        }
    }
}
