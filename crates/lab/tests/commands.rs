//! The command line against a running manager: what is printed, what programs get, how commands end. Machines without a system
//! suffice; so this is fast.

use std::net::TcpListener;
use std::process::{Output, Stdio};

use anyhow::{Context, Result, ensure};
use keyframe_lab::scratch;
use keyframe_lab::site::{Site, SiteOptions};
use serde_json::{Value, json};

/// Digits of moments, and of everything in identifiers, become `9`: tables keep their widths.
fn steady(text: &str) -> String {
    let mut chars: Vec<char> = text.chars().collect();
    let shapes = ["xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx", "dddd-dd-dd dd:dd:dd", "xx:xx:xx:xx:xx:xx"];
    for shape in shapes.map(|shape| shape.chars().collect::<Vec<char>>()) {
        let mut at = 0;
        while at + shape.len() <= chars.len() {
            let fits = |(shape, found): (&char, &char)| match shape {
                'x' => found.is_ascii_hexdigit(),
                'd' => found.is_ascii_digit(),
                other => found == other,
            };
            if shape.iter().zip(&chars[at..]).all(fits) {
                for (place, found) in shape.iter().zip(&mut chars[at..]) {
                    *found = if matches!(place, 'x' | 'd') { '9' } else { *found };
                }
                at += shape.len();
            } else {
                at += 1;
            }
        }
    }
    chars.into_iter().collect()
}

fn prints(site: &Site, line: &[&str], expected: &str) -> Result<()> {
    let found = steady(&site.run(line)?);
    ensure!(
        found.trim_end() == expected.trim_matches('\n'),
        "`{}` prints\n{found}\nand not\n{expected}",
        line.join(" ")
    );
    Ok(())
}

/// The exit code and the complaint of a command that must fail and print no result.
fn fails(site: &Site, line: &[&str], code: i32, part: &str) -> Result<()> {
    let Output { status, stdout, stderr } = site.command(line).output()?;
    let (said, complaint) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    let line = line.join(" ");
    ensure!(status.code() == Some(code), "`{line}` ends with {status} and not {code}: {complaint}");
    ensure!(said.is_empty(), "`{line}` prints {said}");
    ensure!(complaint.starts_with("keyframe: "), "`{line}` complains: {complaint}");
    ensure!(complaint.contains(part), "`{line}` does not say {part:?}: {complaint}");
    Ok(())
}

/// The members of a document, in order.
fn members(value: &Value) -> Vec<&str> {
    value.as_object().into_iter().flatten().map(|(name, _)| name.as_str()).collect()
}

#[test]
fn commands_print_tables_for_people_and_documents_for_programs() -> Result<()> {
    let site = Site::up(&scratch::keyframe()?, &SiteOptions::default())?;
    nothing_is_said_about_nothing(&site)?;
    modules_log_what_is_wished_of_each(&site)?;
    site.run(["vm", "create", "web", "--memory", "32M", "--disk", "size=8M,name=root", "--nic", "user", "--start"])?;
    machines(&site)?;
    snapshots(&site)?;
    devices(&site)?;
    jobs(&site)?;
    refusals(&site)?;
    lists_are_fetched_page_by_page(&site)?;
    site.wait_until_at_rest()
}

fn nothing_is_said_about_nothing(site: &Site) -> Result<()> {
    for noun in ["vm", "snapshot", "template", "job"] {
        ensure!(site.json([noun, "list"])? == json!([]), "{noun} list");
    }
    fails(site, &["vm", "show", "web"], 1, "web")?;
    fails(site, &["vm", "start"], 2, "<VM>")?;
    fails(site, &["vm", "list", "--state", "asleep"], 2, "asleep")
}

fn machines(site: &Site) -> Result<()> {
    site.run([
        "vm", "create", "idle", "--memory", "64M", "--cpus", "2", "--disk", "16M", "--disk", "8M", "--nic", "none",
    ])?;
    prints(
        site,
        &["vm", "list"],
        "
VM      STATE  CPUS  MEMORY   DISKS        CREATED (UTC)
web   running     1  32 MiB   8 MiB  9999-99-99 99:99:99
idle  stopped     2  64 MiB  24 MiB  9999-99-99 99:99:99",
    )?;
    let shown = site.json(["vm", "show", "idle"])?;
    ensure!(shown["name"] == "idle" && shown["state"] == json!({"state": "at", "power": "stopped"}), "{shown}");
    ensure!(shown["hardware"]["disks"].as_array().is_some_and(|disks| disks.len() == 2), "{shown}");
    let running = site.json(["vm", "list", "--state", "running"])?;
    ensure!(running.as_array().is_some_and(|all| all.len() == 1 && all[0]["name"] == "web"), "{running}");
    let found = site.json(["vm", "list", "--search", "idl"])?;
    ensure!(found.as_array().is_some_and(|all| all.len() == 1 && all[0]["name"] == "idle"), "{found}");
    site.run(["vm", "rename", "idle", "lazy"])?;
    fails(site, &["vm", "show", "idle"], 1, "idle")?;
    site.run(["vm", "delete", "lazy"]).map(drop)
}

