//! `keyframe events`: changes as they happen, one line each. A lost connection is made again where it broke off.

use std::time::Duration;

use anyhow::Result;
use keyframe_model::agent::VmId;
use reqwest::Method;
use serde_json::Value;

use super::Remote;
use super::client::Refused;
use crate::cli::{EventsArgs, Output};
use crate::clock::utc;

/// Before trying again after a lost connection.
const AGAIN: Duration = Duration::from_secs(1);

/// Follows until the reader of our output or the user has seen enough.
pub(crate) fn events(output: &Output, args: &EventsArgs) -> Result<()> {
    let remote = &mut Remote::new(output, &args.remote)?;
    let mut query: Vec<(&str, String)> = args.kind.clone().map(|kind| ("kind", kind)).into_iter().collect();
    if let Some(vm) = &args.vm {
        query.push(("vm", remote.client.id::<VmId>("vms", vm)?.to_string()));
    }
    let mut last = args.after;
    let mut seen_any = false;
    loop {
        let mut query = query.clone();
        query.extend(last.map(|last| ("after", last.to_string())));
        match follow(remote, &query, &mut last) {
            Err(error) if !seen_any || error.is::<Refused>() || error.is::<crate::screen::OutputClosed>() => {
                return Err(error);
            }
            _ => seen_any = true,
        }
        std::thread::sleep(AGAIN);
    }
}

fn follow(remote: &mut Remote, query: &[(&str, String)], last: &mut Option<i64>) -> Result<()> {
    let url = remote.client.url(&["events"], query);
    let request = remote.client.request(Method::GET, url);
    let mut response = remote.client.block_on(remote.client.send(request))?;
    let mut buffer = Vec::new();
    while let Some(chunk) = remote.client.block_on(response.chunk())? {
        buffer.extend_from_slice(&chunk);
        while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = buffer.drain(..=end).collect();
            let Some(data) = line.strip_prefix(b"data: ") else { continue };
            let event: Value = serde_json::from_slice(data)?;
            *last = event["seq"].as_i64().or(*last);
            remote.show(&event, |out| Ok(draw(&event, out)?))?;
        }
    }
    Ok(())
}

fn draw(event: &Value, out: &mut impl std::io::Write) -> std::io::Result<()> {
    let word = |name: &str| event[name].as_str().unwrap_or("-").to_owned();
    let at = event["at"].as_i64().and_then(|micros| u64::try_from(micros / 1_000_000).ok()).unwrap_or(0);
    write!(out, "{} {:>8} {:9} {:8} {}", utc(at), event["seq"], word("kind"), word("change"), word("id"))?;
    match event["text"].as_str() {
        Some(text) => writeln!(out, "  {text}"),
        None => writeln!(out),
    }
}
