//! Kill -9 of the agent, the manager or the machine before and after each step of each kind of job, and while a step is taken
//! back: everything comes to rest, nothing is left over, and who was not killed runs on.
//!
//! Each step meets one of the victims here, and every second one again while it is taken back. `KEYFRAME_DEATHS=all` brings each
//! together with each, before and after; `KEYFRAME_KIND=clone` plays jobs of one kind only.

mod plays;
mod stage;

use anyhow::Result;
use keyframe_lab::scratch;
use keyframe_lab::site::{Site, SiteOptions};

use plays::{PLAYS, Play};
use stage::{Stage, Victim};

const VICTIMS: [Victim; 3] = [Victim::Agent, Victim::Manager, Victim::Machine];

fn all() -> bool {
    std::env::var("KEYFRAME_DEATHS").is_ok_and(|text| text == "all")
}

fn plays() -> impl Iterator<Item = &'static Play> {
    let only = std::env::var("KEYFRAME_KIND").ok();
    PLAYS.iter().filter(move |play| only.as_deref().is_none_or(|kind| kind == play.kind))
}

/// Plays every step of every kind, or one of so many, with six pairs of a victim and a moment in a row, a step at a time, so
/// that over the kinds each pair comes up; or with all of them. `act` says whether the rest of a step's pairs can be played.
fn rounds(
    moments: [&'static str; 2],
    one_of: usize,
    act: impl Fn(&Stage<'_>, &'static Play, usize, Victim, &'static str) -> Result<bool>,
) -> Result<()> {
    let site = Site::up(&scratch::keyframe()?, &SiteOptions { apart: true, ..SiteOptions::default() })?;
    let stage = Stage::set(&site)?;
    let all = all();
    let (mut round, mut played) = (0, 0);
    for play in plays() {
        for step in 0..play.steps {
            let pairs = VICTIMS.iter().flat_map(|&victim| moments.map(|when| (victim, when)));
            for (at, (victim, when)) in pairs.enumerate() {
                if !(all || round % one_of == 0 && at == round / one_of % 6) {
                    continue;
                }
                played += 1;
                if !act(&stage, play, step, victim, when)? {
                    break;
                }
            }
            round += 1;
        }
    }
    println!("{played} rounds");
    Ok(())
}

#[test]
fn whoever_is_killed_at_whatever_step_everything_comes_to_rest() -> Result<()> {
    rounds(["before", "after"], 1, |stage, play, step, victim, when| {
        stage.play(play, step, victim, when)?;
        Ok(true)
    })
}

#[test]
fn whoever_is_killed_while_a_job_is_taken_back_everything_comes_to_rest() -> Result<()> {
    rounds(["before undo", "after undo"], 2, |stage, play, step, victim, when| {
        stage.take_back(play, step, victim, when)
    })
}
