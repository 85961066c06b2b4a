//! Who carries out what was typed.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::CommandFactory;

use crate::agent;
use crate::cli::{Cli, Command, HelperArgs};
use crate::{complete, daemon, manager, remote, storage, up};

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
    // Nobody else: helpers and machines inherit their environment, and are not to end with the supervisor.
    if matches!(cli.command, Command::Up(_) | Command::Agent(_) | Command::Manager(_)) {
        daemon::settle()?;
    }
    let (output, good) = (&cli.output, |()| Outcome::Good);
    match &cli.command {
        Command::Up(args) => up::up(output, args).map(good),
        Command::Down(args) => up::down(output, args).map(good),
        Command::Vm(args) => remote::vm(output, args).map(good),
        Command::Snapshot(args) => remote::snapshot(output, args).map(good),
        Command::Clone(args) => remote::clone(output, args).map(good),
        Command::Template(args) => remote::template(output, args).map(good),
        Command::Disk(args) => remote::disk(output, args).map(good),
        Command::Nic(args) => remote::nic(output, args).map(good),
        Command::Console(args) => remote::console(output, args).map(good),
        Command::Job(args) => remote::job(output, args).map(good),
        Command::Host(args) => remote::host(output, args).map(good),
        Command::Token(args) => remote::token(output, args).map(good),
        Command::Search(args) => remote::search(output, args).map(good),
        Command::Events(args) => remote::events(output, args).map(good),
        Command::Manager(args) => manager::run(args).map(good),
        Command::Pool(args) => storage::pool(&cli.output, args),
        Command::Volume(args) => storage::volume(&cli.output, args),
        Command::Agent(args) => agent::run(args).map(|()| Outcome::Good),
        Command::Helper(args) => Ok(helper(args)),
        Command::Completion { shell } => crate::screen::print(&complete::script(*shell)).map(good),
        Command::Complete { words } => crate::screen::print(&complete::lines(words)).map(good),
        Command::Man { dir } => man(dir),
    }
}

fn helper(args: &HelperArgs) -> Outcome {
    let code = keyframe_agent::hypervisor::qemu::helper::run(args.args.iter().cloned());
    if code == ExitCode::SUCCESS { Outcome::Good } else { Outcome::Damaged }
}

fn man(dir: &Path) -> Result<Outcome> {
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    clap_mangen::generate_to(Cli::command(), dir)
        .with_context(|| format!("cannot write manual pages into {}", dir.display()))?;
    Ok(Outcome::Good)
}
