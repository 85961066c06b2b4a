//! `keyframe`: everything in one program. What works on a pool file, the manager and the agent as processes, and the command
//! line of machines, which is a client of the manager's REST interface and nothing else.

#![deny(clippy::print_stderr)]

mod agent;
mod cli;
mod client;
mod clock;
mod command;
mod complete;
mod daemon;
mod failure;
mod manager;
mod manager_config;
mod ops;
mod plain;
mod reach;
mod remote;
mod screen;
mod serve;
mod session;
mod show;
mod size;
mod socket;
mod span;
mod storage;
mod strangers;
mod supervise;
mod up;
mod wire;

use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;
use keyframe_agent::say::say;

/// Wrong usage, names that cannot be ones included; 1 is for every other failure.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let cli = match cli::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return explain_usage(&error),
    };
    match command::run(&cli) {
        Ok(outcome) => outcome.into(),
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => match failure::tell(&error, cli.output.json) {
            true => ExitCode::from(USAGE),
            false => ExitCode::FAILURE,
        },
    }
}

/// Help and version go to stdout and are no errors; the rest is worded like all our errors.
fn explain_usage(error: &clap::Error) -> ExitCode {
    let text = error.render();
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        say(text.to_string().trim_end());
        return ExitCode::from(USAGE);
    }
    if error.use_stderr() {
        let plain = text.to_string();
        let plain = plain.strip_prefix("error: ").unwrap_or(&plain);
        // Nothing that was typed is understood yet, and this is worth a guess.
        if std::env::args_os().any(|word| word == "--json") {
            say(failure::misused(plain.trim_end()));
        } else {
            say(format_args!("keyframe: {}", plain.trim_end()));
        }
        return ExitCode::from(USAGE);
    }
    match screen::print(&text.to_string()) {
        Err(error) if !is_broken_pipe(&error) => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    }
}

/// Whoever read the output has seen enough.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.is::<screen::OutputClosed>())
}
