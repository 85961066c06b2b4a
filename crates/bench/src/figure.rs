//! A measured quantity: all its values, shown as their median with the smallest and the largest.

/// What the numbers are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Unit {
    /// Requests in a second.
    Iops,
    /// Seconds.
    Time,
    /// Bytes in a second.
    Rate,
    /// Bytes.
    Bytes,
    /// Things counted.
    Count,
    /// One quantity over another.
    Ratio,
}

/// Values of one quantity, at least one.
#[derive(Clone, Debug)]
pub(crate) struct Figure {
    sorted: Vec<f64>,
    unit: Unit,
}

impl Figure {
    /// No values at all show as "not a number", which meets no target.
    pub(crate) fn new(unit: Unit, values: impl IntoIterator<Item = f64>) -> Figure {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        if sorted.is_empty() {
            sorted.push(f64::NAN);
        }
        sorted.sort_by(f64::total_cmp);
        Figure { sorted, unit }
    }

    pub(crate) fn one(unit: Unit, value: f64) -> Figure {
        Figure::new(unit, [value])
    }

    pub(crate) fn median(&self) -> f64 {
        let n = self.sorted.len();
        (self.sorted[(n - 1) / 2] + self.sorted[n / 2]) / 2.0
    }

    /// The values of a steady quantity that lie apart by more than a factor of two: the median means little.
    pub(crate) fn is_unsteady(&self) -> bool {
        let steady = matches!(self.unit, Unit::Iops | Unit::Rate);
        steady && self.sorted[self.sorted.len() - 1] > 2.0 * self.sorted[0]
    }

    /// The median, and how far the values spread.
    pub(crate) fn text(&self) -> String {
        let (low, high) = (self.sorted[0], self.sorted[self.sorted.len() - 1]);
        let median = show(self.unit, self.median());
        if self.sorted.len() == 1 || low == high {
            return median;
        }
        format!("{median} ({}–{})", show(self.unit, low), show(self.unit, high))
    }
}

/// A value in the unit's usual notation.
pub(crate) fn show(unit: Unit, value: f64) -> String {
    let scaled = |steps: &[(f64, &str)], smallest: &str| {
        let step = steps.iter().find(|(size, _)| value.abs() >= *size);
        let (size, name) = step.copied().unwrap_or((1.0, smallest));
        let value = value / size;
        let digits = if value.abs() >= 100.0 || value.fract() == 0.0 {
            0
        } else if value.abs() >= 10.0 {
            1
        } else {
            2
        };
        format!("{value:.digits$}{name}")
    };
    match unit {
        Unit::Iops => scaled(&[(1e6, "M/s"), (1e3, "k/s")], "/s"),
        Unit::Count => scaled(&[], ""),
        Unit::Ratio => format!("{value:.2}x"),
        Unit::Rate => scaled(&[(1073741824.0, " GiB/s"), (1048576.0, " MiB/s"), (1024.0, " KiB/s")], " B/s"),
        Unit::Bytes => scaled(&[(1073741824.0, " GiB"), (1048576.0, " MiB"), (1024.0, " KiB")], " B"),
        Unit::Time => {
            let nanoseconds = value * 1e9;
            let step = [(1e9, " s"), (1e6, " ms"), (1e3, " µs")].into_iter().find(|(size, _)| nanoseconds >= *size);
            let (size, name) = step.unwrap_or((1.0, " ns"));
            let value = nanoseconds / size;
            let digits = if value >= 100.0 { 0 } else { 1 };
            format!("{value:.digits$}{name}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_shows_its_median_and_its_spread() {
        let check = |unit, values: &[f64], text: &str| assert_eq!(Figure::new(unit, values.to_vec()).text(), text);
        check(Unit::Iops, &[81_200.0], "81.2k/s");
        check(Unit::Iops, &[3.0, 1.0, 2.0], "2/s (1/s–3/s)");
        check(Unit::Time, &[0.0012, 0.0018], "1.5 ms (1.2 ms–1.8 ms)");
        check(Unit::Time, &[0.000_000_12], "120 ns");
        check(Unit::Ratio, &[1.0 / 3.0], "0.33x");
        check(Unit::Bytes, &[1536.0], "1.50 KiB");
        check(Unit::Count, &[0.0], "0");
        check(Unit::Count, &[], "NaN");
    }
}
