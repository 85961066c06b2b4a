//! Commands on pools and volumes: a request to a pool and how its result is shown, or one of the few acts that need no
//! open pool.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use keyframe_engine::{CreateOptions, ErrorKind, OpenOptions, Pool, Preallocation};

use crate::cli::{
    ExportArgs, ImageFormat, ImportFormat, ListArgs, Output, PoolArgs, PoolCommand, PreallocationName, ReachArgs,
    VolumeArgs, VolumeCommand, VolumeSnapshotCommand,
};
use crate::command::Outcome;
use crate::ops::{CheckView, Image, Overlay, PAGE, Reply, Request, VersionView, VersionsView};
use crate::reach::{Reach, pool_file, reach, reach_or_host};
use crate::screen::Screen;
use crate::serve;
use crate::session::{Session, locked};
use crate::show::Detail;

/// `keyframe pool …`
pub(crate) fn pool(output: &Output, args: &PoolArgs) -> Result<Outcome> {
    match &args.command {
        PoolCommand::Create { file, size, preallocation } => {
            let preallocation = match preallocation {
                PreallocationName::Off => Preallocation::Off,
                PreallocationName::Falloc => Preallocation::Falloc,
                PreallocationName::Full => Preallocation::Full,
            };
            check_folder(file)?;
            Pool::create(file, &CreateOptions { size: *size, preallocation })?;
            Ok(Outcome::Good)
        }
        PoolCommand::Check { file } => check(output, file),
        PoolCommand::Serve(serve) => {
            let file = pool_file(&args.reach, |name| std::env::var_os(name))?;
            serve::run(&file, args.reach.control.as_deref(), serve, output.json).map(|()| Outcome::Good)
        }
        command => ask(output, &of_host(&args.reach)?, pool_request(command)),
    }
}

/// `keyframe volume …`
pub(crate) fn volume(output: &Output, args: &VolumeArgs) -> Result<Outcome> {
    match &args.command {
        VolumeCommand::List(part) => list(output, &args.reach, None, part),
        VolumeCommand::Snapshot(VolumeSnapshotCommand::List { volume, part }) => {
            list(output, &args.reach, Some(volume), part)
        }
        command => ask(output, &named(&args.reach)?, volume_request(command)?),
    }
}

fn pool_request(command: &PoolCommand) -> (Request, Detail) {
    match command {
        PoolCommand::Info => (Request::PoolInfo {}, Detail::All),
        PoolCommand::Stats => (Request::PoolStats {}, Detail::All),
        PoolCommand::Scrub => (Request::PoolScrub {}, Detail::All),
        PoolCommand::Grow { size } => (Request::PoolGrow { size: size.map(|size| size.0) }, Detail::Remark),
        PoolCommand::Create { .. } | PoolCommand::Check { .. } | PoolCommand::Serve(_) => {
            unreachable!("not a question to an open pool")
        }
    }
}

/// The request behind a command that is one question, and how much of the answer is for people.
fn volume_request(command: &VolumeCommand) -> Result<(Request, Detail)> {
    let (all, remark, nothing) = (Detail::All, Detail::Remark, Detail::Nothing);
    Ok(match command.clone() {
        VolumeCommand::Create { name, size } => (Request::VolumeCreate { name, size: size.0 }, nothing),
        VolumeCommand::Show { name } => (Request::Show { target: name }, all),
        VolumeCommand::Resize { name, size } => (Request::VolumeResize { name, size: size.0 }, nothing),
        VolumeCommand::Rename { name, new } => (Request::Rename { target: name, new }, nothing),
        VolumeCommand::Delete { name, snapshots } => (Request::VolumeDelete { name, snapshots }, nothing),
        VolumeCommand::Snapshot(command) => snapshot_request(command),
        VolumeCommand::Clone(args) => (Request::Clone { source: args.source, name: args.name, via: args.via }, nothing),
        VolumeCommand::Revert(args) => {
            let target = args.target;
            (Request::Revert { volume: target.volume, snapshot: target.snapshot, keep: args.keep }, nothing)
        }
        VolumeCommand::Tree(args) => (Request::Tree { volume: args.volume, space: args.space }, all),
        VolumeCommand::Space(args) => (Request::Space { targets: args.targets }, all),
        VolumeCommand::Diff(args) => {
            (Request::Diff { from: Some(args.from).filter(|from| from != "-"), to: args.to }, all)
        }
        VolumeCommand::Import(args) => {
            let format = match args.format {
                ImportFormat::Auto => None,
                ImportFormat::Raw => Some(Image::Raw),
                ImportFormat::Qcow2 => Some(Image::Qcow2),
            };
            (Request::Import { file: absolute(&args.file)?, volume: args.volume, format }, remark)
        }
        VolumeCommand::Export(args) => (export_request(&args)?, remark),
        VolumeCommand::List(_) => unreachable!("a list is asked for in pages"),
    })
}

