//! Samples by row and side, and their medians as a table.

use std::collections::BTreeMap;
use std::fmt::Write;

/// All samples of a run.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    /// Row, then side: samples in nanoseconds, or bytes for rows that end in `bytes`.
    samples: BTreeMap<String, BTreeMap<&'static str, Vec<u64>>>,
}

impl Rows {
    pub(crate) fn add(&mut self, row: &str, side: &'static str, value: u64) {
        self.samples.entry(row.to_owned()).or_default().entry(side).or_default().push(value);
    }

    /// A Markdown table of medians; the ratio is that of the last two columns' sides (name, heading): below 1, the former
    /// is ahead.
    pub(crate) fn markdown(&self, columns: &[(&str, &str)]) -> String {
        let headings: Vec<_> = columns.iter().map(|(_, heading)| *heading).collect();
        let ratio_of = headings.iter().rev().take(2).rev().copied().collect::<Vec<_>>().join(" / ");
        let mut text = format!("| row | {} | {ratio_of} | samples |\n", headings.join(" | "));
        let _ = writeln!(text, "|{}", "---|".repeat(columns.len() + 3));
        for (row, sides) in &self.samples {
            let middles: Vec<_> =
                columns.iter().map(|(side, _)| sides.get(side).and_then(|values| median(values))).collect();
            let shown: Vec<_> = middles
                .iter()
                .map(|value| value.map_or_else(|| "-".to_owned(), |value| unit(row, value)))
                .collect();
            let ratio = match middles.as_slice() {
                [.., Some(ours), Some(theirs)] if *theirs > 0 => {
                    format!("{:.2}", *ours as f64 / *theirs as f64)
                }
                _ => "-".to_owned(),
            };
            let count = sides.values().map(Vec::len).min().unwrap_or(0);
            let _ = writeln!(text, "| {row} | {} | {ratio} | {count} |", shown.join(" | "));
        }
        text
    }
}

fn unit(row: &str, value: u64) -> String {
    if row.ends_with("bytes") {
        return format!("{:.0} MiB", value as f64 / f64::from(1 << 20));
    }
    format!("{:.1} ms", value as f64 / 1e6)
}

fn median(values: &[u64]) -> Option<u64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_shows_medians_and_the_ratio() {
        let mut rows = Rows::default();
        [30_000_000, 10_000_000, 20_000_000].into_iter().for_each(|value| rows.add("node", "viv", value));
        rows.add("node", "qemu", 40_000_000);
        let table = rows.markdown(&[("native", "native"), ("viv", "soft"), ("qemu", "TCG")]);
        assert_eq!(
            table,
            "| row | native | soft | TCG | soft / TCG | samples |\n|---|---|---|---|---|---|\n\
             | node | - | 20.0 ms | 40.0 ms | 0.50 | 1 |\n"
        );
    }
}
