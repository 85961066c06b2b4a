//! `keyframe clone` and `keyframe template …`

use anyhow::{Result, bail};
use keyframe_manager::request::{
    CloneCreate, CloneMemory, CloneSource, NicPolicy, TemplateCreate, TemplateSource, TemplateUpdate,
};
use keyframe_model::agent::CutMethod;
use serde_json::Value;

use super::{Remote, typed, view};
use crate::cli::{NicPolicyText, Output, TemplateArgs, TemplateCommand, VmCloneArgs};

/// `keyframe clone`
pub(crate) fn clone(output: &Output, args: &VmCloneArgs) -> Result<()> {
    let remote = &mut Remote::new(output, &args.remote)?;
    let client = &remote.client;
    let source = match (&args.template, &args.source) {
        (Some(template), _) => CloneSource::Template { template: client.id("templates", template)? },
        (None, Some(source)) if source.contains('@') => {
            CloneSource::Snapshot { snapshot: client.id("snapshots", source)? }
        }
        (None, Some(vm)) => CloneSource::Vm { vm: client.id("vms", vm)? },
        (None, None) => bail!("name a machine, a snapshot or a --template to clone"),
    };
    let wish = CloneCreate {
        source,
        name: args.name.clone(),
        count: Some(args.count),
        first: Some(args.first),
        description: args.description.clone(),
        memory: if args.memory { CloneMemory::Yes } else { CloneMemory::No },
        nics: args.nics.as_ref().map(policy),
        start: args.start,
        keep_identity: args.keep_identity,
    };
    let answer = remote.client.post(&["clones"], &wish)?;
    // Forks go on where their source was; nobody has to start them.
    let made = if args.start || args.memory { "made and started" } else { "made" };
    let made = match args.count {
        1 => format!("{}: {made}", args.name),
        count => format!("{count} machines {made} as {}", args.name),
    };
    let Some((value, job)) = remote.follow(&answer, args.wait)? else { return Ok(()) };
    // Of one that stands still anyway there is nothing to say.
    let made = match &job.instant {
        Some(report) if report.method != CutMethod::AtRest => {
            format!("{made}; of the source: {}", view::snapshot::stood_still(report))
        }
        Some(_) | None => made,
    };
    remote.done(&value, &job, &made)
}

fn policy(text: &NicPolicyText) -> NicPolicy {
    match text {
        NicPolicyText::Keep => NicPolicy::Keep,
        NicPolicyText::Disconnect => NicPolicy::Disconnect,
        NicPolicyText::Vlan(vlan) => NicPolicy::Vlan { vlan: *vlan },
        NicPolicyText::Isolated(network) => NicPolicy::Isolated { network: network.clone() },
    }
}

/// `keyframe template …`
pub(crate) fn template(output: &Output, args: &TemplateArgs) -> Result<()> {
    let remote = &mut Remote::new(output, &args.remote)?;
    match &args.command {
        TemplateCommand::Create { source, name, description, wait } => {
            let source = match source.contains('@') {
                true => TemplateSource::Snapshot { snapshot: remote.client.id("snapshots", source)? },
                false => TemplateSource::Vm { vm: remote.client.id("vms", source)? },
            };
            let wish = TemplateCreate { name: name.parse()?, description: description.clone(), source };
            let answer = remote.client.post(&["templates"], &wish)?;
            remote.finish(&answer, *wait, &format!("{name}: made"))
        }
        TemplateCommand::List { search, limit } => {
            let query: Vec<_> = search.clone().map(|word| ("search", word)).into_iter().collect();
            let items = Value::Array(remote.client.list(&["templates"], &query, limit.limit)?);
            remote.show(&items, |out| Ok(view::template::list(&typed::<Vec<_>>(&items)?, out)?))
        }
        TemplateCommand::Show { template } => {
            let found = remote.client.get(&["templates", template], &[])?.value;
            remote.show(&found, |out| Ok(view::template::show(&typed(&found)?, out)?))
        }
        TemplateCommand::Rename { template, new } => {
            let wish = TemplateUpdate { name: Some(new.parse()?), description: None };
            let answer = remote.client.patch(&["templates", template], &wish, None)?;
            if remote.json { remote.show(&answer.value, |_| Ok(())) } else { Ok(()) }
        }
        TemplateCommand::Describe { template, text } => {
            let wish = TemplateUpdate { name: None, description: Some(text.clone()) };
            let answer = remote.client.patch(&["templates", template], &wish, None)?;
            if remote.json { remote.show(&answer.value, |_| Ok(())) } else { Ok(()) }
        }
        TemplateCommand::Delete { template, wait } => {
            let answer = remote.client.delete(&["templates", template], &[])?;
            remote.finish(&answer, *wait, &format!("{template}: deleted"))
        }
    }
}
