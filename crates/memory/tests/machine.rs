//! Real QEMU: the memory of a running machine is captured, and the machine goes on from it in another process.
//!
//! The guest rewrites its memory all the time and checks every page (`guest/pages.c`), so a page of another instant, a
//! missing page and a wrong page are all found out.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use keyframe_memory::serve::Ready;
use keyframe_memory::{ErrorKind, Image, Progress, compress, replay};

mod rig;
use rig::{Lazy, Rig};

/// For a pass over the guest's memory, which takes a fraction of a second on a quiet host.
const PASS: Duration = Duration::from_secs(60);

fn quiet(_: Progress) {}

#[test]
fn a_machine_goes_on_from_its_memory_through_three_generations() -> Result<()> {
    let rig = Rig::new()?;
    let mut machine = rig.boot()?;
    for generation in 1..=3 {
        let image = rig.image(&format!("generation-{generation}"));
        let before = machine.last_pass;
        machine.capture(&image)?;
        // The machine that was captured does not notice.
        machine.sound_passes(2)?;
        machine.end()?;
        let Lazy { machine: resumed, first_output, server } = rig.resume(&image)?;
        machine = resumed;
        let served = server.join().expect("the server does not panic")?;
        machine.all_in()?;
        println!("generation {generation}: output after {first_output:?}, {served:?}");
        ensure!(first_output < Duration::from_secs(5), "the guest was silent for {first_output:?}");
        machine.sound_passes(3)?;
        ensure!(machine.last_pass > before, "the guest did not go on from where it was");
        Image::open(&image)?.verify(|_| true)?;
    }
    machine.end()
}

#[test]
fn a_machine_that_stands_still_is_captured_twice_and_goes_on() -> Result<()> {
    let rig = Rig::new()?;
    let mut machine = rig.boot()?;
    machine.stop()?;
    let [tracked, first, second] = ["tracked", "first", "second"].map(|name| rig.image(name));
    machine.capture(&tracked)?;
    machine.capture_at_rest(&first)?;
    machine.capture_at_rest(&second)?;
    let memory = |image: &Path| -> Result<Vec<u8>> {
        let image = Image::open(image)?;
        let mut stream = Vec::new();
        replay(&image, &mut stream)?;
        // What follows it, the devices, has clocks in it.
        stream.truncate(stream.len() - image.front().devices().bytes.len());
        Ok(stream)
    };
    let wanted = memory(&tracked)?;
    ensure!(memory(&first)? == wanted && memory(&second)? == wanted, "the same guest has different memory");
    machine.cont()?;
    machine.sound_passes(2)?;
    machine.end()?;
    let Lazy { machine: mut resumed, server, .. } = rig.resume(&second)?;
    server.join().expect("the server does not panic")?;
    resumed.all_in()?;
    resumed.sound_passes(2)?;
    resumed.end()
}

#[test]
fn an_image_serves_compressed_deleted_and_loaded_whole() -> Result<()> {
    let rig = Rig::new()?;
    let mut machine = rig.boot()?;
    let image = rig.image("image");
    machine.capture(&image)?;
    machine.end()?;

    let mut loaded = rig.load_whole(&image)?;
    loaded.sound_passes(2)?;
    loaded.end()?;

    let shrunk = compress(&image, |_| true)?;
    println!("{shrunk:?}");
    ensure!(shrunk.after < shrunk.before, "{shrunk:?}");
    let Lazy { machine: mut resumed, server, .. } = rig.resume_and(&image, |image| Ok(std::fs::remove_file(image)?))?;
    server.join().expect("the server does not panic")?;
    resumed.all_in()?;
    resumed.sound_passes(2)?;
    resumed.end()
}

#[test]
fn a_killed_page_server_is_replaced_by_another() -> Result<()> {
    let rig = Rig::new()?;
    let mut machine = rig.boot()?;
    let image = rig.image("image");
    machine.capture(&image)?;
    machine.end()?;

    let mut machine = rig.resume_interrupted(&image)?;
    let socket = machine.recover()?;
    let served = Ready::open(&image)?.recover(&socket, quiet)?;
    println!("{served:?}");
    ensure!(served.pages > 0, "the first server had sent everything: nothing was tested");
    machine.all_in()?;
    machine.sound_passes(3)?;
    machine.end()
}

#[test]
fn a_failed_capture_leaves_the_machine_running_and_nothing_behind() -> Result<()> {
    let rig = Rig::new()?;
    let mut machine = rig.boot()?;
    let image = rig.small_disk()?.join("image");
    let failed = machine.capture(&image).expect_err("the disk is too small");
    let failed = failed.downcast_ref::<keyframe_memory::Error>().context("another error")?;
    ensure!(failed.kind() == ErrorKind::NoSpace, "{failed}");
    ensure!(names(image.parent().context("it has a folder")?)?.is_empty(), "something was left behind");
    machine.sound_passes(2)?;
    // The next one works.
    let image = rig.image("image");
    machine.capture(&image)?;
    Image::open(&image)?.verify(|_| true)?;
    machine.end()
}

fn names(folder: &Path) -> Result<Vec<String>> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        out.push(entry?.file_name().to_string_lossy().into_owned());
    }
    Ok(out)
}
