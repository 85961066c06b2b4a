//! The page server: plays the source of a post-copy migration, so that a guest runs before its memory is there.
//!
//! ```text
//!  server                                             QEMU (-incoming defer, capability postcopy-ram)
//!  header, configuration, open return path, advise ─▶ empties all RAM
//!  list of blocks, one discarded page ──────────────▶
//!  package: listen, device state, ping, run ────────▶ registers its RAM with userfaultfd, loads devices, may run
//!      ◀──────────────────────────────────────── pong devices are loaded
//!  chunk, chunk, chunk, … ──────────────────────────▶ puts pages in place
//!      ◀────────────────────────────── wants page X   a processor touched a page that is not there
//!  page X and its chunk, chunk, … ──────────────────▶
//!  end ─────────────────────────────────────────────▶ what was never sent is zero from now on
//!      ◀──────────────────────────────────── shut 0   an ordinary machine with ordinary RAM
//! ```
//!
//! The end waits for the pong: a device that reads a page while it is loaded waits for that page, also for one that is zero and
//! would never be sent, and QEMU does not take in the end before its devices are loaded.
//!
//! The discarded page is not needed for its own sake: QEMU 10.0 takes pages for post-copy pages only if it was told to
//! discard something before it was told to listen (`loadvm_postcopy_handle_listen` otherwise ends in the state *discard*).
//!
//! If the server dies, the guest stops at the first page that is missing and is not lost: after `migrate-recover` another
//! server goes on with [`Ready::recover`]. A device of the guest may be what waits, and QEMU's main loop with it; only a command that
//! is sent out of band (`exec-oob`) is answered then. If the server dies before QEMU has run the package, QEMU ends; there is
//! no guest yet to be lost.
//!
//! Costs two threads and memory for a checksum and a mark for each page. Source of the protocol: QEMU 10.0,
//! `migration/migration.c` (`migration_thread`, `postcopy_start`, `postcopy_do_resume`), `migration/savevm.c`
//! (`qemu_savevm_send_postcopy_*`, `loadvm_postcopy_handle_*`), `migration/ram.c` (`ram_load_postcopy`).

use std::io::{ErrorKind as IoKind, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind, Result};
use crate::image::layout::CHUNK_PAGES;
use crate::image::{Chunk, ChunkAt, Image};
use crate::replay::{put_chunk, put_page_word, put_ram_start};
use crate::stream::Head;
use crate::wire::{self, Command, flag, section};
use crate::{PAGE, PageAt, Progress};

mod answers;
mod plan;

use answers::{Answer, Answers, refused};
use plan::{Plan, Step};

/// QEMU listens as soon as `migrate-incoming` has returned; this is for a caller that does both at once.
const PATIENCE: Duration = Duration::from_secs(5);
/// Stands behind the device state.
const DEVICES_LOADED: u32 = 3;
/// A guest that has asked for nothing for so long has what it needs.
const QUIET: Duration = Duration::from_millis(10);
/// By then a guest has found its feet, or it works through all of its memory and needs all of it.
const FEET: Duration = Duration::from_secs(1);
/// How many pages pass between two reports.
const REPORT: u64 = 256;

/// What was served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Served {
    /// Pages that were sent by this server.
    pub pages: u64,
    /// How many of them the guest had to wait for.
    pub requested: u64,
}

/// An image that is open and checked: what takes the longer the more RAM there is has been done, and can be done before QEMU is
/// there. It stays open, so that it may be deleted meanwhile.
pub struct Ready {
    image: Image,
    plan: Plan,
}

impl Ready {
    /// Opens the image.
    pub fn open(image: &Path) -> Result<Ready> {
        let image = Image::open(image)?;
        let plan = Plan::new(&image);
        Ok(Ready { image, plan })
    }

    /// Gives memory and devices to the QEMU that listens on `socket`; returns when it has everything.
    pub fn run(self, socket: &Path, status: impl FnMut(Progress)) -> Result<Served> {
        serve(self, connect(socket)?, status, |server| server.begin())
    }

    /// Goes on where a server stopped that was killed; QEMU listens on `socket` after `migrate-recover`.
    pub fn recover(self, socket: &Path, status: impl FnMut(Progress)) -> Result<Served> {
        serve(self, connect(socket)?, status, |server| server.resume())
    }
}

fn connect(socket: &Path) -> Result<UnixStream> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => return Ok(stream),
            Err(e) if matches!(e.kind(), IoKind::NotFound | IoKind::ConnectionRefused) && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(e) => return Err(Error::peer(format!("connect to {}", socket.display()), e)),
        }
    }
}

