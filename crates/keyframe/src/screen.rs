//! What the user sees: results on stdout, as tables or JSON; progress and remarks on stderr, on a terminal.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, BufWriter, IsTerminal, Stdout, Write};
use std::time::Duration;

use anyhow::Result;
use indicatif::{HumanDuration, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use crate::cli::Output;
use crate::ops::{DiffTotals, Event, Range, Reply};
use crate::plain::plain;
use crate::show::{self, Detail};

/// Stdout's reader went away.
#[derive(Debug)]
pub(crate) struct OutputClosed;

impl fmt::Display for OutputClosed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the output was closed")
    }
}

impl std::error::Error for OutputClosed {}

/// Where one command's output goes.
pub(crate) struct Screen {
    json: bool,
    quiet: bool,
    out: BufWriter<Stdout>,
    bar: Option<ProgressBar>,
    /// Ranges of a difference were printed, and their list is still open.
    listing: bool,
}

impl Screen {
    pub(crate) fn new(output: &Output) -> Screen {
        let out = BufWriter::new(io::stdout());
        Screen { json: output.json, quiet: output.quiet, out, bar: None, listing: false }
    }

    /// Something before the result.
    pub(crate) fn event(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Progress { done, total } => {
                self.progress(done, total, None);
                Ok(())
            }
            Event::Ranges(ranges) => self.ranges(&ranges).map_err(output_error),
        }
    }

    /// Shows how far it is, and what is being done if that is known.
    pub(crate) fn progress(&mut self, done: u64, total: u64, doing: Option<&str>) {
        if self.json || self.quiet || !io::stderr().is_terminal() {
            return;
        }
        let bar = self.bar.get_or_insert_with(|| {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
            match ProgressStyle::with_template("{bar:40} {percent:>3}% {elapsed_precise}{left} {wide_msg}") {
                Ok(style) => bar.with_style(style.with_key("left", left)),
                Err(_) => bar,
            }
        });
        // What has not been counted yet has not been done.
        bar.set_length(total.max(1));
        bar.set_position(done);
        bar.set_message(doing.unwrap_or_default().to_owned());
    }

    fn ranges(&mut self, ranges: &[Range]) -> io::Result<()> {
        if self.json {
            for range in ranges {
                self.out.write_all(if self.listing { b"," } else { b"{\"ranges\":[" })?;
                self.listing = true;
                serde_json::to_writer(&mut self.out, range)?;
            }
            return Ok(());
        }
        if !self.listing {
            writeln!(self.out, "{:>18} {:>18}  KIND", "OFFSET", "LENGTH")?;
            self.listing = true;
        }
        for range in ranges {
            writeln!(self.out, "{:>18} {:>18}  {}", range.offset, range.length, range.kind.name())?;
        }
        Ok(())
    }

    /// A result that is text already: JSON as it is, anything else so that it does nothing to a terminal.
    pub(crate) fn raw(&mut self, text: &str) -> Result<()> {
        self.end_progress();
        let text = if self.json { Cow::Borrowed(text) } else { plain(text) };
        self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush()).map_err(output_error)
    }

    /// The result. Text says no more than `detail` asks for; JSON always says all.
    pub(crate) fn reply(&mut self, reply: &Reply, detail: Detail) -> Result<()> {
        self.end_progress();
        let printed = match (reply, self.json) {
            (Reply::Diff(totals), true) => self.end_ranges(totals),
            (_, true) => show::json(reply, &mut self.out),
            (_, false) if detail == Detail::Nothing || (detail == Detail::Remark && self.quiet) => Ok(()),
            (_, false) => show::text(reply, &mut self.out),
        };
        printed.and_then(|()| self.out.flush()).map_err(output_error)
    }

    fn end_ranges(&mut self, totals: &DiffTotals) -> io::Result<()> {
        if !self.listing {
            self.out.write_all(b"{\"ranges\":[")?;
        }
        writeln!(self.out, "],\"data\":{},\"zero\":{},\"hole\":{}}}", totals.data, totals.zero, totals.hole)
    }

    /// Takes the bar away, so that an error is not written behind it.
    pub(crate) fn end_progress(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

fn left(state: &ProgressState, out: &mut dyn fmt::Write) {
    if write!(out, "{}", still(state.pos(), state.len(), state.eta())).is_err() {
        // The line is drawn anew in a moment.
    }
}

/// The time that is left, where something is known of it: at the begin nothing is, and at the end none is left.
fn still(done: u64, total: Option<u64>, estimate: Duration) -> String {
    let known = done > 0 && total.is_some_and(|total| done < total) && !estimate.is_zero();
    if known { format!(" left {:#}", HumanDuration(estimate)) } else { String::new() }
}

/// Text on stdout, for those who have no screen of their own.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(output_error)
}

fn output_error(error: io::Error) -> anyhow::Error {
    match error.kind() {
        io::ErrorKind::BrokenPipe => OutputClosed.into(),
        _ => anyhow::Error::new(error).context("cannot write the output"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_that_is_left_is_said_where_it_is_known() {
        let span = Duration::from_secs(600);
        assert_eq!(still(50, Some(100), span), " left 10m");
        for (done, total, estimate) in [
            (0, Some(100), span),
            (100, Some(100), span),
            (1, Some(1), span),
            (5, None, span),
            (5, Some(9), Duration::ZERO),
        ] {
            assert_eq!(still(done, total, estimate), "", "{done} of {total:?}, {estimate:?}");
        }
    }
}
