//! The steps of a demonstration: announced as they begin, timed, and listed at the end.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use comfy_table::{CellAlignment, Table, presets};

/// What was done so far, and how long each step took.
#[derive(Default)]
pub struct Steps {
    done: Vec<(String, Duration, String)>,
}

impl Steps {
    /// Does one step. What it returns beside its value is a remark for the list.
    pub fn run<T>(&mut self, what: &str, act: impl FnOnce() -> Result<(T, String)>) -> Result<T> {
        println!("==> {what}");
        let began = Instant::now();
        let (value, remark) = act().with_context(|| format!("step failed: {what}"))?;
        let took = began.elapsed();
        println!("    {remark}  [{}]", human(took));
        self.done.push((what.to_owned(), took, remark));
        Ok(value)
    }

    /// All steps with their times.
    pub fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(presets::UTF8_FULL_CONDENSED).set_header(["step", "time", ""]);
        for (what, took, remark) in &self.done {
            table.add_row([what, &human(*took), remark]);
        }
        if let Some(column) = table.column_mut(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table
    }
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

    #[test]
    fn spread_names_median_and_maximum() {
        let times = [30, 1, 2].map(Duration::from_millis);
        assert_eq!(spread(&times), "median 2.0 ms, max 30.0 ms");
        assert_eq!(spread(&[]), "no times");
        assert_eq!(human(Duration::from_millis(12_340)), "12.3 s");
    }
}
