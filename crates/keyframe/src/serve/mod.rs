//! `keyframe pool serve`: one process that holds a pool, in the foreground. It ends in order on SIGTERM, SIGINT and SIGHUP: no
//! more commands, the copies that run are given up, NBD requests that run are answered, the pool is checkpointed.

pub(crate) mod address;
mod control;
mod signal;

use std::io::Write;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use keyframe_agent::say::say;
use keyframe_engine::{IoMode, OpenOptions, Pool};
use keyframe_nbd::{Address, Config, Listener, Server};
use serde::Serialize;

use crate::cli::{IoName, ServeArgs};
use crate::ops::ServerStats;
use crate::session;

/// What the ready line says.
#[derive(Serialize)]
struct Ready {
    pool: PathBuf,
    control: PathBuf,
    nbd: Vec<String>,
}

/// Where the control socket of a pool is when nobody says otherwise.
pub(crate) fn default_control(pool: &Path) -> PathBuf {
    let mut name = pool.as_os_str().to_owned();
    name.push(".control");
    name.into()
}

/// Serves the pool until a signal; everything is bound before the ready line is printed.
pub(crate) fn run(file: &Path, control: Option<&Path>, args: &ServeArgs, json: bool) -> Result<()> {
    // First of all, so that every thread made below leaves the signals to this one.
    let signals = signal::Signals::block().context("block signals")?;
    let io = match args.io {
        IoName::Auto => IoMode::Auto,
        IoName::Uring => IoMode::Uring,
        IoName::Threads => IoMode::Threads,
    };
    let pool = session::open(file, &OpenOptions { cache: args.cache, io, ..OpenOptions::default() })?;
    let path = control.map_or_else(|| default_control(file), Path::to_owned);
    let socket = control::Socket::bind(&path)?;
    let nbd = Arc::new(start_nbd(&pool, &args.nbd)?);
    let addresses: Vec<String> = nbd.addresses().iter().map(address::print).collect();
    let ready =
        Ready { pool: std::path::absolute(file)?, control: std::path::absolute(&path)?, nbd: addresses.clone() };
    let (started, server) = (Instant::now(), Arc::clone(&nbd));
    let stats = move || ServerStats {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        uptime_seconds: started.elapsed().as_secs(),
        nbd: addresses.clone(),
        nbd_connections: server.connections() as u64,
    };
    let control = control::Control::start(socket, pool.clone(), Box::new(stats))?;
    announce(&ready, json)?;
    signals.wait().context("wait for a signal")?;
    let stopped = control.stop().and(stop_nbd(nbd));
    pool.close().context("close the pool").and(stopped)
}

/// The control socket of a pool that something else of this process serves. Dropping it stops it.
pub(crate) struct Beside(Option<control::Control>);

impl Beside {
    /// On the usual path, so that commands that find the pool locked name it.
    pub(crate) fn start(file: &Path, pool: Pool) -> Result<Beside> {
        let socket = control::Socket::bind(&default_control(file))?;
        let started = Instant::now();
        let stats = move || ServerStats {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: started.elapsed().as_secs(),
            nbd: Vec::new(),
            nbd_connections: 0,
        };
        control::Control::start(socket, pool, Box::new(stats)).map(|control| Beside(Some(control)))
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.0.take().map(control::Control::stop) {
            say(format_args!("keyframe: {error:#}"));
        }
    }
}

fn start_nbd(pool: &Pool, addresses: &[Address]) -> Result<Server> {
    let listeners = addresses.iter().map(listen).collect::<Result<Vec<_>>>()?;
    Ok(Server::start(keyframe_transfer::Exports::all(pool.clone()), listeners, &Config::default())?)
}

fn listen(address: &Address) -> Result<Listener> {
    match address {
        // A socket that nobody answers is replaced; nothing else is.
        Address::Unix(path) if path.symlink_metadata().is_ok_and(|found| !found.file_type().is_socket()) => {
            bail!("cannot listen on {}: it exists and is not a socket", path.display())
        }
        Address::Unix(path) => Ok(Listener::unix(path)?),
        Address::Tcp(address) => Ok(Listener::tcp(*address)?),
    }
}

/// The control threads are gone by now, and with them the other owner.
fn stop_nbd(nbd: Arc<Server>) -> Result<()> {
    let server = Arc::into_inner(nbd).context("the NBD server is still in use")?;
    Ok(server.stop()?)
}

fn announce(ready: &Ready, json: bool) -> Result<()> {
    let mut out = std::io::stdout().lock();
    if json {
        writeln!(out, "{}", serde_json::to_string(ready)?)?;
    } else {
        let nbd = if ready.nbd.is_empty() { "none".to_owned() } else { ready.nbd.join(", ") };
        writeln!(out, "ready: pool {}, control {}, nbd {nbd}", ready.pool.display(), ready.control.display())?;
    }
    Ok(out.flush()?)
}
