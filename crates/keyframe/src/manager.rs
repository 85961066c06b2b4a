//! `keyframe manager`: this process becomes the manager, or starts one in the background and waits until it answers.

use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use keyframe_agent::paths::Paths;
use keyframe_agent::pid_file;
use keyframe_api::token::ADMIN;
use keyframe_api::{Listen, Server};
use keyframe_catalog::{Catalog, Token, TokenHash};
use keyframe_manager::{Config, Manager};
use keyframe_model::agent::{Bytes, Timestamp};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::agent::data_dir;
use crate::cli::ManagerArgs;
use crate::daemon;
use crate::manager_config::ManagerConfig;
use crate::remote::client::socket;

/// Where that token's secret is.
pub(crate) fn token_file(data: &Path) -> PathBuf {
    data.join("admin.token")
}

/// Runs a manager until it is told to stop, or starts one.
pub(crate) fn run(args: &ManagerArgs) -> Result<()> {
    let data = data_dir(args.data.as_deref())?;
    let paths = Paths::of(&data);
    paths.make()?;
    if !args.foreground {
        let log = data.join("manager.log");
        return daemon::start("manager", &data, &log, |pid| daemon::answers(&socket(&data), pid));
    }
    let config = ManagerConfig::load(&data, |name| std::env::var(name).ok())?;
    keyframe_agent::run::start_log(&config.log)?;
    let _lock = pid_file::hold(&paths.run.join("manager.pid"), "manager")?;
    let runtime = tokio::runtime::Runtime::new().context("start a runtime")?;
    runtime.block_on(serve(&data, &paths, &config))
}

async fn serve(data: &Path, paths: &Paths, config: &ManagerConfig) -> Result<()> {
    let stop = CancellationToken::new();
    let signals = tokio::spawn(until_signal(stop.clone()));
    let catalog = Catalog::open(&config.catalog_url(data)).await?;
    let agent = config.agent(data, paths.agent_socket());
    let section = &config.manager;
    let (compress_after, max_snapshots) = (section.compress_after, section.snapshots_per_vm);
    let reserve = Bytes(section.reserve.0);
    let config_of_manager = Config { compress_after, max_snapshots, reserve, ..Config::new(catalog, agent) };
    let manager = Manager::start(config_of_manager).await?;
    admin_token(&manager, &token_file(data)).await?;
    let listen = Listen { socket: socket(data), tcp: config.manager.listen };
    let server =
        Server::bind(&listen).await.context("set manager.listen in keyframe.toml to another address or \"off\"")?;
    note_address(paths, server.tcp()).context("write down where the manager listens")?;
    tracing::info!(socket = %listen.socket.display(), tcp = ?server.tcp(), "serving");
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        tracing::warn!("cannot tell the service manager that the manager is ready: {error}");
    }
    let fenced = async {
        manager.until_fenced().await;
        stop.cancel();
        true
    };
    let served = server.run(manager.clone(), stop.clone());
    let (served, fenced) = tokio::select! {
        served = served => (served, false),
        fenced = fenced => (Ok(()), fenced),
    };
    manager.stop().await;
    signals.abort();
    served.context("serve requests")?;
    if fenced {
        bail!("another manager has taken over this catalog");
    }
    Ok(())
}

async fn until_signal(stop: CancellationToken) -> std::io::Result<()> {
    let (mut term, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = term.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping; machines run on, jobs go on at the next start");
    stop.cancel();
    Ok(())
}

/// For whoever wants to say where this manager, not the next one with another configuration, can be reached.
fn note_address(paths: &Paths, tcp: Option<SocketAddr>) -> std::io::Result<()> {
    std::fs::write(address_file(paths), tcp.map_or_else(String::new, |tcp| tcp.to_string()))
}

/// Where a manager that runs listens, besides its socket.
pub(crate) fn address(paths: &Paths) -> Option<SocketAddr> {
    std::fs::read_to_string(address_file(paths)).ok()?.trim().parse().ok()
}

fn address_file(paths: &Paths) -> PathBuf {
    paths.run.join("manager.address")
}

/// Makes the administrator's token unless there is one that is still good.
async fn admin_token(manager: &Manager, file: &Path) -> Result<()> {
    let mut catalog = manager.catalog().write().await?;
    if let Ok(secret) = std::fs::read_to_string(file)
        && catalog.token_by_hash(&TokenHash::of(secret.trim())).await?.is_some()
    {
        return Ok(());
    }
    for token in catalog.tokens().await?.into_iter().filter(|token| token.name == ADMIN) {
        catalog.delete_token(token.id).await?;
    }
    let secret = keyframe_api::token::make().context("make a token")?;
    let (id, hash) = (Uuid::now_v7(), TokenHash::of(&secret));
    let token =
        Token { id, name: ADMIN.into(), hash, owner: None, created: Timestamp::now(), expires: None, used: None };
    catalog.insert_token(&token).await?;
    // The file first: a token that is in the file only is replaced at the next start, one that nobody has is not missed.
    write_secret(file, &secret).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(catalog.commit().await?)
}

/// Readable by the owner only from the first moment, and whole or not there.
fn write_secret(file: &Path, secret: &str) -> std::io::Result<()> {
    let new = file.with_extension("token.new");
    match std::fs::remove_file(&new) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut out = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    writeln!(out, "{secret}")?;
    out.sync_all()?;
    std::fs::rename(&new, file)
}
