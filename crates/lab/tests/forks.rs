//! A machine made of a qcow2 image, what can be seen of it and changed while it runs, and copies of it that learn who they are.

use std::fs;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use keyframe_lab::machine::Machine;
use keyframe_lab::process::run_tool;
use keyframe_lab::scratch;
use keyframe_lab::site::{PATIENCE, Site, SiteOptions};
use serde_json::Value;

/// The moment that the source believes to live in, in seconds.
const LONG_AGO: u64 = 1_000_000_000;
/// What a guest's clock may be wrong by: it is asked on a busy host.
const NOW: Duration = Duration::from_secs(60);
/// The generation that a guest finds where its firmware says. Its kernel has no driver for that.
const GENERATION: &str = r#"
for table in /sys/firmware/acpi/tables/SSDT*; do
    at=$(hexdump -ve '1/1 "%02x"' $table | sed -n 's/.*564749410c\(..\)\(..\)\(..\)\(..\).*/0x\4\3\2\1/p')
    [ -z "$at" ] || { devmem $((at + 40)) 64; devmem $((at + 48)) 64; }
done"#;
const GROWN: u64 = 96 << 20;

#[test]
fn a_fork_has_a_name_a_clock_and_a_generation_of_its_own() -> Result<()> {
    let site = Site::up(&scratch::keyframe()?, &SiteOptions::default())?;
    let vm = of_qcow2(&site)?;
    tells_whether_it_is_emulated(&site, &vm)?;
    let screen = screen(&vm)?;
    grows(&site, &vm)?;

    let first = generation(&vm)?;
    vm.in_guest(&format!("date -s @{LONG_AGO}; hostname original"))?;
    vm.snapshot("one", &["--memory"])?;
    site.json(["clone", "web@one", "--memory", "--name", "fork"])?;
    let fork = site.machine("fork")?;
    ensure!(self::screen(&fork)? != screen, "the fork shows its screen where its source does");
    ensure!(size(&fork)? == GROWN, "the fork's disk has another size");
    ensure!(fork.in_guest("hostname")? == "fork", "the fork has no name of its own");
    is_right(&fork)?;
    ensure!(generation(&fork)? != first, "the fork is of its source's generation");

    ensure!(generation(&vm)? == first, "a fork changed the generation of its source");
    ensure!(vm.in_guest("hostname")? == "original", "a fork changed the name of its source");
    ensure!(clock(&vm)? < LONG_AGO + 3600, "a fork changed the clock of its source");
    vm.apply("one", &["--discard-current"])?;
    ensure!(generation(&vm)? != first, "a machine that went back is of the generation of before");
    is_right(&vm).context("it went back to a memory of long ago")?;
    site.wait_until_at_rest()
}

fn of_qcow2(site: &Site) -> Result<Machine<'_>> {
    let guest = site.guest();
    let image = site.data().join("root.qcow2");
    run_tool(Command::new("qemu-img").args(["convert", "-O", "qcow2"]).arg(&guest.root_image).arg(&image))?;
    let [image, data, kernel, initrd] =
        [&image, &guest.data_image, &guest.kernel, &guest.initrd].map(|path| path.display().to_string());
    let data = format!("image={data},name=data");
    let disks = ["vm", "create", "web", "--memory", "128M", "--image", &image, "--disk", &data];
    let boot = ["--kernel", &kernel, "--initrd", &initrd, "--append", "console=ttyS0 quiet panic=-1"];
    site.json(disks.iter().chain(&boot))?;
    let vm = site.machine("web")?;
    vm.start()?;
    Ok(vm)
}

