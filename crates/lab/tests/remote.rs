//! An agent on another host: a manager with a certificate of its authority does everything over TLS, and nobody else gets in.

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use keyframe_lab::process::{Ending, Process, run_tool};
use keyframe_lab::scratch;
use keyframe_lab::site::{PATIENCE, Role, Site, SiteOptions};
use serde_json::Value;

/// An agent with a data directory of its own, as on another host.
struct Far {
    data: PathBuf,
    port: u16,
    _process: Process,
}

impl Drop for Far {
    fn drop(&mut self) {
        // Its machines outlive it.
        scratch::kill_those_of(&self.data);
    }
}

/// A certificate authority in a folder, by the commands in `README.md`.
fn authority(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir)?;
    let mut command = Command::new("openssl");
    command.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"]);
    command.args(["-subj", "/CN=Keyframe", "-keyout", "ca.key", "-out", "ca.pem"]).current_dir(dir);
    run_tool(&mut command).map(drop)
}

/// A certificate for `host` in `NAME.pem`, its key in `NAME.key`, both in `NAME-identity.pem`.
fn issue(dir: &Path, name: &str, host: &str) -> Result<()> {
    let mut command = Command::new("openssl");
    command.args(["req", "-x509", "-CA", "ca.pem", "-CAkey", "ca.key", "-newkey", "ec", "-pkeyopt"]);
    command.args(["ec_paramgen_curve:P-256", "-nodes", "-days", "1", "-subj", &format!("/CN={name}")]);
    command.args(["-addext", &format!("subjectAltName=DNS:{host}"), "-addext", "basicConstraints=CA:FALSE"]);
    command.args(["-keyout", &format!("{name}.key"), "-out", &format!("{name}.pem")]).current_dir(dir);
    run_tool(&mut command)?;
    let [cert, key] = ["pem", "key"].map(|kind| fs::read_to_string(dir.join(format!("{name}.{kind}"))));
    Ok(fs::write(dir.join(format!("{name}-identity.pem")), cert? + &key?)?)
}

fn far_agent(data: &Path, certificates: &Path) -> Result<Far> {
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let file = |name: &str| certificates.join(name).display().to_string();
    let (cert, key, ca) = (file("agent.pem"), file("agent.key"), file("ca.pem"));
    let config = format!(
        "name = \"far\"\n[agent]\npool_size = \"1G\"\ncache = \"64M\"\nlisten = \"127.0.0.1:{port}\"\n\
         tls = {{ cert = \"{cert}\", key = \"{key}\", ca = \"{ca}\" }}\n"
    );
    fs::create_dir_all(data)?;
    fs::write(data.join("keyframe.toml"), config)?;
    Site::know_the_trial(data)?;
    let mut command = Command::new(scratch::keyframe()?);
    command.args(["agent", "--foreground", "--data"]).arg(data);
    let process = Process::spawn("the agent", &mut command, Ending::Ask, &data.join("agent.log"))?;
    Ok(Far { data: data.to_owned(), port, _process: process })
}

/// The section of a manager that reaches the agent as `host`, and shows `identity`.
fn manager(far: &Far, host: &str, ca: &Path, identity: &Path) -> String {
    let (port, ca, identity) = (far.port, ca.display(), identity.display());
    format!("listen = \"off\"\nagent = \"{host}:{port}\"\nagent_tls = {{ ca = \"{ca}\", identity = \"{identity}\" }}")
}

/// What a client of the agent gets that is no manager.
fn curl(far: &Far, scheme: &str, certificates: &[&str]) -> Result<String> {
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--fail", "--max-time", "20"]).args(certificates);
    command.arg(format!("{scheme}://localhost:{}/v1/host", far.port));
    run_tool(&mut command)
}

