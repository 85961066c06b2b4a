//! The result of a run: a table for the terminal, and the same as Markdown for the repository.

use comfy_table::{ContentArrangement, Table, presets};

use crate::figure::{Figure, Unit, show};

/// What a row is held to.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Target {
    /// Ours over theirs.
    RatioAtLeast(f64),
    /// Ours over theirs.
    RatioAtMost(f64),
    /// Our median.
    AtMost(Unit, f64),
    /// Nothing: good to know.
    None,
}

/// One comparison.
pub(crate) struct Row {
    what: String,
    ours: Figure,
    other: Option<(String, Figure)>,
    target: Target,
}

impl Row {
    pub(crate) fn new(what: impl Into<String>, ours: Figure) -> Row {
        Row { what: what.into(), ours, other: None, target: Target::None }
    }

    pub(crate) fn against(mut self, name: impl Into<String>, figure: Figure) -> Row {
        self.other = Some((name.into(), figure));
        self
    }

    pub(crate) fn target(mut self, target: Target) -> Row {
        self.target = target;
        self
    }

    fn ratio(&self) -> Option<f64> {
        self.other.as_ref().map(|(_, figure)| self.ours.median() / figure.median())
    }

    fn target_text(&self) -> String {
        match self.target {
            Target::RatioAtLeast(limit) => format!("≥ {limit:.2}x"),
            Target::RatioAtMost(limit) => format!("≤ {limit:.2}x"),
            Target::AtMost(unit, limit) => format!("≤ {}", show(unit, limit)),
            Target::None => String::new(),
        }
    }

    fn met(&self) -> Option<bool> {
        let ratio = self.ratio().unwrap_or(f64::NAN);
        match self.target {
            Target::RatioAtLeast(limit) => Some(ratio >= limit),
            Target::RatioAtMost(limit) => Some(ratio <= limit),
            Target::AtMost(_, limit) => Some(self.ours.median() <= limit),
            Target::None => None,
        }
    }

    /// Its ratio means little.
    fn is_unsteady(&self) -> bool {
        self.ours.is_unsteady() || self.other.as_ref().is_some_and(|(_, figure)| figure.is_unsteady())
    }

    fn cells(&self) -> [String; 7] {
        let (name, figure) = match &self.other {
            Some((name, figure)) => (name.clone(), figure.text()),
            None => Default::default(),
        };
        let ratio = self.ratio().map_or_else(String::new, |ratio| format!("{ratio:.2}x"));
        let met = match self.met() {
            Some(true) => "met",
            Some(false) => "MISSED",
            None => "",
        };
        let verdict = if self.is_unsteady() { format!("{met} (unsteady)") } else { met.to_owned() };
        [self.what.clone(), self.ours.text(), name, figure, ratio, self.target_text(), verdict.trim().to_owned()]
    }
}

const HEADER: [&str; 7] = ["measured", "keyframe", "beside", "figure", "ratio", "target", ""];

enum Line {
    Row(Row),
    Note(String),
}

struct Section {
    title: String,
    /// When, of what commit, how busy the machine was.
    when: String,
    lines: Vec<Line>,
}

/// Everything a run found.
pub(crate) struct Report {
    machine: Vec<(String, String)>,
    sections: Vec<Section>,
    failures: usize,
}

impl Report {
    pub(crate) fn new(machine: Vec<(String, String)>) -> Report {
        Report { machine, sections: Vec::new(), failures: 0 }
    }

    pub(crate) fn begin(&mut self, title: &str, when: String) {
        self.sections.push(Section { title: title.to_owned(), when, lines: Vec::new() });
    }

    fn add(&mut self, line: Line) {
        if let Some(section) = self.sections.last_mut() {
            section.lines.push(line);
        }
    }

    pub(crate) fn row(&mut self, row: Row) {
        eprintln!("    {}", row.cells().join(" | "));
        self.add(Line::Row(row));
    }

    pub(crate) fn note(&mut self, text: impl Into<String>) {
        let text = text.into();
        eprintln!("    {text}");
        self.add(Line::Note(text));
    }

    /// Something could not be measured.
    pub(crate) fn failed(&mut self, why: &str) {
        self.failures += 1;
        self.note(format!("NOT MEASURED: {why}"));
    }

    /// Everything that was asked for was measured.
    pub(crate) fn complete(&self) -> bool {
        self.failures == 0
    }

    fn rows(&self) -> impl Iterator<Item = &Row> {
        self.sections.iter().flat_map(|s| &s.lines).filter_map(|line| match line {
            Line::Row(row) => Some(row),
            Line::Note(_) => None,
        })
    }

