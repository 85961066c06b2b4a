//! Asking a running server.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::ops::{Event, Reply, Request, Sink};
use crate::socket;
use crate::wire::{self, Line};

/// A connection to a server's control socket.
pub(crate) struct Client {
    stream: BufReader<UnixStream>,
    name: String,
}

impl Client {
    pub(crate) fn connect(path: &Path) -> Result<Client> {
        let name = path.display().to_string();
        let stream = socket::connect(path).with_context(|| {
            format!("no server answers at {name}; start one with `keyframe pool serve` or use --pool")
        })?;
        Ok(Client { stream: BufReader::new(stream), name })
    }

    pub(crate) fn ask(&mut self, request: &Request, sink: &mut Sink<'_>) -> Result<Reply> {
        let lost = || format!("lost the server at {}", self.name);
        let bytes = wire::line(request).context("write the request")?;
        if bytes.len() as u64 > wire::MAX_REQUEST {
            bail!("the request is larger than {} bytes; name fewer targets at once", wire::MAX_REQUEST);
        }
        self.stream.get_mut().write_all(&bytes).with_context(lost)?;
        loop {
            let mut line = String::new();
            if self.stream.read_line(&mut line).with_context(lost)? == 0 {
                bail!("{}: it ended before it answered", lost());
            }
            let line = serde_json::from_str(&line)
                .context("the server's answer is not understood; is it of another version?")?;
            match line {
                Line::Progress { done, total } => sink(Event::Progress { done, total })?,
                Line::Ranges(ranges) => sink(Event::Ranges(ranges))?,
                Line::Result(reply) => return Ok(reply),
                Line::Error(failure) => return Err(failure.into()),
            }
        }
    }
}
