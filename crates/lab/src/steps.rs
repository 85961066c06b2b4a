//! The steps of a demonstration: announced as they begin, timed, and listed at the end.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use comfy_table::{CellAlignment, Table, presets};

/// What was done so far, and how long each step took.
#[derive(Default)]
pub struct Steps {
    done: Vec<Step>,
}

struct Step {
    what: String,
    took: Duration,
    /// What was measured in it, beside what that is held to; empty for most.
    measured: String,
    remark: String,
}

/// A time that somebody has promised: the measured one is shown beside it, and judged by whoever reads it. It depends on the
/// host and on what else that does.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// What is measured.
    pub of: &'static str,
    /// The most that it is to take.
    pub most: Duration,
}

impl Steps {
    /// Does one step. What it returns beside its value is a remark for the list.
    pub fn run<T>(&mut self, what: &str, act: impl FnOnce() -> Result<(T, String)>) -> Result<T> {
        self.step(what, || act().map(|(value, remark)| (value, String::new(), remark)))
    }

    /// The same for a step in which something with a limit is measured.
    pub fn measure<T>(
        &mut self,
        what: &str,
        limit: Limit,
        act: impl FnOnce() -> Result<(T, Duration, String)>,
    ) -> Result<T> {
        self.step(what, || act().map(|(value, took, remark)| (value, beside(limit, took), remark)))
    }

    fn step<T>(&mut self, what: &str, act: impl FnOnce() -> Result<(T, String, String)>) -> Result<T> {
        println!("==> {what}");
        let began = Instant::now();
        let (value, measured, remark) = act().with_context(|| format!("step failed: {what}"))?;
        let took = began.elapsed();
        let said: Vec<&str> = [&*measured, &*remark].into_iter().filter(|part| !part.is_empty()).collect();
        println!("    {}  [{}]", said.join("; "), human(took));
        self.done.push(Step { what: what.to_owned(), took, measured, remark });
        Ok(value)
    }

    /// All steps with their times.
    pub fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(presets::UTF8_FULL_CONDENSED).set_header(["step", "time", "measured / limit", ""]);
        for Step { what, took, measured, remark } in &self.done {
            table.add_row([what, &human(*took), measured, remark]);
        }
        if let Some(column) = table.column_mut(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table
    }
}

fn beside(limit: Limit, took: Duration) -> String {
    format!("{} {} / {}", limit.of, human(took), human(limit.most))
}

/// A duration with three significant digits or so.
pub fn human(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    if seconds < 1.0 { format!("{:.1} ms", seconds * 1e3) } else { format!("{seconds:.1} s") }
}

/// Median and maximum of some times, for a remark.
pub fn spread(times: &[Duration]) -> String {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    match (sorted.get(sorted.len() / 2), sorted.last()) {
        (Some(median), Some(max)) => format!("median {}, max {}", human(*median), human(*max)),
        _ => "no times".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever was measured: it is said, and the step is none the worse for it.
    #[test]
    fn limits_stand_beside_what_was_measured() {
        let limit = Limit { of: "pause", most: Duration::from_millis(15) };
        let mut steps = Steps::default();
        for (what, millis) in [("quick", 8), ("slow", 1200)] {
            let took = Duration::from_millis(millis);
            steps.measure(what, limit, || Ok(((), took, "cut at-resume".to_owned()))).unwrap();
        }
        steps.run("other", || Ok(((), "done".to_owned()))).unwrap();
        let table = steps.table().to_string();
        for line in ["measured / limit", "pause 8.0 ms / 15.0 ms", "pause 1.2 s / 15.0 ms"] {
            assert!(table.contains(line), "{table}");
        }
        assert_eq!(table.matches(" / ").count(), 3, "{table}");
    }

    #[test]
    fn spread_names_median_and_maximum() {
        let times = [30, 1, 2].map(Duration::from_millis);
        assert_eq!(spread(&times), "median 2.0 ms, max 30.0 ms");
        assert_eq!(spread(&[]), "no times");
        assert_eq!(human(Duration::from_millis(12_340)), "12.3 s");
    }
}
