//! What each command means: a request to a pool and how its result is shown, or one of the few acts that need no open pool.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::CommandFactory;
use keyframe_engine::{CreateOptions, ErrorKind, OpenOptions, Pool, Preallocation};

use crate::cli::{
    Cli, Command, ExportArgs, ImageFormat, ImportFormat, ListArgs, PoolCommand, PreallocationName, SnapshotCommand,
    VolumeCommand,
};
use crate::ops::{CheckView, Image, Overlay, PAGE, Reply, Request, VersionView, VersionsView};
use crate::reach::{pool_file, reach};
use crate::screen::Screen;
use crate::serve;
use crate::session::{Session, locked};
use crate::show::Detail;

/// How a command ended, apart from errors.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    Good,
    /// The command did its work, and what it found is bad.
    Damaged,
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> ExitCode {
        match outcome {
            Outcome::Good => ExitCode::SUCCESS,
            Outcome::Damaged => ExitCode::FAILURE,
        }
    }
}

/// Does what the command line says.
pub(crate) fn run(cli: &Cli) -> Result<Outcome> {
    let env = |name: &str| std::env::var_os(name);
    match &cli.command {
        Command::Pool(PoolCommand::Create { file, size, preallocation }) => {
            let preallocation = match preallocation {
                PreallocationName::Off => Preallocation::Off,
                PreallocationName::Falloc => Preallocation::Falloc,
                PreallocationName::Full => Preallocation::Full,
            };
            check_folder(file)?;
            Pool::create(file, &CreateOptions { size: *size, preallocation })?;
            Ok(Outcome::Good)
        }
        Command::Pool(PoolCommand::Check { file }) => check(cli, file),
        Command::Serve(args) => {
            serve::run(&pool_file(&cli.global, env)?, args, cli.global.json).map(|()| Outcome::Good)
        }
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "keyframe", &mut script);
            std::io::stdout().write_all(&script).context("cannot write the output")?;
            Ok(Outcome::Good)
        }
        Command::Man { dir } => man(dir),
        Command::Volume(VolumeCommand::List(part)) | Command::List(part) => list(cli, None, part),
        Command::Snapshot(SnapshotCommand::List { volume, part }) => list(cli, Some(volume), part),
        command => ask(cli, request(command)?),
    }
}

/// The request behind a command that is one question to a pool, and how much of the answer is for people.
fn request(command: &Command) -> Result<(Request, Detail)> {
    let (all, remark, nothing) = (Detail::All, Detail::Remark, Detail::Nothing);
    Ok(match command {
        Command::Pool(command) => pool_request(command),
        Command::Volume(command) => volume_request(command),
        Command::Snapshot(command) => snapshot_request(command),
        Command::Clone(args) => {
            let (source, name, via) = (args.source.clone(), args.name.clone(), args.via.clone());
            (Request::Clone { source, name, via }, nothing)
        }
        Command::Revert(args) => {
            let target = args.target.clone();
            (Request::Revert { volume: target.volume, snapshot: target.snapshot, keep: args.keep.clone() }, nothing)
        }
        Command::Tree(args) => (Request::Tree { volume: args.volume.clone(), space: args.space }, all),
        Command::Space(args) => (Request::Space { targets: args.targets.clone() }, all),
        Command::Diff(args) => {
            let from = Some(args.from.clone()).filter(|from| from != "-");
            (Request::Diff { from, to: args.to.clone() }, all)
        }
        Command::Import(args) => {
            let format = match args.format {
                ImportFormat::Auto => None,
                ImportFormat::Raw => Some(Image::Raw),
                ImportFormat::Qcow2 => Some(Image::Qcow2),
            };
            (Request::Import { file: absolute(&args.file)?, volume: args.volume.clone(), format }, remark)
        }
        Command::Export(args) => (export_request(args)?, remark),
        Command::List(_) | Command::Serve(_) | Command::Completion { .. } | Command::Man { .. } => {
            unreachable!("not a single question to a pool")
        }
    })
}

fn pool_request(command: &PoolCommand) -> (Request, Detail) {
    match command {
        PoolCommand::Info => (Request::PoolInfo {}, Detail::All),
        PoolCommand::Stats => (Request::PoolStats {}, Detail::All),
        PoolCommand::Scrub => (Request::PoolScrub {}, Detail::All),
        PoolCommand::Grow { size } => (Request::PoolGrow { size: size.map(|size| size.0) }, Detail::Remark),
        PoolCommand::Create { .. } | PoolCommand::Check { .. } => unreachable!("not a question to an open pool"),
    }
}

fn volume_request(command: &VolumeCommand) -> (Request, Detail) {
    match command.clone() {
        VolumeCommand::Create { name, size } => (Request::VolumeCreate { name, size: size.0 }, Detail::Nothing),
        VolumeCommand::Show { name } => (Request::Show { target: name }, Detail::All),
        VolumeCommand::Resize { name, size } => (Request::VolumeResize { name, size: size.0 }, Detail::Nothing),
        VolumeCommand::Rename { name, new } => (Request::Rename { target: name, new }, Detail::Nothing),
        VolumeCommand::Delete { name, snapshots } => (Request::VolumeDelete { name, snapshots }, Detail::Nothing),
        VolumeCommand::List(_) => unreachable!("a list is asked for in pages"),
    }
}

fn snapshot_request(command: &SnapshotCommand) -> (Request, Detail) {
    match command.clone() {
        SnapshotCommand::Create { targets } => {
            let targets = targets.into_iter().map(|target| (target.volume, target.snapshot)).collect();
            (Request::SnapshotCreate { targets }, Detail::Remark)
        }
        SnapshotCommand::Show { target } => (Request::Show { target: target.to_string() }, Detail::All),
        SnapshotCommand::Rename { target, new } => {
            (Request::Rename { target: target.to_string(), new }, Detail::Nothing)
        }
        SnapshotCommand::Delete { target, subtree, dry_run } => {
            let detail = if dry_run {
                Detail::All
            } else if subtree {
                Detail::Remark
            } else {
                Detail::Nothing
            };
            (Request::SnapshotDelete { target: target.to_string(), subtree, dry_run }, detail)
        }
        SnapshotCommand::List { .. } => unreachable!("a list is asked for in pages"),
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

fn ask(cli: &Cli, (request, detail): (Request, Detail)) -> Result<Outcome> {
    let mut session = Session::open(&reach(&cli.global, |name| std::env::var_os(name))?)?;
    let mut screen = Screen::new(&cli.global);
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
fn list(cli: &Cli, volume: Option<&str>, part: &ListArgs) -> Result<Outcome> {
    let mut session = Session::open(&reach(&cli.global, |name| std::env::var_os(name))?)?;
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
    Screen::new(&cli.global).reply(&Reply::Versions(VersionsView { items }), Detail::All)?;
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

fn check(cli: &Cli, file: &Path) -> Result<Outcome> {
    let mut screen = Screen::new(&cli.global);
    let report = keyframe_engine::check(file, &OpenOptions::default(), &mut |done, total| screen.progress(done, total));
    screen.end_progress();
    let report = match report {
        Err(error) if error.kind() == ErrorKind::Locked => return Err(locked(&error, file)),
        report => Reply::Check(CheckView::from(report?)),
    };
    screen.reply(&report, Detail::All)?;
    Ok(outcome(&report))
}

fn man(dir: &Path) -> Result<Outcome> {
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    clap_mangen::generate_to(Cli::command(), dir)
        .with_context(|| format!("cannot write manual pages into {}", dir.display()))?;
    Ok(Outcome::Good)
}
