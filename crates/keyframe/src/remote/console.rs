//! `keyframe console`: this terminal becomes the machine's. Ctrl-] ends it, and so does a session that takes over.

use std::io::IsTerminal;
use std::os::fd::AsFd;

use anyhow::{Context, Result, bail};
use futures_util::{SinkExt as _, StreamExt as _};
use keyframe_agent::say::say;
use keyframe_model::agent::route;
use reqwest::{Method, StatusCode};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::client::Client;
use super::{Remote, flag};
use crate::cli::{ConsoleArgs, Output};

/// Ctrl-].
const ESCAPE: u8 = 0x1d;

/// Joins this terminal and the machine's console until one of them has had enough.
pub(crate) fn console(output: &Output, args: &ConsoleArgs) -> Result<()> {
    let remote = Remote::new(output, &args.remote)?;
    let joined = remote.client.block_on(async {
        let socket = open(&remote.client, args).await?;
        let raw = Raw::enter()?;
        if raw.is_some() && !output.quiet {
            say(format_args!("connected to {}; Ctrl-] ends this\r", args.vm));
        }
        let joined = join(socket, &args.vm).await;
        drop(raw);
        joined
    });
    remote.client.abandon();
    joined
}

async fn open(client: &Client, args: &ConsoleArgs) -> Result<WebSocketStream<reqwest::Upgraded>> {
    let query: Vec<_> = flag("force", args.force).into_iter().collect();
    let request = client.request(Method::GET, client.url(&["vms", &args.vm, "console"], &query));
    let request = request
        .header("connection", "upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", generate_key());
    let response = client.send(request).await?;
    anyhow::ensure!(response.status() == StatusCode::SWITCHING_PROTOCOLS, "the manager opened no console");
    let upgraded = response.upgrade().await.context("open the console")?;
    Ok(WebSocketStream::from_raw_socket(upgraded, Role::Client, None).await)
}

async fn join(socket: WebSocketStream<reqwest::Upgraded>, vm: &str) -> Result<()> {
    let (mut send, mut receive) = socket.split();
    let (mut input, mut output) = (tokio::io::stdin(), tokio::io::stdout());
    let mut typed = [0u8; 4096];
    let mut typing = true;
    loop {
        tokio::select! {
            read = input.read(&mut typed), if typing => {
                let read = read.context("read the terminal")?;
                // Whoever pipes input in wants to see what comes of it.
                typing = read > 0;
                let escape = typed[..read].iter().position(|byte| *byte == ESCAPE);
                let part = &typed[..escape.unwrap_or(read)];
                if !part.is_empty() {
                    send.send(Message::Binary(part.to_vec().into())).await.context("lost the console")?;
                }
                if escape.is_some() {
                    return Ok(());
                }
            }
            message = receive.next() => match message {
                Some(Ok(Message::Binary(bytes))) => {
                    output.write_all(&bytes).await.context("write the terminal")?;
                    output.flush().await.context("write the terminal")?;
                }
                Some(Ok(Message::Close(Some(frame)))) if u16::from(frame.code) == route::TAKEN_OVER => {
                    bail!("another session has taken over the console of {vm}")
                }
                Some(Ok(Message::Close(_))) | None => return Ok(()),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error).context("lost the console"),
            }
        }
    }
}

/// The terminal without line editing and echo, until this is dropped.
struct Raw {
    before: Termios,
}

impl Raw {
    /// Nothing, if input is no terminal.
    fn enter() -> Result<Option<Raw>> {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(stdin.as_fd()).context("read the terminal's settings")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin.as_fd(), OptionalActions::Flush, &raw).context("set up the terminal")?;
        Ok(Some(Raw { before }))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A terminal that is gone needs no settings.
        tcsetattr(std::io::stdin().as_fd(), OptionalActions::Flush, &self.before).unwrap_or(());
    }
}