fn snapshot_request(command: VolumeSnapshotCommand) -> (Request, Detail) {
    match command {
        VolumeSnapshotCommand::Create { targets } => {
            let targets = targets.into_iter().map(|target| (target.volume, target.snapshot)).collect();
            (Request::SnapshotCreate { targets }, Detail::Remark)
        }
        VolumeSnapshotCommand::Show { target } => (Request::Show { target: target.to_string() }, Detail::All),
        VolumeSnapshotCommand::Rename { target, new } => {
            (Request::Rename { target: target.to_string(), new }, Detail::Nothing)
        }
        VolumeSnapshotCommand::Delete { target, subtree, dry_run } => {
            let detail = if dry_run {
                Detail::All
            } else if subtree {
                Detail::Remark
            } else {
                Detail::Nothing
            };
            (Request::SnapshotDelete { target: target.to_string(), subtree, dry_run }, detail)
        }
        VolumeSnapshotCommand::List { .. } => unreachable!("a list is asked for in pages"),
    }
}

fn export_request(args: &ExportArgs) -> Result<Request> {
    let image = |format: ImageFormat| match format {
        ImageFormat::Raw => Image::Raw,
        ImageFormat::Qcow2 => Image::Qcow2,
    };
    let overlay = args.from.clone().zip(args.backing.clone()).map(|(from, backing)| Overlay {
        from,
        backing_format: image(args.backing_format.unwrap_or(ImageFormat::of_name(&backing))),
        backing,
    });
    let usual = if overlay.is_some() { ImageFormat::Qcow2 } else { ImageFormat::of_name(&args.file) };
    let format = image(args.format.unwrap_or(usual));
    Ok(Request::Export { target: args.target.clone(), file: absolute(&args.file)?, format, overlay })
}

/// A server has another working directory.
fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("cannot use the path {}", path.display()))
}

/// A pool that somebody names: whoever changes volumes says where.
fn named(args: &ReachArgs) -> Result<Reach> {
    Ok(reach(args, |name| std::env::var_os(name))?)
}

/// The same, or that of this host's machines.
fn of_host(args: &ReachArgs) -> Result<Reach> {
    Ok(reach_or_host(args, |name| std::env::var_os(name), crate::agent::data_dir(None).ok())?)
}

fn ask(output: &Output, reach: &Reach, (request, detail): (Request, Detail)) -> Result<Outcome> {
    let mut session = Session::open(reach)?;
    let mut screen = Screen::new(output);
    let reply = session.ask(request, &mut |event| screen.event(event));
    screen.end_progress();
    let reply = reply?;
    session.close()?;
    screen.reply(&reply, detail)?;
    Ok(outcome(&reply))
}

fn outcome(reply: &Reply) -> Outcome {
    match reply {
        Reply::Check(report) if !report.clean => Outcome::Damaged,
        _ => Outcome::Good,
    }
}

/// Asks for a list page by page, until it ends or there is enough of it.
fn list(output: &Output, args: &ReachArgs, volume: Option<&str>, part: &ListArgs) -> Result<Outcome> {
    let mut session = Session::open(&named(args)?)?;
    let wanted = part.limit.unwrap_or(usize::MAX);
    let mut items: Vec<VersionView> = Vec::new();
    let mut after = part.after.clone();
    while items.len() < wanted {
        let limit = PAGE.min(wanted - items.len());
        let request = match volume {
            None => Request::VolumeList { after, limit: Some(limit) },
            Some(volume) => Request::SnapshotList { volume: volume.to_owned(), after, limit: Some(limit) },
        };
        let Reply::Versions(page) = session.ask(request, &mut |_| Ok(()))? else {
            bail!("the server answered something else than a list");
        };
        let last_page = page.items.len() < limit;
        // The engine counts from a snapshot's own name, and lists its full one.
        after = page.items.last().map(|item| item.name.rsplit('@').next().unwrap_or(&item.name).to_owned());
        items.extend(page.items);
        if last_page {
            break;
        }
    }
    session.close()?;
    Screen::new(output).reply(&Reply::Versions(VersionsView { items }), Detail::All)?;
    Ok(Outcome::Good)
}

fn check_folder(file: &Path) -> Result<()> {
    match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() && !folder.is_dir() => {
            bail!("cannot make {}: there is no folder {}", file.display(), folder.display())
        }
        _ => Ok(()),
    }
}

fn check(output: &Output, file: &Path) -> Result<Outcome> {
    let mut screen = Screen::new(output);
    let report =
        keyframe_engine::check(file, &OpenOptions::default(), &mut |done, total| screen.progress(done, total, None));
    screen.end_progress();
    let report = match report {
        Err(error) if error.kind() == ErrorKind::Locked => return Err(locked(&error, file)),
        report => Reply::Check(CheckView::from(report?)),
    };
    screen.reply(&report, Detail::All)?;
    Ok(outcome(&report))
}
