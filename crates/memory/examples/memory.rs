//! The crate's functions by hand, for trying them out beside a QEMU that is driven over QMP.
//!
//! ```text
//! memory capture SOCKET IMAGE   listen on SOCKET for `migrate unix:SOCKET`, write IMAGE
//! memory serve IMAGE SOCKET     give IMAGE to a QEMU that waits on SOCKET for a post-copy migration
//! memory recover IMAGE SOCKET   go on after `migrate-recover`
//! memory load IMAGE SOCKET      give IMAGE to a QEMU that waits on SOCKET for an ordinary migration
//! memory compress IMAGE         replace IMAGE by its cold form
//! memory verify IMAGE           read all of it
//! ```

use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Instant;

use anyhow::{Result, bail};
use keyframe_memory::serve::Ready;
use keyframe_memory::{Image, Progress, capture, compress, replay};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let began = Instant::now();
    let quiet = |_: Progress| {};
    let told = match words[..] {
        ["capture", socket, image] => {
            let (stream, _) = UnixListener::bind(socket)?.accept()?;
            std::fs::remove_file(socket)?;
            format!("{:?}", capture(stream, Path::new(image), b"{}", quiet)?)
        }
        ["serve", image, socket] => format!("{:?}", Ready::open(Path::new(image))?.run(Path::new(socket), quiet)?),
        ["recover", image, socket] => {
            format!("{:?}", Ready::open(Path::new(image))?.recover(Path::new(socket), quiet)?)
        }
        ["load", image, socket] => {
            let stream = UnixStream::connect(socket)?;
            replay(&Image::open(Path::new(image))?, &stream)?;
            stream.shutdown(Shutdown::Write)?;
            "loaded".to_owned()
        }
        ["compress", image] => format!("{:?}", compress(Path::new(image), |_| true)?),
        ["verify", image] => {
            let image = Image::open(Path::new(image))?;
            image.verify(|_| true)?;
            format!("{} pages of {} bytes", image.stored_pages(), image.ram_bytes())
        }
        _ => bail!("usage: memory capture|serve|recover|load|compress|verify …; see the head of this file"),
    };
    println!("{told} in {:?}", began.elapsed());
    Ok(())
}