fn snapshots(site: &Site) -> Result<()> {
    fails(site, &["snapshot", "revert", "web"], 1, "web has no snapshot to go back to")?;
    site.run(["snapshot", "create", "web@one", "--tag", "gold"])?;
    site.run(["snapshot", "create", "web@two", "--memory", "--description", "the second"])?;
    site.run(["snapshot", "apply", "web@one", "--discard-current"])?;
    site.run(["snapshot", "create", "web@three", "--lock"])?;
    prints(
        site,
        &["snapshot", "list", "web"],
        "
SNAPSHOT         KIND  CONSISTENT  STATE        CREATED (UTC)  REMARKS
one              disk       crash  ready  9999-99-99 99:99:99    #gold
two       disk+memory      memory  ready  9999-99-99 99:99:99
* three          disk       crash  ready  9999-99-99 99:99:99   locked",
    )?;
    prints(
        site,
        &["snapshot", "tree", "web"],
        "
SNAPSHOT              KIND  CONSISTENT        CREATED (UTC)  REMARKS
○ one                 disk       crash  9999-99-99 99:99:99    #gold
├─◉ two        disk+memory      memory  9999-99-99 99:99:99
○ three               disk       crash  9999-99-99 99:99:99   locked
* web is here",
    )?;
    let only = |words: &[&str]| site.run([&["snapshot", "list", "web"][..], words].concat());
    let forked = only(&["--kind", "disk+memory", "--state", "ready"])?;
    ensure!(forked.lines().count() == 2 && forked.contains("two"), "others are listed\n{forked}");
    ensure!(only(&["--automatic"])?.lines().count() <= 1, "nothing was kept");
    let shown = site.run(["snapshot", "show", "web@two"])?;
    for part in ["the second", "disk+memory", "by hand", "cut when the guest was resumed", "of 32 MiB stored"] {
        ensure!(shown.contains(part), "{part:?} is missing in\n{shown}");
    }
    let document = site.json(["snapshot", "show", "web@two"])?;
    for member in ["id", "vm", "name", "kind", "consistency", "created", "hardware", "report", "generation"] {
        ensure!(members(&document).contains(&member), "no {member} in {document}");
    }
    fails(site, &["snapshot", "delete", "web@three"], 1, "locked")?;
    site.run(["snapshot", "unlock", "web@three"])?;
    let tree = site.json(["snapshot", "list", "web"])?;
    let dry = site.json(["snapshot", "delete", "web@two", "--dry-run"])?;
    ensure!(site.json(["snapshot", "list", "web"])? == tree, "a dry run deletes: {dry}");
    site.run(["snapshot", "delete", "web", "--all"])?;
    ensure!(site.json(["snapshot", "list", "web"])? == json!([]), "something is left");
    // The memory of a guest that has never run is a memory, too.
    site.run(["vm", "start", "web", "--paused"])?;
    let process = site.machine("web")?.pid()?;
    site.run(["snapshot", "create", "web@new", "--memory"])?;
    site.run(["snapshot", "create", "web@newer", "--memory"])?;
    let power = || Ok::<_, anyhow::Error>(site.json(["vm", "show", "web"])?["state"]["power"].clone());
    ensure!(site.machine("web")?.pid()? == process && power()? == "paused", "it is not as it was: {}", power()?);
    site.run(["snapshot", "apply", "web@new", "--discard-current"])?;
    ensure!(power()? == "running", "it does not run: {}", power()?);
    let dry = site.json(["snapshot", "revert", "web", "--dry-run"])?;
    ensure!(dry["snapshot"]["name"] == "new", "it would go to another than was applied: {dry}");
    site.run(["vm", "stop", "web", "--hard"])?;
    site.run(["snapshot", "revert", "web", "--discard-current"])?;
    ensure!(power()? == "running", "its memory is not that of then: {}", power()?);
    let vm = site.json(["vm", "show", "web"])?;
    ensure!(vm["current_name"] == "new", "it is elsewhere: {vm}");
    site.run(["snapshot", "delete", "web", "--all"]).map(drop)
}