#[test]
fn a_manager_works_over_tls_and_nobody_else_gets_in() -> Result<()> {
    let work = scratch::work_folder()?;
    let (ours, theirs) = (work.path().join("ours"), work.path().join("theirs"));
    authority(&ours)?;
    authority(&theirs)?;
    issue(&ours, "agent", "localhost")?;
    issue(&ours, "manager", "manager")?;
    issue(&theirs, "stranger", "manager")?;
    let far = far_agent(&work.path().join("far"), &ours)?;
    let section = manager(&far, "localhost", &ours.join("ca.pem"), &ours.join("manager-identity.pem"));
    let options = SiteOptions { agent_elsewhere: true, manager: section, ..SiteOptions::default() };
    let site = Site::up(&scratch::keyframe()?, &options)?;

    everything_works(&site)?;
    others_are_refused(&far, &ours, &theirs)?;
    managers_say_what_is_wrong(&site, &far, &ours, &theirs)
}

fn everything_works(site: &Site) -> Result<()> {
    let small = ["--memory", "32M", "--disk", "size=8M", "--nic", "none", "--start"];
    site.run(["vm", "create", "web"].iter().chain(&small))?;
    site.run(["snapshot", "create", "web@one", "--memory"])?;
    let mut console = site.command(["console", "web"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
    console.stdin.take().context("no keyboard")?.write_all(b"\x1d")?;
    ensure!(console.wait()?.success(), "there is no console");
    site.run(["snapshot", "apply", "web@one", "--discard-current"])?;
    let web = site.json(["vm", "show", "web"])?;
    ensure!(web["state"]["power"] == "running", "it does not run: {web}");
    site.run(["snapshot", "delete", "web@one"])?;
    site.run(["vm", "delete", "web", "--force"])?;
    ensure!(site.json(["vm", "list"])? == serde_json::json!([]), "the machine is still there");
    ensure!(!site.data().join("pool.kf").exists(), "there is a pool beside the manager");
    Ok(())
}

fn others_are_refused(far: &Far, ours: &Path, theirs: &Path) -> Result<()> {
    let file = |dir: &Path, name: &str| dir.join(name).display().to_string();
    let (ca, manager) = (file(ours, "ca.pem"), file(ours, "manager-identity.pem"));
    let (their_ca, stranger) = (file(theirs, "ca.pem"), file(theirs, "stranger-identity.pem"));
    let known = curl(far, "https", &["--cacert", &ca, "--cert", &manager])?;
    ensure!(known.contains("\"far\""), "not the agent's answer: {known}");
    let refused = |scheme: &str, certificates: &[&str], part: &str| -> Result<()> {
        let said = match curl(far, scheme, certificates) {
            Ok(said) => anyhow::bail!("{scheme} {certificates:?} was let in: {said}"),
            Err(error) => format!("{error:#}"),
        };
        println!("{scheme} {certificates:?}: {said}");
        ensure!(said.contains(part), "not '{part}': {said}");
        Ok(())
    };
    refused("https", &["--cacert", &ca], "certificate required")?;
    refused("https", &["--cacert", &ca, "--cert", &stranger], "alert")?;
    refused("https", &["--cacert", &their_ca, "--cert", &manager], "SSL certificate problem")?;
    refused("http", &["--cert", &manager], "curl: (")
}

/// A manager that cannot reach its agent tells why, on the host that it shows.
fn managers_say_what_is_wrong(site: &Site, far: &Far, ours: &Path, theirs: &Path) -> Result<()> {
    let our = |name: &str| ours.join(name);
    let their = |name: &str| theirs.join(name);
    let cases = [
        (manager(far, "127.0.0.1", &our("ca.pem"), &our("manager-identity.pem")), "not valid for name"),
        (manager(far, "localhost", &our("ca.pem"), &their("stranger-identity.pem")), "received fatal alert"),
        (manager(far, "localhost", &their("ca.pem"), &our("manager-identity.pem")), "invalid peer certificate"),
    ];
    for (section, part) in cases {
        fs::write(site.data().join("keyframe.toml"), format!("[manager]\n{section}\n"))?;
        site.kill(Role::Manager)?;
        site.revive(Role::Manager)?;
        let mut hosts = Value::Null;
        site.wait_until(PATIENCE, || {
            hosts = site.json(["host", "list"])?;
            Ok(())
        })?;
        ensure!(hosts[0]["status"] == "unreachable", "{part}: {hosts}");
        let notice = hosts[0]["notices"][0].as_str().with_context(|| format!("no notice in {hosts}"))?;
        println!("{notice}");
        ensure!(notice.contains(part), "not '{part}': {notice}");
    }
    Ok(())
}