fn serve<S: FnMut(Progress)>(
    Ready { image, plan }: Ready,
    stream: UnixStream,
    status: S,
    begin: impl FnOnce(&mut Server<'_, S>) -> Result<()>,
) -> Result<Served> {
    let head = image.head();
    let input = stream.try_clone().map_err(|e| Error::io("share the connection to QEMU", e))?;
    let (sender, answers) = channel();
    image.expect_reading();
    std::thread::scope(|scope| {
        scope.spawn(|| listen(Answers::new(input, &head), sender));
        let mut server = Server {
            image: &image,
            head: &head,
            plan,
            out: Vec::new(),
            chunk: Chunk::new(),
            answers,
            status,
            served: Served { pages: 0, requested: 0 },
            loaded: false,
            quiet: Instant::now(),
            feet: Instant::now() + FEET,
            stream: &stream,
        };
        let result = begin(&mut server).and_then(|()| server.pages()).and_then(|()| server.end());
        // Ends the thread that listens; when the connection is gone already, so is that thread.
        stream.shutdown(Shutdown::Both).ok();
        result.map(|()| server.served)
    })
}

/// Passes on what QEMU says until there is nothing more, or nobody to pass it to.
fn listen(mut answers: Answers<'_, UnixStream>, to: Sender<Result<Answer>>) {
    loop {
        let answer = answers.next();
        let last = matches!(answer, Err(_) | Ok(Answer::Shut(_)));
        if to.send(answer).is_err() || last {
            return;
        }
    }
}

struct Server<'a, S> {
    image: &'a Image,
    head: &'a Head,
    plan: Plan,
    out: Vec<u8>,
    chunk: Chunk,
    answers: Receiver<Result<Answer>>,
    status: S,
    served: Served,
    /// Devices are loaded: what is not sent from now on, nobody but the guest waits for.
    loaded: bool,
    /// Until then the guest may ask for more at once.
    quiet: Instant,
    /// Until then the guest finds its feet.
    feet: Instant,
    stream: &'a UnixStream,
}