fn devices(site: &Site) -> Result<()> {
    let volume = |name: &str| -> Result<Value> {
        let disks = site.json(["disk", "list", "web"])?;
        disks.as_array().into_iter().flatten().find(|disk| disk["name"] == name).cloned().context("no such disk")
    };
    site.run(["disk", "attach", "web", "size=8M,name=more", "--slot", "3"])?;
    prints(
        site,
        &["disk", "list", "web"],
        "
DISK  SLOT   SIZE  REFERENCED  SNAPSHOTS                                      VOLUME  REMARKS
root     0  8 MiB         0 B          0  local/99999999-9999-9999-9999-999999999999
more     3  8 MiB         0 B          0  local/99999999-9999-9999-9999-999999999999",
    )?;
    fails(site, &["disk", "attach", "web", "size=8M,name=more"], 1, "more")?;
    fails(site, &["disk", "attach", "web", "size=8M", "--slot", "3"], 1, "3")?;
    fails(site, &["disk", "attach", "web", "8M,fast"], 2, "read-only")?;
    site.run(["disk", "resize", "web", "more", "16M"])?;
    ensure!(volume("more")?["size"] == 16 << 20, "the catalog has another size: {}", volume("more")?);
    fails(site, &["disk", "resize", "web", "more", "8M", "--shrink"], 1, "stop it first")?;
    fails(site, &["disk", "resize", "web", "more", "8M"], 2, "mean it")?;
    prints(
        site,
        &["nic", "list", "web"],
        "
SLOT            ADDRESS  LEADS TO  CABLE
0     99:99:99:99:99:99      user     in",
    )?;
    site.run(["nic", "unplug", "web", "0"])?;
    ensure!(site.json(["nic", "list", "web"])?[0]["link_up"] == false, "the cable is in");
    fails(site, &["nic", "add", "web", "none"], 1, "not stopped")?;
    site.run(["vm", "stop", "web", "--hard"])?;
    site.run(["disk", "resize", "web", "more", "8M", "--shrink"])?;
    site.run(["disk", "detach", "web", "more"])?;
    site.run(["nic", "add", "web", "isolated=lab,mac=52:54:00:00:00:07"])?;
    site.run(["nic", "remove", "web", "0"])?;
    let nics = site.json(["nic", "list", "web"])?;
    ensure!(nics.as_array().is_some_and(|all| all.len() == 1 && all[0]["mac"] == "52:54:00:00:00:07"), "{nics}");
    site.run(["vm", "start", "web"]).map(drop)
}

