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
    /// Snapshot, clone, wreck and revert a running machine
    Demo {
        /// The binary to demonstrate
        #[arg(long)]
        keyframe: PathBuf,
        /// How many snapshots to take
        #[arg(long, default_value_t = 100)]
        snapshots: usize,
        /// Check the file systems of every n-th snapshot
        #[arg(long, default_value_t = 10)]
        file_systems_every: usize,
    },
}

fn main() -> Result<()> {
    match Arguments::parse().verb {
        Verb::Demo { keyframe, snapshots, file_systems_every } => {
            demo::run(&demo::Options { keyframe, snapshots, file_systems_every })
        }
    }
}