    fn summary(&self) -> String {
        let judged = || self.rows().filter(|row| row.met().is_some());
        let met = judged().filter(|row| row.met() == Some(true)).count();
        let unsteady = judged().filter(|row| row.is_unsteady()).count();
        format!(
            "{met} of {} targets met; {unsteady} were judged on unsteady runs; {} measurements could not be made",
            judged().count(),
            self.failures
        )
    }

    pub(crate) fn print(&self) {
        for section in &self.sections {
            println!("\n{}", section.title);
            let mut table = Table::new();
            table.load_style(presets::UTF8_HORIZONTAL_ONLY).set_content_arrangement(ContentArrangement::Dynamic);
            table.set_header(HEADER);
            for line in &section.lines {
                if let Line::Row(row) = line {
                    table.add_row(row.cells());
                }
            }
            println!("{table}");
            for line in &section.lines {
                if let Line::Note(text) = line {
                    println!("  {text}");
                }
            }
        }
        println!("\n{}", self.summary());
    }

    /// The page for the repository. Of `old`, a page of an earlier run, it keeps those of the sections `titles` that this run left out.
    pub(crate) fn markdown(&self, old: &str, titles: &[&str]) -> String {
        let mut out =
            String::from("# Measurements\n\nWritten by `./x bench`. Medians, with the smallest and the largest ");
        out.push_str("in brackets; contenders ran in turn, on the same file system of the same machine. A ratio is one median over another. \
             Unsteady: the runs of one contender lie apart by more than a factor of two. Sections may be of different runs.\n\n");
        for (key, value) in &self.machine {
            out.push_str(&format!("- {key}: {value}\n"));
        }
        out.push_str(&format!("\nThe last run: {}.\n", self.summary()));
        let kept = |title: &str| old.split("\n## ").skip(1).find(|text| text.lines().next() == Some(title));
        for title in titles {
            if let Some(section) = self.sections.iter().find(|section| section.title == *title) {
                out.push_str(&section.markdown());
            } else if let Some(text) = kept(title) {
                out.push_str(&format!("\n## {}\n", text.trim_end()));
            }
        }
        out
    }
}

impl Section {
    fn markdown(&self) -> String {
        let mut out = format!("\n## {}\n\n{}\n\n", self.title, self.when);
        if self.lines.iter().any(|line| matches!(line, Line::Row(_))) {
            out.push_str(&format!("| {} |\n|---|--:|---|--:|--:|--:|---|\n", HEADER.join(" | ")));
        }
        for line in &self.lines {
            if let Line::Row(row) = line {
                out.push_str(&format!("| {} |\n", row.cells().join(" | ")));
            }
        }
        for line in &self.lines {
            if let Line::Note(text) = line {
                out.push_str(&format!("\n{text}\n"));
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_judged_by_what_it_is_held_to() {
        let row = || Row::new("x", Figure::one(Unit::Iops, 80.0)).against("y", Figure::one(Unit::Iops, 100.0));
        let check = |target, met| assert_eq!(row().target(target).met(), met, "{target:?}");
        check(Target::RatioAtLeast(0.8), Some(true));
        check(Target::RatioAtLeast(0.81), Some(false));
        check(Target::RatioAtMost(0.8), Some(true));
        check(Target::AtMost(Unit::Iops, 79.0), Some(false));
        check(Target::None, None);
    }

    #[test]
    fn nothing_measured_is_nothing_met() {
        let row = Row::new("x", Figure::new(Unit::Time, [])).target(Target::AtMost(Unit::Time, 1.0));
        assert_eq!(row.met(), Some(false));
    }

    #[test]
    fn sections_of_an_earlier_run_stay_until_they_are_measured_again() {
        let page = |titles: &[&str], old: &str| {
            let mut report = Report::new(Vec::new());
            for title in titles {
                report.begin(title, format!("when {title}"));
            }
            let page = report.markdown(old, &["A", "B", "C"]);
            let sections: Vec<String> = page.split("\n## ").skip(1).map(|s| s.trim().replace("\n\n", " ")).collect();
            (sections, page)
        };
        let (_, first) = page(&["A", "C"], "");
        let old = first.replace("when A", "long ago");
        assert_eq!(page(&["B", "C"], &old).0, ["A long ago", "B when B", "C when C"]);
        assert_eq!(page(&["A"], &old).0, ["A when A", "C when C"]);
    }
}
