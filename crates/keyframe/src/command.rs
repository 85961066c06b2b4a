//! Who carries out what was typed.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::CommandFactory;

use crate::cli::{Cli, Command};
use crate::storage;

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
    match &cli.command {
        Command::Pool(args) => storage::pool(&cli.output, args),
        Command::Volume(args) => storage::volume(&cli.output, args),
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "keyframe", &mut script);
            std::io::stdout().write_all(&script).context("cannot write the output")?;
            Ok(Outcome::Good)
        }
        Command::Man { dir } => man(dir),
    }
}

fn man(dir: &Path) -> Result<Outcome> {
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    clap_mangen::generate_to(Cli::command(), dir)
        .with_context(|| format!("cannot write manual pages into {}", dir.display()))?;
    Ok(Outcome::Good)
}
