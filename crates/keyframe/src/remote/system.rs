//! `keyframe job …`, `host …`, `token …` and `search`

use anyhow::{Result, bail};
use keyframe_api::TokenCreate;
use keyframe_manager::request::JobView;
use keyframe_model::JobState;
use keyframe_model::agent::{Micros, VmId};
use serde_json::Value;
use std::io::Write;

use super::{Remote, flag, typed, view};
use crate::cli::{HostArgs, HostCommand, JobArgs, JobCommand, Output, SearchArgs, TokenArgs, TokenCommand, WaitArgs};

/// `keyframe job …`
pub(crate) fn job(output: &Output, args: &JobArgs) -> Result<()> {
    let remote = &mut Remote::new(output, &args.remote)?;
    match &args.command {
        JobCommand::List { active, vm, state, kind, limit } => {
            let mut query: Vec<_> = flag("active", *active).into_iter().collect();
            if let Some(vm) = vm {
                query.push(("vm", remote.client.id::<VmId>("vms", vm)?.to_string()));
            }
            query.extend(state.clone().map(|state| ("state", state)));
            query.extend(kind.clone().map(|kind| ("kind", kind)));
            let items = Value::Array(remote.client.list(&["jobs"], &query, limit.limit)?);
            remote.show(&items, |out| Ok(view::job::list(&typed::<Vec<_>>(&items)?, out)?))
        }
        JobCommand::Show { job } => {
            let found = remote.client.get(&["jobs", job], &[])?.value;
            remote.show(&found, |out| Ok(view::job::show(&typed(&found)?, out)?))
        }
        JobCommand::Wait { job } => {
            let found = remote.client.get(&["jobs", job], &[])?;
            remote.finish(&found, WaitArgs::default(), &format!("job {job} succeeded"))
        }
        JobCommand::Cancel { job } => {
            let mut value = remote.client.post(&["jobs", job, "cancel"], &serde_json::json!({}))?.value;
            let mut state = typed::<JobView>(&value)?.state;
            while !state.ended() {
                value = remote.client.watch_job(job)?.value;
                state = typed::<JobView>(&value)?.state;
            }
            match state {
                JobState::Cancelled if remote.json => remote.show(&value, |_| Ok(())),
                JobState::Cancelled => remote.remark(&format!("job {job} was cancelled; everything is as before")),
                _ => bail!("job {job} came to its end before it could be cancelled"),
            }
        }
    }
}

/// `keyframe host …`
pub(crate) fn host(output: &Output, args: &HostArgs) -> Result<()> {
    let remote = &mut Remote::new(output, &args.remote)?;
    match &args.command {
        HostCommand::List => {
            let hosts = remote.client.get(&["hosts"], &[])?.value;
            remote.show(&hosts, |out| Ok(view::host::list(&typed::<Vec<_>>(&hosts)?, out)?))
        }
        HostCommand::Show { host } => {
            let found = remote.client.get(&["hosts", host], &[])?.value;
            remote.show(&found, |out| Ok(view::host::show(&typed(&found)?, out)?))
        }
    }
}

/// `keyframe token …`
pub(crate) fn token(output: &Output, args: &TokenArgs) -> Result<()> {
    let remote = &mut Remote::new(output, &args.remote)?;
    match &args.command {
        TokenCommand::Create { name, valid_for } => {
            let wish = TokenCreate { name: name.parse()?, valid_for: valid_for.map(Micros::from) };
            let made = remote.client.post(&["tokens"], &wish)?.value;
            let secret = made["secret"].as_str().unwrap_or_default().to_owned();
            remote.show(&made, |out| Ok(writeln!(out, "{secret}")?))
        }
        TokenCommand::List => {
            let tokens = remote.client.get(&["tokens"], &[])?.value;
            remote.show(&tokens, |out| Ok(view::host::tokens(&typed::<Vec<_>>(&tokens)?, out)?))
        }
        TokenCommand::Delete { name } => remote.client.delete(&["tokens", name], &[]).map(drop),
    }
}

/// `keyframe search`
pub(crate) fn search(output: &Output, args: &SearchArgs) -> Result<()> {
    let remote = &mut Remote::new(output, &args.remote)?;
    let found = remote.client.get(&["search"], &[("text", args.word.clone())])?.value;
    let machines = remote.machines(&found["snapshots"])?;
    remote.show(&found, |out| Ok(view::host::found(&typed(&found)?, &machines, out)?))
}
