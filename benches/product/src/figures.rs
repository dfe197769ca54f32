//! Samples by row, and their spread as a table.

use std::fmt::Write;

/// What a row's numbers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Nanoseconds.
    Time,
    /// Bytes.
    Bytes,
    /// Thousandths of anything.
    Thousandths,
}

/// All samples of a run, rows in the order of their first ones.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    rows: Vec<(String, Unit, Vec<u64>)>,
}

impl Figures {
    pub(crate) fn add(&mut self, row: &str, unit: Unit, value: u64) {
        match self.rows.iter_mut().find(|(name, ..)| name == row) {
            Some((_, _, values)) => values.push(value),
            None => self.rows.push((row.to_owned(), unit, vec![value])),
        }
    }

    pub(crate) fn add_float(&mut self, row: &str, value: f64) {
        self.add(row, Unit::Thousandths, (value * 1000.0).round().max(0.0) as u64);
    }

    /// A Markdown table of medians, with the least and the most.
    pub(crate) fn markdown(&self) -> String {
        let mut text = "| row | median | least | most | samples |\n|---|---|---|---|---|\n".to_owned();
        for (name, unit, values) in &self.rows {
            let mut sorted = values.clone();
            sorted.sort_unstable();
            let at = |index: usize| sorted.get(index).map_or_else(String::new, |value| show(*unit, *value));
            let (middle, last) = (at(sorted.len() / 2), at(sorted.len().saturating_sub(1)));
            let _ = writeln!(text, "| {name} | {middle} | {} | {last} | {} |", at(0), sorted.len());
        }
        text
    }
}

fn show(unit: Unit, value: u64) -> String {
    match unit {
        Unit::Time => format!("{:.1} ms", value as f64 / 1e6),
        Unit::Bytes => format!("{:.1} MiB", value as f64 / f64::from(1 << 20)),
        Unit::Thousandths => format!("{:.2}", value as f64 / 1e3),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_shows_the_spread() {
        let mut figures = Figures::default();
        [30_000_000, 10_000_000, 20_000_000]
            .into_iter()
            .for_each(|value| figures.add("ls", Unit::Time, value));
        figures.add_float("wake-ups", 2.5);
        let table = figures.markdown();
        assert!(
            table.ends_with(
                "| ls | 20.0 ms | 10.0 ms | 30.0 ms | 3 |\n| wake-ups | 2.50 | 2.50 | 2.50 | 1 |\n"
            )
        );
    }
}
