//! `lab`: plays the demonstration.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};
use keyframe_lab::demo;

/// Real virtual machines on Keyframe
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Live snapshots, a tree, applies, a fork, a template and clones of a real machine
    Demo {
        /// The binary to demonstrate
        #[arg(long)]
        keyframe: PathBuf,
    },
}

fn main() -> Result<()> {
    match Arguments::parse().verb {
        Verb::Demo { keyframe } => demo::run(&demo::Options { keyframe }),
    }
}