fn jobs(site: &Site) -> Result<()> {
    let ordered = site.json(["vm", "pause", "web", "--no-wait"])?;
    let id = ordered["id"].as_str().context("a job has an id")?;
    site.run(["job", "wait", id])?;
    prints(
        site,
        &["job", "list", "--limit", "1"],
        "
JOB                                       KIND      STATE   DONE     BY        ORDERED (UTC)
99999999-9999-9999-9999-999999999999  vm-pause  succeeded  100 %  uid 0  9999-99-99 99:99:99",
    )?;
    let line = site.run(["vm", "resume", "web", "--no-wait"])?;
    let id = line.trim().strip_prefix("job ").with_context(|| format!("no job: {line}"))?;
    site.run(["job", "wait", id])?;
    fails(site, &["job", "cancel", id], 1, "ended")?;
    // One that waits for a guest which will not obey.
    let ordered = site.json(["vm", "stop", "web", "--deadline", "1h", "--never-hard", "--no-wait"])?;
    let id = ordered["id"].as_str().context("a job has an id")?;
    fails(site, &["vm", "pause", "web"], 1, id)?;
    let mut waits = site.command(["job", "wait", id]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    site.run(["job", "cancel", id])?;
    let ended = site.ended(id)?;
    ensure!(ended["state"] == "cancelled", "it was not cancelled: {ended}");
    let status = waits.wait()?;
    ensure!(status.code() == Some(1), "waiting for a cancelled job ends with {status}");
    ensure!(site.json(["vm", "show", "web"])?["state"]["power"] == "running", "it does not run on");
    let line = ["job", "list", "--vm", "web", "--kind", "vm-stop", "--state", "cancelled"];
    let found = site.json(line)?;
    ensure!(found.as_array().is_some_and(|all| all.len() == 1) && found[0]["id"] == id, "another job: {found}");
    let about = site.json(["job", "list", "--vm", "web", "--limit", "500"])?;
    let about = about.as_array().context("jobs are a list")?;
    let web = site.json(["vm", "show", "web"])?["id"].clone();
    ensure!(about.len() > 5 && about.iter().all(|job| job["vms"][0] == web), "jobs about others: {about:?}");
    fails(site, &["job", "show", "00000000-0000-7000-8000-000000000000"], 1, "00000000-0000-7000-8000-000000000000")
}

fn refusals(site: &Site) -> Result<()> {
    fails(site, &["vm", "create", "web", "--disk", "8M"], 1, "web")?;
    fails(site, &["vm", "create", "a b"], 2, "a b")?;
    fails(site, &["snapshot", "rename", "web@one", "a/b"], 2, "a/b")?;
    fails(site, &["vm", "create", "no", "--image", "/nowhere.qcow2"], 1, "/nowhere.qcow2")?;
    fails(site, &["vm", "set", "web", "--memory", "64M"], 1, "not stopped")?;
    fails(site, &["vm", "delete", "web"], 1, "force it")?;
    fails(site, &["snapshot", "apply", "web@none"], 1, "none")?;
    fails(site, &["snapshot", "create", "none@x"], 1, "none")?;
    fails(site, &["clone", "web"], 2, "--name")?;
    fails(site, &["template", "create", "web", "--name", "mold"], 1, "stop it first")?;
    fails(site, &["snapshot", "create", "web@x", "--quiesce", "required"], 1, "guest agent")?;
    fails(site, &["vm", "list", "--server", "/nowhere.sock"], 1, "keyframe up")?;
    site.run(["vm", "create", "lost", "--memory", "32M", "--disk", "8M", "--nic", "bridge=nowhere"])?;
    let no_bridge =
        "network interface 0 of lost: this host has no bridge nowhere; make one, or choose a user or isolated network";
    fails(site, &["vm", "start", "lost"], 1, no_bridge)?;
    site.run(["vm", "delete", "lost"])?;
    for (line, code, kind, part) in [
        (&["vm", "show", "nobody"][..], 1, "not-found", "nobody"),
        (&["vm", "delete", "web"], 1, "state", "force it"),
        (&["vm", "create", "no", "--image", "/nowhere.qcow2"], 1, "not-found", "/nowhere.qcow2"),
        (&["vm", "create", "a b"], 2, "usage", "a b"),
        (&["vm", "start"], 2, "usage", "<VM>"),
        (&["vm", "list", "--server", "/nowhere.sock"], 1, "failed", "keyframe up"),
    ] {
        fails_for_programs(site, line, code, kind, part)?;
    }
    Ok(())
}

/// The same for programs: a document on standard error.
fn fails_for_programs(site: &Site, line: &[&str], code: i32, kind: &str, part: &str) -> Result<()> {
    let Output { status, stdout, stderr } = site.command(line.iter().chain(&["--json"])).output()?;
    let complaint = String::from_utf8_lossy(&stderr);
    let line = line.join(" ");
    ensure!(status.code() == Some(code), "`{line}` ends with {status} and not {code}: {complaint}");
    ensure!(stdout.is_empty(), "`{line}` prints {}", String::from_utf8_lossy(&stdout));
    let said: Value = serde_json::from_str(&complaint).with_context(|| format!("`{line}` complains: {complaint}"))?;
    let error = &said["error"];
    ensure!(error["kind"] == kind, "`{line}`: not {kind}: {said}");
    ensure!(error["detail"].as_str().is_some_and(|detail| detail.contains(part)), "`{line}`: no {part:?}: {said}");
    Ok(())
}

fn lists_are_fetched_page_by_page(site: &Site) -> Result<()> {
    site.run(["clone", "web", "--name", "many-{n}", "--count", "12"])?;
    let all = site.json(["vm", "list"])?;
    let names = |list: &Value| -> Vec<String> {
        let all = list.as_array().into_iter().flatten();
        all.filter_map(|vm| vm["name"].as_str().map(str::to_owned)).collect()
    };
    ensure!(names(&all).len() == 13, "{:?}", names(&all));
    let five = site.json(["vm", "list", "--limit", "5"])?;
    ensure!(names(&five) == names(&all)[..5], "{:?}", names(&five));
    let line: Vec<String> = (1..=12).map(|n| format!("many-{n}")).collect();
    site.run(["vm", "delete"].into_iter().chain(line.iter().map(String::as_str))).map(drop)
}

fn modules_log_what_is_wished_of_each(site: &Site) -> Result<()> {
    let log = site.data().join("keyframe.log");
    site.down()?;
    let before = std::fs::read_to_string(&log)?.len();
    let up = |filter: &str| site.command(["up"]).env("KEYFRAME_LOG", filter).output();
    let Output { status, stderr, .. } = up("keyframe_api=loud")?;
    let complaint = String::from_utf8_lossy(&stderr);
    ensure!(!status.success() && complaint.contains("keyframe_api=loud"), "{status}: {complaint}");
    let Output { status, stderr, .. } = up("warn,keyframe_api::guard=debug")?;
    ensure!(status.success(), "{}", String::from_utf8_lossy(&stderr));
    site.json(["vm", "list"])?;
    site.down()?;
    let text = std::fs::read_to_string(&log)?;
    let said = |module: &str| text[before..].lines().filter(|line| line.contains(module)).count();
    ensure!(said(" DEBUG keyframe_api::guard") > 0, "the requests are not there: {}", &text[before..]);
    let others =
        said(" DEBUG ") + said(" INFO ") - said(" DEBUG keyframe_api::guard") - said(" INFO keyframe_api::guard");
    ensure!(others == 0, "others speak of {others} things: {}", &text[before..]);
    site.start().map(drop)
}

/// Asks the interface over TCP without our client; the status and the body.
fn http(address: &str, token: Option<&str>, method: &str, path: &str, more: &[&str]) -> Result<(u16, String)> {
    let mut command = std::process::Command::new("curl");
    command.args(["-sS", "--max-time", "30", "-X", method, "-w", "\n%{http_code}"]).args(more);
    if let Some(token) = token {
        command.args(["-H", &format!("Authorization: Bearer {token}")]);
    }
    let text = keyframe_lab::process::run_tool(command.arg(format!("http://{address}{path}")))?;
    let (body, status) = text.rsplit_once('\n').context("no status")?;
    Ok((status.trim().parse()?, body.to_owned()))
}

#[test]
fn over_tcp_nothing_is_said_without_a_token_and_a_repeated_order_is_one_order() -> Result<()> {
    let free = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
    let options = SiteOptions { manager: format!("listen = \"{free}\""), ..SiteOptions::default() };
    let site = Site::up(&scratch::keyframe()?, &options)?;
    for token in [None, Some("wrong")] {
        let (status, body) = http(&free, token, "GET", "/v1/vms", &[])?;
        ensure!(status == 401, "{token:?}: {status} {body}");
    }
    let said = site.run(["token", "create", "robot", "--json"])?;
    let made: Value = serde_json::from_str(&said)?;
    let secret = made["token"].as_str().or(made["secret"].as_str()).with_context(|| format!("no token in {said}"))?;
    ensure!(!site.run(["token", "list"])?.contains(secret), "the secret is told again");

    let url = format!("http://{free}");
    let over_tcp = |secret: &str, line: &[&str]| {
        site.command(line).args(["--server", &url]).env("KEYFRAME_TOKEN", secret).output()
    };
    let listed = over_tcp(secret, &["vm", "list", "--json"])?;
    ensure!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    let refused = over_tcp("wrong", &["vm", "list"])?;
    let complaint = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(refused.status.code() == Some(1) && complaint.contains("KEYFRAME_TOKEN"), "{complaint}");

    let wish = r#"{"name":"once","memory":33554432,"disks":[{"size":8388608}],"nics":[]}"#;
    let order = |wish: &str| {
        let more = ["-H", "Content-Type: application/json", "-H", "Idempotency-Key: k-1", "-d", wish];
        http(&free, Some(secret), "POST", "/v1/vms", &more)
    };
    let (first, second) = (order(wish)?, order(wish)?);
    // The second may find it done.
    ensure!(first.0 == 202 && matches!(second.0, 200 | 202), "{first:?} {second:?}");
    let id = |answer: &str| -> Result<String> {
        let job: Value = serde_json::from_str(answer)?;
        job["id"].as_str().map(str::to_owned).context("a job has an id")
    };
    ensure!(id(&first.1)? == id(&second.1)?, "the same order twice: {} {}", first.1, second.1);
    site.ended(&id(&first.1)?)?;
    ensure!(site.json(["vm", "list"])?.as_array().is_some_and(|all| all.len() == 1), "there is more than one");
    let (status, body) = order(&wish.replace("once", "twice"))?;
    ensure!(status == 409 && body.contains("idempotency key"), "{status} {body}");
    let (status, body) = http(&free, Some(secret), "GET", "/v1/vms?limit=0", &[])?;
    ensure!(status == 422 || status == 400, "{status} {body}");

    site.run(["token", "delete", "robot"])?;
    let (status, body) = http(&free, Some(secret), "GET", "/v1/vms", &[])?;
    ensure!(status == 401, "a deleted token opens: {status} {body}");
    site.wait_until_at_rest()
}