/// In all places, if and only if its process is.
fn tells_whether_it_is_emulated(site: &Site, vm: &Machine<'_>) -> Result<()> {
    let line = fs::read_to_string(format!("/proc/{}/cmdline", vm.pid()?.as_raw_nonzero()))?;
    let emulated = line.contains("tcg");
    let speaks_of_it = |notices: &Value| {
        let mut all = notices.as_array().into_iter().flatten().filter_map(Value::as_str);
        all.any(|notice| notice.contains("emulated, which is many times slower"))
    };
    let (shown, hosts) = (vm.show()?, site.json(["host", "list"])?);
    ensure!(speaks_of_it(&shown["notices"]) == emulated, "emulated: {emulated}; {shown}");
    ensure!(speaks_of_it(&hosts[0]["notices"]) == emulated, "emulated: {emulated}; {hosts}");
    let text = site.run(["vm", "show", "web"])?;
    ensure!(text.contains("emulated, which is many times slower") == emulated, "emulated: {emulated}; {text}");
    Ok(())
}

/// Where it can be looked at, after a look.
fn screen(vm: &Machine<'_>) -> Result<String> {
    let shown = vm.show()?;
    let socket = shown["status"]["vnc"].as_str().with_context(|| format!("no screen: {shown}"))?;
    let mut stream = UnixStream::connect(socket).with_context(|| format!("connect to {socket}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut greeting = [0; 12];
    stream.read_exact(&mut greeting).context("read the screen's greeting")?;
    ensure!(greeting == *b"RFB 003.008\n", "it says {:?}", String::from_utf8_lossy(&greeting));
    Ok(socket.to_owned())
}

/// The guest sees that its disk has become larger, and what it writes to the new end is there.
fn grows(site: &Site, vm: &Machine<'_>) -> Result<()> {
    ensure!(size(vm)? < GROWN, "it is that large already");
    site.json(["disk", "resize", "web", "data", &GROWN.to_string()])?;
    site.wait_until(PATIENCE, || {
        let now = size(vm)?;
        ensure!(now == GROWN, "the guest sees {now} bytes");
        Ok(())
    })?;
    let last = format!("bs=4k count=1 seek={} of=/dev/vdb oflag=direct", GROWN / 4096 - 1);
    vm.in_guest(&format!("yes grown | head -c 4096 | dd {last} 2>/dev/null"))?;
    let end = vm.in_guest(&format!("dd if=/dev/vdb bs=4k skip={} 2>/dev/null | head -n 1", GROWN / 4096 - 1))?;
    ensure!(end == "grown", "at the new end is {end:?}");
    Ok(())
}

/// The data disk's, as the guest sees it.
fn size(vm: &Machine<'_>) -> Result<u64> {
    Ok(vm.in_guest("cat /sys/block/vdb/size")?.parse::<u64>()? * 512)
}

/// Its clock.
fn is_right(vm: &Machine<'_>) -> Result<()> {
    let wrong = clock(vm)?.abs_diff(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs());
    ensure!(wrong < NOW.as_secs(), "the guest's clock is wrong by {wrong} s");
    Ok(())
}

fn clock(vm: &Machine<'_>) -> Result<u64> {
    Ok(vm.in_guest("date +%s")?.parse()?)
}

/// As the guest sees it, which is as it is shown.
fn generation(vm: &Machine<'_>) -> Result<String> {
    let shown = vm.show()?;
    let is = shown["hardware"]["generation_id"].as_str().with_context(|| format!("no generation: {shown}"))?;
    let digits: Vec<char> = is.chars().filter(char::is_ascii_hexdigit).collect();
    ensure!(digits.len() == 32, "{is} is no generation");
    // It lies in memory as Windows lays identifiers out, and is read as two numbers.
    let bytes = |order: [usize; 8]| order.iter().flat_map(|&at| &digits[2 * at..2 * at + 2]).collect::<String>();
    let numbers = [bytes([6, 7, 4, 5, 0, 1, 2, 3]), bytes([15, 14, 13, 12, 11, 10, 9, 8])];
    let expected = numbers.map(|number| format!("0x{}", number.to_uppercase())).join("\n");
    let found = vm.in_guest(GENERATION)?;
    ensure!(found == expected, "the guest {} sees the generation {found:?}, and is of {is}", vm.name);
    Ok(found)
}