impl<S: FnMut(Progress)> Server<'_, S> {
    /// Everything up to the point from which the guest may run.
    fn begin(&mut self) -> Result<()> {
        let out = &mut self.out;
        out.extend_from_slice(&wire::HEADER);
        out.extend_from_slice(&self.head.configuration);
        wire::put_command(out, Command::OpenReturnPath, &[]);
        let mut sizes = Vec::new();
        wire::put_u64(&mut sizes, PAGE as u64);
        wire::put_u64(&mut sizes, PAGE as u64);
        wire::put_command(out, Command::PostcopyAdvise, &sizes);
        put_ram_start(out, self.head);
        let mut discard = vec![0];
        wire::put_name(&mut discard, &self.head.blocks[0].name);
        discard.push(0);
        wire::put_u64(&mut discard, 0);
        wire::put_u64(&mut discard, PAGE as u64);
        wire::put_command(out, Command::RamDiscard, &discard);
        let devices = self.image.front().devices();
        let mut package = Vec::with_capacity(devices.sections + 32);
        wire::put_command(&mut package, Command::PostcopyListen, &[]);
        package.extend_from_slice(&devices.bytes[..devices.sections]);
        wire::put_command(&mut package, Command::Ping, &DEVICES_LOADED.to_be_bytes());
        wire::put_command(&mut package, Command::PostcopyRun, &[]);
        let length = u32::try_from(package.len()).expect("an image holds less device state than 4 GiB");
        wire::put_command(out, Command::Packaged, &length.to_be_bytes());
        out.extend_from_slice(&package);
        self.flush()
    }

    /// Asks which pages have arrived, counts them as sent, and says that sending goes on.
    fn resume(&mut self) -> Result<()> {
        for (block, about) in self.head.blocks.iter().enumerate() {
            let mut name = Vec::new();
            wire::put_name(&mut name, &about.name);
            wire::put_command(&mut self.out, Command::ReceivedBitmap, &name);
            self.flush()?;
            let bits = loop {
                match self.answer()? {
                    Answer::Received(named, bits) if named == block => break bits,
                    other => self.take_in(other)?,
                }
            };
            for (page, sum) in self.image.blocks()[block].sums.iter().enumerate() {
                if bits[page / 8] >> (page % 8) & 1 == 1 {
                    self.plan.send(PageAt { block, page: page as u64 }, *sum != 0);
                }
            }
        }
        wire::put_command(&mut self.out, Command::PostcopyResume, &[]);
        self.flush()?;
        loop {
            match self.answer()? {
                Answer::Resumed => {
                    // Before its devices were loaded it could not have been interrupted and gone on.
                    self.be_loaded();
                    return Ok(());
                }
                other => self.take_in(other)?,
            }
        }
    }

    /// All pages: what the guest waits for first, the rest in the background.
    fn pages(&mut self) -> Result<()> {
        let mut reported = 0;
        self.report();
        loop {
            loop {
                match self.answers.try_recv() {
                    Ok(answer) => self.take_in(answer?)?,
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return Err(refused("says nothing more")),
                }
            }
            match self.plan.next() {
                Step::Wanted(at) => {
                    self.send_chunk(ChunkAt::of(at), Some(at))?;
                    self.quiet = Instant::now() + QUIET;
                }
                Step::Background(at) => match self.silence() {
                    None => self.send_chunk(at, None)?,
                    Some(rest) => match self.answers.recv_timeout(rest) {
                        Ok(answer) => self.take_in(answer?)?,
                        Err(RecvTimeoutError::Timeout) => {}
                        Err(RecvTimeoutError::Disconnected) => return Err(refused("says nothing more")),
                    },
                },
                Step::Done if self.loaded => break,
                Step::Done => {
                    let answer = self.answer()?;
                    self.take_in(answer)?;
                }
            }
            if self.served.pages >= reported + REPORT {
                reported = self.served.pages;
                self.report();
            }
        }
        self.report();
        Ok(())
    }

    /// How much longer the background is silent. While a guest finds its feet it waits for one page after the other, and what
    /// nobody waits for would only take processors and the connection away from it.
    fn silence(&self) -> Option<Duration> {
        let now = Instant::now();
        let until = if self.loaded { self.quiet.min(self.feet) } else { self.feet };
        until.checked_duration_since(now).filter(|rest| !rest.is_zero())
    }

    /// Ends the stream and waits until QEMU says that it has taken everything in.
    fn end(&mut self) -> Result<()> {
        self.out.push(section::END);
        wire::put_u32(&mut self.out, self.head.section.id);
        wire::put_ram_end(&mut self.out, self.head.section.id);
        self.out.push(section::EOF);
        self.flush()?;
        loop {
            match self.answer()? {
                Answer::Shut(0) => return Ok(()),
                // What was never sent is zero, and QEMU finds out by itself once it has read the end.
                Answer::Wanted(..) => {}
                other => self.take_in(other)?,
            }
        }
    }

    fn send_chunk(&mut self, at: ChunkAt, first: Option<PageAt>) -> Result<()> {
        self.image.read_chunk(at, &mut self.chunk)?;
        let id = self.head.section.id;
        self.out.push(section::PART);
        wire::put_u32(&mut self.out, id);
        let plan = &mut self.plan;
        let mut pages = 0;
        if let Some(first) = first {
            let contents = self.chunk.page(first.page as usize % CHUNK_PAGES);
            if plan.send(first, contents.is_some()) {
                let kind = if contents.is_some() { flag::PAGE } else { flag::ZERO };
                put_page_word(&mut self.out, self.head, first, kind, &mut false);
                self.out.extend_from_slice(contents.unwrap_or(&[0]));
                pages += 1;
                self.served.requested += 1;
            }
        }
        put_chunk(&mut self.out, self.head, at, &self.chunk, |page| {
            let send = plan.send(page, true);
            pages += u64::from(send);
            send
        });
        wire::put_ram_end(&mut self.out, id);
        self.served.pages += pages;
        self.flush()
    }

    fn take_in(&mut self, answer: Answer) -> Result<()> {
        match answer {
            Answer::Wanted(from, count) => {
                for i in 0..count {
                    self.plan.want(PageAt { block: from.block, page: from.page + i });
                }
                Ok(())
            }
            Answer::Pong(DEVICES_LOADED) => {
                self.be_loaded();
                Ok(())
            }
            Answer::Shut(code) => Err(refused(format!("gave up loading (code {code})"))),
            Answer::Received(..) | Answer::Resumed | Answer::Pong(_) => Err(refused("answered what it was not asked")),
        }
    }

    fn be_loaded(&mut self) {
        self.loaded = true;
        self.feet = Instant::now() + FEET;
    }

    fn answer(&mut self) -> Result<Answer> {
        self.answers.recv().unwrap_or_else(|_| Err(refused("says nothing more")))
    }

    fn report(&mut self) {
        let total = self.image.stored_pages();
        let done = total - self.plan.pages_left();
        (self.status)(Progress { done, total, requested: self.served.requested });
    }

    fn flush(&mut self) -> Result<()> {
        let mut stream = self.stream;
        let written = stream.write_all(&self.out);
        self.out.clear();
        written.map_err(|e| {
            // What QEMU said before it closed explains more than that it closed.
            let said = self.answers.try_iter().find_map(|answer| match answer {
                Ok(Answer::Shut(code)) => Some(refused(format!("gave up loading (code {code})"))),
                Err(e) if e.kind() == ErrorKind::Refused => Some(e),
                _ => None,
            });
            said.unwrap_or_else(|| Error::peer("send to QEMU", e))
        })
    }
}
