//! One command's access to a pool: opened here, or through the server that holds it. Callers cannot tell the difference.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use keyframe_engine::{ErrorKind, OpenOptions, Pool};

use crate::client::Client;
use crate::ops::{self, Reply, Request, Sink};
use crate::reach::Reach;
use crate::serve;

/// How long an offline command stays to reclaim what it deleted. The rest goes on when the pool is opened next.
const RECLAIM: Duration = Duration::from_secs(5);
/// Between looks for background work.
const IDLE: Duration = Duration::from_millis(2);

pub(crate) enum Session {
    Offline(Box<Offline>),
    Online(Client),
}

impl Session {
    pub(crate) fn open(reach: &Reach) -> Result<Session> {
        match reach {
            Reach::Offline(file) => Ok(Session::Offline(Box::new(Offline::open(file)?))),
            Reach::Online(socket) => Client::connect(socket).map(Session::Online),
        }
    }

    pub(crate) fn ask(&mut self, request: Request, sink: &mut Sink<'_>) -> Result<Reply> {
        match self {
            Session::Offline(offline) => offline.ask(request, sink),
            Session::Online(client) => client.ask(&request, sink),
        }
    }

    pub(crate) fn close(self) -> Result<()> {
        match self {
            Session::Offline(offline) => offline.close(),
            Session::Online(_) => Ok(()),
        }
    }
}

/// Opens a pool; if somebody else holds it, says how to reach them.
pub(crate) fn open(file: &Path, options: &OpenOptions) -> Result<Pool> {
    match Pool::open(file, options) {
        Err(error) if error.kind() == ErrorKind::Locked => Err(locked(&error, file)),
        result => Ok(result?),
    }
}

/// A lock error with the way out.
pub(crate) fn locked(error: &keyframe_engine::Error, file: &Path) -> anyhow::Error {
    let usual = serve::default_control(file);
    let way = if usual.exists() { format!("use --control {}", usual.display()) } else { "use --control SOCKET".into() };
    anyhow!("{error}: {way}")
}

/// A pool that this process holds.
pub(crate) struct Offline {
    pool: Pool,
    changed: bool,
}

impl Offline {
    /// Without the engine's background thread, which would checkpoint when the pool is closed: a command that only looks,
    /// or is refused, must leave the file as it was.
    fn open(file: &Path) -> Result<Offline> {
        let options = OpenOptions { background: false, ..OpenOptions::default() };
        Ok(Offline { pool: open(file, &options)?, changed: false })
    }

    fn ask(&mut self, request: Request, sink: &mut Sink<'_>) -> Result<Reply> {
        let changes = request.changes();
        let context = ops::Context { pool: &self.pool, server: None };
        let reply = if changes {
            keeping(&self.pool, || ops::handle(&context, request, sink))
        } else {
            ops::handle(&context, request, sink)
        };
        self.changed |= changes && reply.is_ok();
        reply
    }

    fn close(self) -> Result<()> {
        if !self.changed {
            return Ok(());
        }
        let until = Instant::now() + RECLAIM;
        while Instant::now() < until && self.pool.step()? {}
        Ok(self.pool.close()?)
    }
}

/// Runs `work` beside the pool's background work, without which a long import would fill the journal.
fn keeping<T>(pool: &Pool, work: impl FnOnce() -> T) -> T {
    /// Ends the background loop also when `work` panics.
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Release);
        }
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Acquire) {
                // A failure has stopped the pool; `work` meets it too and reports it.
                if !pool.step().unwrap_or(false) {
                    std::thread::sleep(IDLE);
                }
            }
        });
        let _stop = Stop(&stop);
        work()
    })
}
